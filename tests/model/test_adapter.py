"""The fast-weight adapter: its steps by hand, its gradients, and what they cost."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adapters import adapter, fast_weight
from adapters.layers import context
from adapters.types import Meta, ModelConfig
from tests.model.adapter_cases import at, make_block, make_vectors, on_block


@pytest.fixture(params=[1, 3], ids=["one interest", "three interests"])
def meta(request: pytest.FixtureRequest) -> Meta:
    """An untrained model whose start, decay and step scale are not the neutral ones."""
    config = ModelConfig(actions=("click", "rating"), interests=request.param)
    generator = torch.Generator().manual_seed(1)
    tensors = adapter.new_tensors(config, generator)
    tensors["adapter.start_weight"] = torch.randn(4, 16, 16, generator=generator) * 0.3
    tensors["adapter.decay_by_days"] = torch.full((4,), -0.5)
    tensors["step_scale"] = torch.tensor(0.9)
    return Meta(config, tensors)


@pytest.fixture
def vectors() -> Tensor:
    """Item vectors [ROWS, d]."""
    return make_vectors()


def test_step_is_the_gradient_of_the_inner_loss(meta: Meta, vectors: Tensor) -> None:
    """The step moves the decayed matrix by -b times the finite-difference gradient of its loss."""
    block = replace(make_block(1, 1), items=torch.tensor([[5]]), mask=torch.tensor([[True]]))
    state, _ = adapter.unroll(meta, adapter.init(meta, 1), make_block(1, 10, seed=9), vectors)
    events = fast_weight._events(meta, state, block, vectors)
    latest = context(events.current, events.previous)
    writes = fast_weight._writes(meta, events, latest)
    key, value, size, log_decay = (x[0, 0].double() for x in writes)
    start = meta["adapter.start_weight"].double()
    decayed = start + log_decay.exp()[:, None, None] * (state["weight"][0].double() - start)

    def loss(weight: Tensor) -> Tensor:
        return 0.5 * (torch.einsum("hvp,hp->hv", weight, key) - value).square().sum(1)

    gradient, eps = torch.zeros_like(decayed), 1e-5
    for row in range(decayed.shape[1]):
        for column in range(decayed.shape[2]):
            nudge = torch.zeros_like(decayed)
            nudge[:, row, column] = eps
            gradient[:, row, column] = (loss(decayed + nudge) - loss(decayed - nudge)) / (2 * eps)
    expected = decayed - size[:, None, None] * gradient
    stepped = adapter.step(meta, state, block, vectors)["weight"][0].double()
    torch.testing.assert_close(stepped, expected, atol=1e-6, rtol=0)


def test_outer_gradient_flows_through_every_step(meta: Meta, vectors: Tensor) -> None:
    """The outer gradient of the parallel form is that of repeated steps, step sizes included."""
    names = ("adapter.write", "adapter.start_weight", "adapter.write_bias")
    block = make_block(4, 12)
    gradients = []
    for parallel in (True, False):
        leaves = {k: meta[k].double().clone().requires_grad_() for k in names}
        rest = {k: v.double() for k, v in meta.tensors.items() if k not in names}
        double = Meta(meta.config, {**rest, **leaves})
        state = adapter.init(double, 4)
        if parallel:
            state, _ = adapter.unroll(double, state, block, vectors.double())
        else:
            for place in range(12):
                state = adapter.step(double, state, at(block, place), vectors.double())
        loss = adapter.read(double, state).square().sum()
        gradients.append(torch.autograd.grad(loss, list(leaves.values())))
    for left, right in zip(*gradients, strict=True):
        assert float(left.abs().max()) > 0
        torch.testing.assert_close(left, right, atol=1e-8, rtol=1e-6)


def test_steps_off_leaves_the_matrices_at_their_start(meta: Meta, vectors: Tensor) -> None:
    """With step_scale 0 no history moves W; inputs, count and time still move."""
    off = adapter.steps_off(meta)
    state, _ = adapter.unroll(off, adapter.init(off, 8), make_block(8, 20), vectors)
    torch.testing.assert_close(state["weight"], adapter.init(off, 8)["weight"])
    assert int(state["count"].sum()) > 0
    assert off.config == meta.config


def test_count_is_capped_where_steps_see_it(meta: Meta, vectors: Tensor) -> None:
    """Beyond the cap a step no longer depends on the count, below it does."""
    block = replace(make_block(3, 1), items=torch.full((3, 1), 7), mask=torch.ones(3, 1).bool())
    block = on_block(block, lambda x: x[:1].expand(3, -1))
    start = adapter.init(meta, 3)
    start["time"] += 1.29e9
    start["count"] = torch.tensor([5, 32, 4_000], dtype=torch.int32)
    weight = adapter.step(meta, start, block, vectors)["weight"]
    assert torch.equal(weight[1], weight[2])
    assert float((weight[0] - weight[1]).abs().max()) > 1e-3


def test_a_user_takes_little_room(meta: Meta) -> None:
    """The state of a user is at most 2,500 bytes."""
    layout = adapter.fields(meta.config)
    assert sum(f.dtype.itemsize * torch.Size(f.shape).numel() for f in layout.values()) <= 2_500


def test_batching_pays(meta: Meta, vectors: Tensor) -> None:
    """A batched step of 256 users is at least 20 times cheaper a user than one by one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        batched, single = (_seconds_a_user(meta, vectors, n) for n in (256, 1))
    finally:
        torch.set_num_threads(threads)
    assert single / batched > 20


def _seconds_a_user(meta: Meta, vectors: Tensor, n: int) -> float:
    """The best of several rounds, so that a busy machine does not decide."""
    block, state, best = make_block(n, 1), adapter.init(meta, n), float("inf")
    with torch.inference_mode():
        for _ in range(20):
            start = time.perf_counter()
            adapter.step(meta, state, block, vectors)
            best = min(best, time.perf_counter() - start)
    return best / n
