"""What every kind of adapter promises: one suite over all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters import adapter
from adapters.types import Meta, ModelConfig
from stream.user_layout import Layout
from tests.model.adapter_cases import (
    at,
    distance,
    gradients,
    make_block,
    make_meta,
    make_vectors,
    on_block,
)

CASES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in adapter.KINDS),
    ("fast_weight", {"interests": 3, "first_order": True}),
    ("fast_weight", {"decay": False}),
    ("gru", {"interests": 3}),
    ("maml", {"interests": 3, "first_order": True, "proximal": 0.5}),
    ("sasrec", {"interests": 3, "window": 2}),
    ("sasrec_cached", {"interests": 3, "window": 2}),
]


@pytest.fixture(params=CASES, ids=lambda case: " ".join([case[0], *case[1]]))
def meta(request: pytest.FixtureRequest) -> Meta:
    """An untrained model of every kind, with its options."""
    kind, options = request.param
    return make_meta(kind, **options)


@pytest.fixture
def vectors() -> Tensor:
    """Item vectors [ROWS, d]."""
    return make_vectors()


def test_parallel_form_equals_repeated_steps(meta: Meta, vectors: Tensor) -> None:
    """Unrolling 150 events, more than are taken at once, gives what single steps give: 1e-5."""
    block, state = make_block(8, 150), adapter.init(meta, 8)
    whole, interests = adapter.unroll(meta, state, block, vectors)
    assert interests.shape == (8, 150, meta.config.interests, 64)
    for place in range(150):
        state = adapter.step(meta, state, at(block, place), vectors)
        torch.testing.assert_close(
            adapter.read(meta, state), interests[:, place], atol=2e-5, rtol=0
        )
    assert distance(whole, state) < 1e-5


def test_blocks_can_be_cut_anywhere(meta: Meta, vectors: Tensor) -> None:
    """Two blocks in a row give the state of the one block they were cut from."""
    block, start = make_block(8, 20), adapter.init(meta, 8)
    whole, interests = adapter.unroll(meta, start, block, vectors)
    for cut in (1, 7, 19):
        state, _ = adapter.unroll(meta, start, on_block(block, lambda x, c=cut: x[:, :c]), vectors)
        rest = on_block(block, lambda x, c=cut: x[:, c:])
        state, after = adapter.unroll(meta, state, rest, vectors)
        assert distance(whole, state) < 1e-5
        torch.testing.assert_close(after, interests[:, cut:], atol=2e-5, rtol=0)


def test_outer_gradient_of_the_parallel_form_is_that_of_steps(meta: Meta, vectors: Tensor) -> None:
    """Every tensor gets the gradient of repeated steps; it is finite, and not zero."""
    block = make_block(4, 14)
    parallel, steps = (gradients(meta, block, vectors, form) for form in (True, False))
    assert parallel.keys() == steps.keys()
    for name in parallel:
        assert bool(parallel[name].isfinite().all()), name
        torch.testing.assert_close(parallel[name], steps[name], atol=1e-8, rtol=1e-6)
    unused = {k for k in meta.tensors if k not in parallel or not parallel[k].any()}
    options = {"step_scale"} if meta.config.kind in ("gru", "sasrec", "sasrec_cached") else set()
    options |= set() if meta.config.decay else {"adapter.decay_by_days"}
    options |= {"adapter.distance_0"} if meta.config.window == 2 else set()  # sees one place
    assert unused <= options


@pytest.mark.parametrize("places", [1, 6])
def test_masked_places_change_nothing(meta: Meta, vectors: Tensor, places: int) -> None:
    """Users whose places are all masked keep state and interests to the last bit."""
    block, before = make_block(6, places), adapter.init(meta, 6)
    before, _ = adapter.unroll(meta, before, make_block(6, 9, seed=4), vectors)
    block = replace(block, mask=torch.zeros_like(block.mask))
    after, interests = adapter.unroll(meta, before, block, vectors)
    assert all(torch.equal(before[k], after[k]) for k in before)
    torch.testing.assert_close(interests[:, -1], adapter.read(meta, before), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("places", [1, 6])
def test_a_masked_user_among_others_keeps_every_bit(
    meta: Meta, vectors: Tensor, places: int
) -> None:
    """A masked row is left as it is while the others step."""
    before, _ = adapter.unroll(meta, adapter.init(meta, 6), make_block(6, 9, seed=4), vectors)
    block = make_block(6, places)
    mask = torch.ones_like(block.mask)
    mask[2] = False
    after, _ = adapter.unroll(meta, before, replace(block, mask=mask), vectors)
    assert all(torch.equal(before[k][2], after[k][2]) for k in before)
    assert int(after["count"][3]) == int(before["count"][3]) + places


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
    assert all(torch.equal(before[k], after[k]) for k in before.keys() - {"count", "time"})


def test_an_empty_catalogue_is_no_error(meta: Meta) -> None:
    """With no item at all, events are unknown items."""
    block = replace(make_block(2, 3), items=torch.full((2, 3), -1))
    start = adapter.init(meta, 2)
    state, _ = adapter.unroll(meta, start, block, torch.zeros(0, 64))
    assert all(torch.equal(state[k], start[k]) for k in start.keys() - {"count", "time"})


def test_order_of_users_does_not_matter(meta: Meta, vectors: Tensor) -> None:
    """Permuting users permutes states and interests."""
    order = torch.randperm(16, generator=torch.Generator().manual_seed(5))
    block, start = make_block(16, 10), adapter.init(meta, 16)
    state, interests = adapter.unroll(meta, start, block, vectors)
    permuted, moved = adapter.unroll(meta, start, on_block(block, lambda x: x[order]), vectors)
    torch.testing.assert_close(interests[order], moved, atol=1e-5, rtol=1e-5)
    assert distance({k: v[order] for k, v in state.items()}, permuted) < 1e-6


@pytest.mark.parametrize("places", [1, 12])
def test_one_by_one_equals_batched(meta: Meta, vectors: Tensor, places: int) -> None:
    """A user's steps are the same alone and among others."""
    start, _ = adapter.unroll(meta, adapter.init(meta, 9), make_block(9, 5, seed=6), vectors)
    block = make_block(9, places)
    batched, interests = adapter.unroll(meta, start, block, vectors)
    for user in range(9):
        mine = slice(user, user + 1)
        one = {k: v[mine] for k, v in start.items()}
        alone, read = adapter.unroll(meta, one, on_block(block, lambda x, u=mine: x[u]), vectors)
        assert distance({k: v[mine] for k, v in batched.items()}, alone) < 1e-5
        torch.testing.assert_close(interests[mine], read, atol=1e-5, rtol=1e-5)


def test_inference_mode_gives_the_same(meta: Meta, vectors: Tensor) -> None:
    """The worker's mode without autograd computes the same states and interests."""
    block = make_block(4, 12)
    state, interests = adapter.unroll(meta, adapter.init(meta, 4), block, vectors)
    with torch.inference_mode():
        fast, same = adapter.unroll(meta, adapter.init(meta, 4), block, vectors)
        stepped = adapter.step(meta, fast, at(block, 0), vectors)
        assert bool(adapter.read(meta, stepped).isfinite().all())
    assert distance(state, fast) == 0.0
    assert torch.equal(interests, same)


def test_a_dislike_moves_the_user_elsewhere_than_a_like(meta: Meta, vectors: Tensor) -> None:
    """The sign of the evidence reaches the interests."""
    block = replace(make_block(1, 1), items=torch.tensor([[3]]), mask=torch.tensor([[True]]))
    like, dislike = (
        adapter.unroll(
            meta, adapter.init(meta, 1), replace(block, values=torch.tensor([[v]])), vectors
        )[1]
        for v in (2.0, -2.0)
    )
    assert float((like - dislike).abs().max()) > 0.01


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


def test_init_gives_every_user_memory_of_its_own(meta: Meta) -> None:
    """Writing one user's state leaves the others and the model as they were."""
    state, tensors = adapter.init(meta, 2), {k: v.clone() for k, v in meta.tensors.items()}
    untouched = {k: v[1].clone() for k, v in state.items()}
    for value in state.values():
        value[0] += 1
    assert all(torch.equal(state[k][1], untouched[k]) for k in state)
    assert all(torch.equal(meta[k], tensors[k]) for k in tensors)


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


def test_a_record_keeps_the_state(meta: Meta, vectors: Tensor) -> None:
    """A user record takes the fields of every kind and gives them back, rounded to storage."""
    layout = Layout.of(meta.config)
    state, _ = adapter.unroll(meta, adapter.init(meta, 3), make_block(3, 30), vectors)
    records = layout.set_adapter(layout.decode([None] * 3), state)
    again = layout.adapter_state(layout.decode(layout.encode(records)))
    kinds = adapter.fields(meta.config)
    assert all(
        np.array_equal(again[k].to(kinds[k].dtype), state[k].to(kinds[k].dtype)) for k in state
    )
    stepped = adapter.step(meta, again, make_block(3, 1), vectors)
    assert bool(adapter.read(meta, stepped).isfinite().all())


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
