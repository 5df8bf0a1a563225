"""Smaller encoders: layers, heads and inner units taken out, then taught what the whole one says.

Heads and units are scored by the size of what they add to the stream of a token (activations
times weights, as Sun et al., "A Simple and Effective Pruning Approach for Large Language Models",
2023, score single weights). Layers go one after the other, always the one without which vectors
change least. Recovery is distillation: the pruned encoder learns the whole one's vectors of the
items' texts (Sanh et al., "DistilBERT", 2019), until texts that were held out gain nothing more.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from adapters import adamw, backbone, tokens
from adapters.backbone import Attention, Backbone, Layer
from adapters.tokens import TokenBatch

Vectors = NDArray[np.float32]
Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is left: numbers of layers and of heads a layer, None = all."""

    layers: int | None = None
    heads: int | None = None  # inner units shrink in the same proportion


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How a pruned encoder is taught."""

    budget_s: float = 180.0  # at most
    epochs: int = 8  # at most
    batch: int = 64
    learning_rate: float = 5e-4  # at the start; a cosine takes it to zero
    weight_decay: float = 0.01
    held_out: float = 0.1  # share of the texts, at most 512 of them
    patience: int = 2  # epochs without anything better
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """A taught encoder, and the mean cosine of held-out texts' vectors before and after."""

    bert: Backbone
    before: float
    after: float
    epochs: int


def shrink(bert: Backbone, shape: Shape, texts: Sequence[str]) -> Backbone:
    """A copy with what `shape` leaves; `texts` say what matters. Its `sha` is the whole one's.

    Raises `ValueError` where `shape` asks for more than there is.
    """
    module = copy.deepcopy(bert.module)
    _check(module.layers, shape)
    small = replace(bert, module=module)
    batches = list(tokens.batches(bert.tokenizer, texts, 32))
    if shape.layers is not None:
        _drop_layers(small, shape.layers, batches)
    if shape.heads is not None:
        _drop_heads(small, shape.heads, batches)
    return small


def recover(
    bert: Backbone,
    texts: Sequence[str],
    wanted: Vectors,
    recovery: Recovery | None = None,
    progress: Progress = lambda share, note: None,
) -> Recovered:
    """Teach a pruned encoder the vectors `wanted` [N, D] of `texts`; `bert` itself is not changed.

    The table of words stays as it is: few of its rows are met, and it is most of the parameters.
    """
    how = recovery or Recovery()
    student = replace(bert, module=copy.deepcopy(bert.module))
    lesson = _Lesson.of(student, texts, wanted, how)
    best = before = lesson.score(student)
    kept, waited, epoch, began = _weights(student), 0, 0, time.monotonic()
    while waited < how.patience and epoch < how.epochs and _left(began, how) > 0:
        _epoch(student, lesson, how, epoch, began, progress)
        epoch, score = epoch + 1, lesson.score(student)
        waited = 0 if score > best else waited + 1
        if score > best:
            best, kept = score, _weights(student)
    student.module.load_state_dict(kept)
    return Recovered(bert=student, before=before, after=best, epochs=epoch)


# -- pruning ------------------------------------------------------------------------------------


def _check(layers: nn.ModuleList, shape: Shape) -> None:
    heads = min(_layer(each).attention.heads for each in layers)
    if shape.layers is not None and not 1 <= shape.layers <= len(layers):
        raise ValueError(f"{shape.layers} layers of {len(layers)}")
    if shape.heads is not None and not 1 <= shape.heads <= heads:
        raise ValueError(f"{shape.heads} heads of {heads}")


@torch.inference_mode()
def _vectors(bert: Backbone, batches: Sequence[TokenBatch]) -> Tensor:
    parts = [_run(bert, batch) for batch in batches]
    return functional.normalize(torch.cat(parts), dim=-1)


def _run(bert: Backbone, batch: TokenBatch) -> Tensor:
    """Vectors [b, D] of a batch, in its order."""
    out: Tensor = bert.module(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))
    return out


def _drop_layers(bert: Backbone, left: int, batches: Sequence[TokenBatch]) -> None:
    wanted = _vectors(bert, batches)
    while len(bert.module.layers) > left:
        layers = list(bert.module.layers)
        scores = []
        for place in range(len(layers)):
            bert.module.layers = nn.ModuleList(layers[:place] + layers[place + 1 :])
            scores.append(float((_vectors(bert, batches) * wanted).sum(1).mean()))
        worst = int(np.argmax(scores))
        bert.module.layers = nn.ModuleList(layers[:worst] + layers[worst + 1 :])


def _drop_heads(bert: Backbone, left: int, batches: Sequence[TokenBatch]) -> None:
    energies = _energies(bert, batches)
    for place, each in enumerate(bert.module.layers):
        layer = _layer(each)
        mixed, inner = energies[f"{place}.out"], energies[f"{place}.down"]
        units = max(1, round(len(inner) * left / layer.attention.heads))
        _keep_heads(layer.attention, mixed, left)
        _keep_units(layer, _best(inner * _columns(layer.down), units))


@torch.inference_mode()
def _energies(bert: Backbone, batches: Sequence[TokenBatch]) -> dict[str, Tensor]:
    """Sums of squares of what enters the output maps of each layer: heads' outputs, inner units."""
    sums: dict[str, Tensor] = {}
    hooks = []
    for place, each in enumerate(bert.module.layers):
        layer = _layer(each)
        for name, part in (("out", layer.attention.out), ("down", layer.down)):
            hooks.append(part.register_forward_pre_hook(_adding(sums, f"{place}.{name}")))
    try:
        for batch in batches:
            _run(bert, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def _adding(sums: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        energy = inputs[0].square().sum((0, 1))
        sums[name] = sums[name] + energy if name in sums else energy

    return hook


def _keep_heads(attention: Attention, energy: Tensor, left: int) -> None:
    """Keep the heads that add most; `energy` [D] is of what they put out."""
    own = (energy * _columns(attention.out)).view(attention.heads, -1)  # [h, e]
    width, size = attention.heads * own.shape[1], own.shape[1]
    heads = _best(own.sum(1), left)
    columns = (heads[:, None] * size + torch.arange(size)).flatten()
    rows = torch.cat([columns + part * width for part in range(3)])  # query, key, value
    attention.joint = _linear(attention.joint.weight[rows], attention.joint.bias[rows])
    attention.out = _linear(attention.out.weight[:, columns], attention.out.bias)
    attention.heads = left


def _keep_units(layer: Layer, units: Tensor) -> None:
    layer.up = _linear(layer.up.weight[units], layer.up.bias[units])
    layer.down = _linear(layer.down.weight[:, units], layer.down.bias)


def _columns(linear: nn.Linear) -> Tensor:
    """The squared size [inputs] of each input's weights."""
    return linear.weight.detach().square().sum(0)


def _best(scores: Tensor, count: int) -> Tensor:
    return scores.topk(count).indices.sort().values


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        made.weight.copy_(weight)
        made.bias.copy_(bias)
    return made


def _layer(module: nn.Module) -> Layer:
    return cast("Layer", module)  # a ModuleList forgets what it holds


# -- recovery -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Lesson:
    """Batches to learn from and to be judged by, with the vectors they should have."""

    train: tuple[tuple[TokenBatch, Tensor], ...]
    held_out: tuple[tuple[TokenBatch, Tensor], ...]
    group: adamw.Group

    @classmethod
    def of(cls, bert: Backbone, texts: Sequence[str], wanted: Vectors, how: Recovery) -> _Lesson:
        order = np.random.default_rng(how.seed).permutation(len(texts))
        out = min(512, max(1, int(len(texts) * how.held_out)))
        parts = [tuple(_pairs(bert, texts, wanted, p, how)) for p in (order[out:], order[:out])]
        bert.module.requires_grad_(True)
        bert.module.words.requires_grad_(False)
        leaves = [leaf for leaf in bert.module.parameters() if leaf.requires_grad]
        return cls(parts[0], parts[1], adamw.group(leaves, 1.0, how.weight_decay))

    def score(self, bert: Backbone) -> float:
        """Mean cosine of held-out texts."""
        found = _vectors(bert, [batch for batch, _ in self.held_out])
        wanted = functional.normalize(torch.cat([w for _, w in self.held_out]), dim=-1)
        return float((found * wanted).sum(1).mean())


def _pairs(
    bert: Backbone, texts: Sequence[str], wanted: Vectors, rows: NDArray[np.int64], how: Recovery
) -> Iterator[tuple[TokenBatch, Tensor]]:
    chosen = [texts[i] for i in rows]
    for batch in tokens.batches(bert.tokenizer, chosen, how.batch):
        yield batch, torch.from_numpy(wanted[rows[batch.places]])


def _epoch(
    bert: Backbone, lesson: _Lesson, how: Recovery, epoch: int, began: float, progress: Progress
) -> None:
    total = len(lesson.train)
    order = np.random.default_rng((how.seed, epoch)).permutation(total)
    for step, place in enumerate(order.tolist()):
        batch, wanted = lesson.train[place]
        loss = (_run(bert, batch) - wanted).square().sum(1).mean()
        for leaf in lesson.group.leaves:
            leaf.grad = None
        loss.backward()
        of_time = 1 - _left(began, how) / how.budget_s
        share = min(max((epoch + step / total) / how.epochs, of_time), 1.0)
        adamw.descend([lesson.group], how.learning_rate * (1 + np.cos(np.pi * share)) / 2)
        progress(share, f"loss {loss.item():.4f}")
        if share >= 1:
            return


def _left(began: float, how: Recovery) -> float:
    return how.budget_s - (time.monotonic() - began)


def _weights(bert: Backbone) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in bert.module.state_dict().items()}


def vectors_of(bert: Backbone, texts: Sequence[str]) -> Vectors:
    """Vectors [N, D] of the whole encoder, to be learned."""
    return np.asarray(backbone.encode(bert, texts).numpy())
