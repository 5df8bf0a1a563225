"""The adapter: steps by hand, parallel form, batching, masks, refusal and storage."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adapters import adapter, fast_weight
from adapters.types import Block, Meta, ModelConfig, State

ROWS = 200


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


def distance(a: State, b: State) -> float:
    """Largest difference of any field of two states."""
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


def test_parallel_form_equals_repeated_steps(meta: Meta, vectors: Tensor) -> None:
    """Unrolling 150 events, more than are solved at once, gives what single steps give: 1e-5."""
    block, state = make_block(16, 150), adapter.init(meta, 16)
    whole, interests = adapter.unroll(meta, state, block, vectors)
    for place in range(150):
        state = adapter.step(meta, state, at(block, place), vectors)
        torch.testing.assert_close(
            adapter.read(meta, state), interests[:, place], atol=1e-5, rtol=0
        )
    assert distance(whole, state) < 1e-5


def test_blocks_can_be_cut_anywhere(meta: Meta, vectors: Tensor) -> None:
    """Two blocks in a row give the state of the one block they were cut from."""
    block, start = make_block(8, 20), adapter.init(meta, 8)
    whole, _ = adapter.unroll(meta, start, block, vectors)
    for cut in (1, 7, 19):
        state, _ = adapter.unroll(meta, start, on_block(block, lambda x, c=cut: x[:, :c]), vectors)
        state, _ = adapter.unroll(meta, state, on_block(block, lambda x, c=cut: x[:, c:]), vectors)
        assert distance(whole, state) < 1e-5


def test_step_is_the_gradient_of_the_inner_loss(meta: Meta, vectors: Tensor) -> None:
    """The step moves the decayed matrix by -b times the finite-difference gradient of its loss."""
    block = replace(make_block(1, 1), items=torch.tensor([[5]]), mask=torch.tensor([[True]]))
    state, _ = adapter.unroll(meta, adapter.init(meta, 1), make_block(1, 10, seed=9), vectors)
    events = fast_weight._events(meta, state, block, vectors)
    key, value, size, log_decay = (x[0, 0].double() for x in fast_weight._writes(meta, events))
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


@pytest.mark.parametrize("places", [1, 6])
def test_masked_places_change_nothing(meta: Meta, vectors: Tensor, places: int) -> None:
    """Users whose places are all masked keep state and interests to the last bit."""
    block, before = make_block(6, places), adapter.init(meta, 6)
    before, _ = adapter.unroll(meta, before, make_block(6, 9, seed=4), vectors)
    block = replace(block, mask=torch.zeros_like(block.mask))
    after, interests = adapter.unroll(meta, before, block, vectors)
    assert all(torch.equal(before[k], after[k]) for k in before)
    torch.testing.assert_close(interests[:, -1], adapter.read(meta, before), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("places", [1, 6])
def test_unknown_items_change_count_and_time_only(meta: Meta, vectors: Tensor, places: int) -> None:
    """Row -1 moves count and time, and nothing that is read."""
    before, _ = adapter.unroll(meta, adapter.init(meta, 6), make_block(6, 9, seed=4), vectors)
    block = make_block(6, places)
    block = replace(
        block,
        items=torch.full_like(block.items, -1),
        mask=torch.ones_like(block.mask),
        times=block.times + 1e7,
    )
    after, _ = adapter.unroll(meta, before, block, vectors)
    assert torch.equal(after["count"], before["count"] + places)
    assert torch.equal(after["time"], block.times[:, -1])
    assert all(torch.equal(before[k], after[k]) for k in ("weight", "last"))


def test_an_empty_catalogue_is_no_error(meta: Meta) -> None:
    """With no item at all, events are unknown items."""
    block = replace(make_block(2, 3), items=torch.full((2, 3), -1))
    state, _ = adapter.unroll(meta, adapter.init(meta, 2), block, torch.zeros(0, 64))
    assert torch.equal(state["weight"], adapter.init(meta, 2)["weight"])


def test_order_of_users_does_not_matter(meta: Meta, vectors: Tensor) -> None:
    """Permuting users permutes states and interests."""
    block, order = (
        make_block(16, 10),
        torch.randperm(16, generator=torch.Generator().manual_seed(5)),
    )
    start = adapter.init(meta, 16)
    state, interests = adapter.unroll(meta, start, block, vectors)
    permuted, moved = adapter.unroll(meta, start, on_block(block, lambda x: x[order]), vectors)
    torch.testing.assert_close(interests[order], moved, atol=1e-6, rtol=1e-5)
    assert distance({k: v[order] for k, v in state.items()}, permuted) < 1e-6


def test_one_by_one_equals_batched(meta: Meta, vectors: Tensor) -> None:
    """A user's step is the same alone and among others."""
    block, start = make_block(12, 1), adapter.init(meta, 12)
    batched = adapter.step(meta, start, block, vectors)
    for user in range(12):
        one = {k: v[user : user + 1] for k, v in start.items()}
        alone = adapter.step(meta, one, on_block(block, lambda x, u=user: x[u : u + 1]), vectors)
        assert distance({k: v[user : user + 1] for k, v in batched.items()}, alone) < 1e-6


def test_steps_off_leaves_the_matrices_at_their_start(meta: Meta, vectors: Tensor) -> None:
    """With step_scale 0 no history moves W; inputs, count and time still move."""
    off = adapter.steps_off(meta)
    state, _ = adapter.unroll(off, adapter.init(off, 8), make_block(8, 20), vectors)
    torch.testing.assert_close(state["weight"], adapter.init(off, 8)["weight"])
    assert int(state["count"].sum()) > 0
    assert off.config == meta.config


def test_a_dislike_moves_the_user_elsewhere_than_a_like(meta: Meta, vectors: Tensor) -> None:
    """The sign of the evidence reaches W and the interests."""
    block = replace(make_block(1, 1), items=torch.tensor([[3]]), mask=torch.tensor([[True]]))
    states = [
        adapter.step(
            meta, adapter.init(meta, 1), replace(block, values=torch.tensor([[v]])), vectors
        )
        for v in (2.0, -2.0)
    ]
    assert float((states[0]["weight"] - states[1]["weight"]).abs().max()) > 0.01
    assert float((adapter.read(meta, states[0]) - adapter.read(meta, states[1])).abs().max()) > 0.01


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


def test_old_and_new_times_are_safe(meta: Meta, vectors: Tensor) -> None:
    """An event older than the last one counts as no gap and never turns time back."""
    block = make_block(4, 2)
    times = torch.tensor([[2e9, 1e9]], dtype=torch.float64).expand(4, 2)
    block = replace(block, mask=torch.ones(4, 2).bool(), times=times)
    state, interests = adapter.unroll(meta, adapter.init(meta, 4), block, vectors)
    assert torch.equal(state["time"], torch.full((4,), 2e9, dtype=torch.float64))
    assert bool(interests.isfinite().all())


def test_fields_describe_what_init_returns(meta: Meta) -> None:
    """Every field of the storage layout is in the state with its shape, and nothing else."""
    layout, state = adapter.fields(meta.config), adapter.init(meta, 5)
    assert layout.keys() == state.keys()
    assert all(state[k].shape == (5, *layout[k].shape) for k in layout)
    assert sum(f.dtype.itemsize * torch.Size(f.shape).numel() for f in layout.values()) <= 2_500


def test_init_gives_every_user_memory_of_its_own(meta: Meta) -> None:
    """Writing one user's state leaves the others and the model as they were."""
    state = adapter.init(meta, 2)
    state["weight"][0] += 1
    torch.testing.assert_close(state["weight"][1], meta["adapter.start_weight"])


def test_an_empty_profile_is_no_profile(meta: Meta, vectors: Tensor) -> None:
    """A row of zeros starts like no profile; a real one moves the first list."""
    plain = adapter.read(meta, adapter.init(meta, 2, None))
    profile = torch.stack([torch.zeros(64), vectors[0]])
    with_profile = adapter.read(meta, adapter.init(meta, 2, profile))
    torch.testing.assert_close(with_profile[0], plain[0])
    assert float((with_profile[1] - plain[1]).abs().max()) > 0.01


def test_half_precision_storage_costs_little(meta: Meta, vectors: Tensor) -> None:
    """Rounding the state to its storage type after every event keeps interests within 2%."""
    layout, block = adapter.fields(meta.config), make_block(16, 40)
    exact = rounded = adapter.init(meta, 16)
    for place in range(40):
        exact = adapter.step(meta, exact, at(block, place), vectors)
        rounded = adapter.step(meta, rounded, at(block, place), vectors)
        rounded = {k: v.to(layout[k].dtype) for k, v in rounded.items()}
    left, right = adapter.read(meta, exact), adapter.read(meta, rounded)
    assert float((left - right).norm() / left.norm()) < 0.02


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_bad_step_is_refused_for_that_user_alone(meta: Meta, vectors: Tensor, bad: float) -> None:
    """A value that blows up leaves this user's state as it was, and others step as usual."""
    block = replace(make_block(4, 3), items=torch.ones(4, 3).long(), mask=torch.ones(4, 3).bool())
    old, values = adapter.init(meta, 4), block.values.clone()
    values[2] = bad
    good, _ = adapter.unroll(meta, old, block, vectors)
    new, _ = adapter.unroll(meta, old, replace(block, values=values), vectors)
    assert adapter.refused(old, new).tolist() == [False, False, True, False]
    kept, flags = adapter.guard(old, new)
    assert flags.tolist() == [False, False, True, False]
    assert all(torch.equal(kept[k][2], old[k][2]) for k in old)
    assert distance({k: v[:2] for k, v in kept.items()}, {k: v[:2] for k, v in good.items()}) < 1e-6


def test_a_step_takes_exactly_one_event(meta: Meta, vectors: Tensor) -> None:
    """`step` refuses longer blocks by name."""
    with pytest.raises(ValueError, match="one event"):
        adapter.step(meta, adapter.init(meta, 1), make_block(1, 2), vectors)


def test_an_unknown_kind_names_the_known_ones() -> None:
    """A kind nobody registered is an error that lists what there is."""
    with pytest.raises(ValueError, match="fast_weight"):
        adapter.fields(ModelConfig(kind="slow"))


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
