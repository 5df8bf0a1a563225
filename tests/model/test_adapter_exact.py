"""Every kind of adapter against finite differences, in half precision, and on every device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters import adapter
from adapters.types import Block, Meta
from tests.model.adapter_cases import (
    at,
    distance,
    double,
    gradients,
    make_block,
    make_meta,
    make_vectors,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

CASES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in adapter.KINDS),
    ("fast_weight", {"interests": 3, "decay": False}),
    ("maml", {"interests": 3, "proximal": 0.5}),
]


@pytest.fixture(params=CASES, ids=lambda case: " ".join([case[0], *case[1]]))
def meta(request: pytest.FixtureRequest) -> Meta:
    """An untrained model of every kind, second order."""
    kind, options = request.param
    return make_meta(kind, **options)


def told(meta: Meta, block: Block, vectors: Tensor) -> float:
    """Summed squares of interests after each event, by single steps: what `gradients` derives."""
    state, loss = adapter.init(meta, len(block.items)), 0.0
    for place in range(block.items.shape[1]):
        state = adapter.step(meta, state, at(block, place), vectors)
        loss += float(adapter.read(meta, state).square().sum())
    return loss


def test_outer_gradient_is_that_of_finite_differences(meta: Meta) -> None:
    """The derivative through all inner steps, of every tensor along a random direction."""
    block, vectors, exact = make_block(3, 9), make_vectors().double(), double(meta)
    found = gradients(meta, block, vectors, parallel=True)
    generator = torch.Generator().manual_seed(6)
    for name, gradient in found.items():
        value = exact[name]
        way = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        way, eps = way / way.norm(), 1e-5
        ends = [
            told(Meta(meta.config, {**exact.tensors, name: value + s * way}), block, vectors)
            for s in (eps, -eps)
        ]
        expected = (ends[0] - ends[1]) / (2 * eps)
        scale = max(float(gradient.norm()), 1.0)
        assert abs(float((gradient * way).sum()) - expected) < 1e-5 * scale, name


def test_half_precision_does_not_add_up(meta: Meta) -> None:
    """200 events, rounded to storage after each: interests stay within .3% and hardly drift."""
    layout, block, vectors = adapter.fields(meta.config), make_block(8, 200), make_vectors()
    exact = rounded = adapter.init(meta, 8)
    apart = torch.zeros(200)
    for place in range(200):
        exact = adapter.step(meta, exact, at(block, place), vectors)
        rounded = adapter.step(meta, rounded, at(block, place), vectors)
        rounded = {k: v.to(layout[k].dtype).to(v.dtype) for k, v in rounded.items()}
        left, right = adapter.read(meta, exact), adapter.read(meta, rounded)
        apart[place] = (left - right).norm() / left.norm()
    assert float(apart.max()) < 0.003
    assert float(apart[150:].mean()) < 3 * float(apart[:50].mean())


@pytest.mark.parametrize("device", DEVICES)
def test_devices_agree_with_double_precision(meta: Meta, device: str) -> None:
    """A block, a step and what is read, in single precision on each device there is."""
    block, vectors = make_block(8, 40), make_vectors()
    one = replace(make_block(8, 1, seed=8), times=block.times[:, -1:] + 60.0)

    def run(model: Meta, where: str, items: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        state = adapter.init(model, 8)
        state, interests = adapter.unroll(model, state, block.to(where), items)
        state = adapter.step(model, state, one.to(where), items)
        every = torch.cat([interests, adapter.read(model, state)[:, None]], dim=1)
        return {k: v.cpu() for k, v in state.items()}, every.cpu().double()

    expected = run(double(meta), "cpu", vectors.double())
    found = run(meta.to(device), device, vectors.to(device))
    assert distance(found[0], expected[0]) < 1e-4
    torch.testing.assert_close(found[1], expected[1], atol=2e-4, rtol=0)
