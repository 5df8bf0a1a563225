"""Tuning the backbone's last layers inside the outer loop, by LoRA or whole.

The layers below stay as they are, so what they make of every text is computed once and kept. Of the
items of a batch, negatives included, some are encoded with gradients, and their vectors enter the
tower as all others do; the other items have vectors from before. These are stale, most negatives
among them. All are encoded anew at every check, by the mean of the weights, which moves slowly
("Momentum Contrast", He et al., 2020, has its negatives from such a mean); so none is older than
the steps between two checks.

LoRA (Hu et al., "LoRA", 2021) adds a product of rank r to the attention's projections. It is merged
into the weights before each use, so that what is trained is what is exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from adapters import tokens
from adapters.backbone import Backbone, SentenceEncoder
from adapters.signals import Ints
from adapters.tokens import TokenBatch
from adapters.types import Meta

PREFIX = "backbone."
"""Of the names of tensors that are the backbone's, among those of a model that is trained."""

RATES = {"lora": 0.1, "last_layers": 0.01}
"""Learning rates relative to the outer loop's: 3e-4 and 3e-5 with the default, usual for either."""

_DOWN, _UP = ".lora_down", ".lora_up"
_GAIN = 2.0  # LoRA's alpha over rank
_AT_ONCE = 256  # items that are encoded together


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What of the backbone is trained."""

    kind: Literal["lora", "last_layers"]
    layers: int = 1  # the last ones
    rank: int = 8  # of LoRA
    items: int = 128  # of a batch, encoded with gradients


class Top(nn.Module):
    """The last layers of an encoder, and what the layers below them make of N texts."""

    def __init__(self, encoder: SentenceEncoder, first: int, states: Tensor, ends: Ints) -> None:
        super().__init__()
        self.encoder = encoder
        self.first = first  # layer that is tuned
        self.ends = ends  # [N] where the tokens of a text end
        self.states: Tensor
        self.register_buffer("states", states, persistent=False)  # [T, D] float16

    def forward(self, rows: Ints) -> Tensor:
        """Vectors [m, D] of the texts `rows` [m]."""
        begin = np.where(rows > 0, self.ends[rows - 1], 0)
        length = self.ends[rows] - begin
        place = np.arange(int(length.max(initial=1)))
        real = place < length[:, None]  # [m, l]
        index = torch.from_numpy(np.where(real, begin[:, None] + place, 0)).to(self.states.device)
        mask = torch.from_numpy(real).to(self.states.device, torch.float32)
        x = self.encoder.through(self.states[index].float(), mask, self.first)
        return self.encoder.pool(x, mask)


@torch.no_grad()
def prepare(backbone: Backbone, texts: Sequence[str], layers: int) -> Top:
    """Read all texts by the layers that are not tuned. Raises `ValueError` if there are fewer."""
    encoder = backbone.module
    first = len(encoder.layers) - layers
    if first < 0:
        raise ValueError(f"the backbone has {len(encoder.layers)} layers, {layers} are to be tuned")
    ids = tokens.read(backbone.tokenizer, texts)
    length = np.array([len(one) for one in ids], np.int64)
    ends = np.cumsum(length)
    states = np.empty((int(length.sum()), backbone.dim), np.float16)
    order = np.argsort(length, kind="stable")
    for at in range(0, len(order), _AT_ONCE):
        batch = tokens.pad(ids, order[at : at + _AT_ONCE])
        rows, place = np.nonzero(batch.mask)
        begin = ends[batch.places] - length[batch.places]
        states[begin[rows] + place] = _below(encoder, batch, first)[rows, place]
    return Top(encoder, first, torch.from_numpy(states), ends)


def _below(encoder: SentenceEncoder, batch: TokenBatch, end: int) -> np.ndarray:
    """Tokens [b, l, D] float16 after the layers up to `end`."""
    device = encoder.words.weight.device
    ids, mask = torch.from_numpy(batch.ids).to(device), torch.from_numpy(batch.mask).to(device)
    return encoder.through(encoder.embed(ids), mask.float(), 0, end).half().cpu().numpy()


# -- what is trained ----------------------------------------------------------------------------


def start(top: Top, tuning: Tuning, generator: torch.Generator) -> dict[str, Tensor]:
    """Tensors to train, by names of a model: copies of layers, or products that begin at zero."""
    weights = {
        name: value
        for name, value in top.encoder.state_dict().items()
        if name.startswith(tuple(f"layers.{i}." for i in range(top.first, len(top.encoder.layers))))
    }
    if tuning.kind == "last_layers":
        return {PREFIX + name: value.detach().clone() for name, value in weights.items()}
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.endswith(("attention.joint.weight", "attention.out.weight")):
            stem, (out, size) = PREFIX + name.removesuffix(".weight"), value.shape
            down = torch.randn(tuning.rank, size, generator=generator) * size**-0.5
            found |= {stem + _DOWN: down, stem + _UP: torch.zeros(out, tuning.rank)}
    return found


def merged(encoder: SentenceEncoder, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `encoder` that training changed, from the tensors of a model; LoRA added in."""
    own = {n.removeprefix(PREFIX): t for n, t in tensors.items() if n.startswith(PREFIX)}
    found = {name: value for name, value in own.items() if not name.endswith((_DOWN, _UP))}
    for name, down in own.items():
        if name.endswith(_DOWN):
            stem = name.removesuffix(_DOWN)
            before = encoder.get_parameter(f"{stem}.weight").detach()
            found[f"{stem}.weight"] = before + _GAIN * own[stem + _UP] @ down
    return found


def without(meta: Meta) -> Meta:
    """The model without the tensors of the backbone, which an encoder of its own will hold."""
    kept = {n: t for n, t in meta.tensors.items() if not n.startswith(PREFIX)}
    return replace(meta, tensors=kept)


# -- vectors while it is trained ----------------------------------------------------------------


class TunedTexts:
    """The items' vectors during a run: those of some items fresh, of all others from before."""

    def __init__(self, top: Top, tuning: Tuning, text: Tensor) -> None:
        """`text` [N, D] are the vectors before training."""
        self.top = top
        self.tuning = tuning
        self.memory = {"text": text.clone(), "age": torch.zeros((), dtype=torch.int64)}
        """What changes from step to step: vectors [N, D], and steps since all were encoded."""

    def to(self, device: torch.device | str) -> TunedTexts:
        """The same on another device."""
        return TunedTexts(self.top.to(device), self.tuning, self.memory["text"].to(device))

    def start(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Tensors to train beside the model's."""
        return start(self.top, self.tuning, generator)

    def weights(self, meta: Meta) -> dict[str, Tensor]:
        """The backbone's weights that training changed, on the CPU."""
        found = merged(self.top.encoder, meta.tensors)
        return {name: value.detach().float().cpu() for name, value in found.items()}

    def encode(self, meta: Meta, rows: Ints) -> Tensor:
        """Vectors [m, D] float32 of some items as the model's backbone reads them."""
        changed = {f"encoder.{n}": t for n, t in merged(self.top.encoder, meta.tensors).items()}
        vectors: Tensor = functional_call(self.top, changed, (rows,))
        return vectors.float()

    @torch.no_grad()
    def refresh(self, meta: Meta) -> Tensor:
        """Encode all items anew: [N, D]."""
        text, length = self.memory["text"], np.diff(self.top.ends, prepend=0)
        order = np.argsort(length, kind="stable")
        for at in range(0, len(order), _AT_ONCE):
            rows = order[at : at + _AT_ONCE]
            text[torch.from_numpy(rows).to(text.device)] = self.encode(meta, rows)
        self.memory["age"].zero_()
        return text

    def step(self, meta: Meta, rows: Tensor, every: int, generator: torch.Generator) -> Tensor:
        """Vectors [U, D] of the rows [U] that a batch needs; a gradient runs to some of them.

        These are drawn evenly, whatever the rows are needed for, so that the gradient is that of
        all but for its size. Were positives fresh more often than negatives, all vectors would be
        moved to where positives score high, and no negative would speak against it. Without checks
        all are encoded anew after `every` steps.
        """
        text, age = self.memory["text"], self.memory["age"]
        if int(age.add_(1)) > every:
            self.refresh(meta)
        place = torch.randperm(len(rows), generator=generator)[: self.tuning.items]
        fresh = self.encode(meta, rows[place].numpy())
        known = text[rows.to(text.device)].index_copy(0, place.to(text.device), fresh)
        text[rows[place].to(text.device)] = fresh.detach()
        return known
