"""Models, events and comparisons for the tests of adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from typing import Any

import torch
from torch import Tensor

from adapters import adapter
from adapters.types import Block, Meta, ModelConfig, State

ROWS = 200


def make_meta(kind: str, **changes: Any) -> Meta:
    """An untrained model whose tensors are not the neutral ones; windows overflow soon."""
    small: dict[str, Any] = {"window": 9, "inner_support": 5}
    config = ModelConfig(kind=kind, actions=("click", "rating"), **{**small, **changes})
    generator = torch.Generator().manual_seed(1)
    tensors = adapter.new_tensors(config, generator)
    moved = {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in tensors.items()}
    return Meta(config, {**moved, "step_scale": torch.tensor(0.9)})


def make_vectors() -> Tensor:
    """Item vectors [ROWS, d]."""
    return torch.randn(ROWS, 64, generator=torch.Generator().manual_seed(2))


def make_block(n: int, t: int, seed: int = 3) -> Block:
    """Events with masked places, unknown items, dislikes and gaps of days."""
    g = torch.Generator().manual_seed(seed)
    return Block(
        items=torch.randint(-1, ROWS, (n, t), generator=g),
        actions=torch.randint(-1, 3, (n, t), generator=g),
        values=torch.randn(n, t, generator=g),
        times=1.3e9 + (torch.rand(n, t, generator=g, dtype=torch.float64) * 1e5).cumsum(1),
        mask=torch.rand(n, t, generator=g) > 0.2,
    )


def on_block(block: Block, change: Callable[[Tensor], Tensor]) -> Block:
    """`change` applied to all columns."""
    return Block(*(change(getattr(block, f.name)) for f in dataclass_fields(block)))


def at(block: Block, place: int) -> Block:
    """The one event at `place`."""
    return on_block(block, lambda x: x[:, place : place + 1])


def double(meta: Meta) -> Meta:
    """The same model in double precision."""
    return Meta(meta.config, {k: v.double() for k, v in meta.tensors.items()})


def distance(a: State, b: State) -> float:
    """Largest difference of any field of two states."""
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


def gradients(meta: Meta, block: Block, vectors: Tensor, parallel: bool) -> dict[str, Tensor]:
    """Of the summed squares of interests after the block, by the parallel form or by steps.

    In double precision, after each of the events; tensors that nothing depends on are left out.
    """
    leaves = {k: v.double().requires_grad_() for k, v in meta.tensors.items()}
    model, loss = Meta(meta.config, leaves), torch.zeros((), dtype=torch.float64)
    state = adapter.init(model, len(block.items))
    if parallel:
        loss = adapter.unroll(model, state, block, vectors.double())[1].square().sum()
    else:
        for place in range(block.items.shape[1]):
            state = adapter.step(model, state, at(block, place), vectors.double())
            loss = loss + adapter.read(model, state).square().sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {k: g for k, g in zip(leaves, found, strict=True) if g is not None}
