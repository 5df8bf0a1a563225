"""What is special about each kind of adapter, held to arithmetic written in another way."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from adapters import adapter, fast_weight, maml, sasrec
from adapters.event_inputs import Events, read_events
from adapters.layers import context, rms
from adapters.types import Block, Meta, ModelConfig
from tests.model.adapter_cases import (
    at,
    distance,
    double,
    gradients,
    make_block,
    make_meta,
    make_vectors,
)

KINDS = sorted(adapter.KINDS)


def all_valid(block: Block) -> Block:
    """The same events, all of known items."""
    return replace(block, items=block.items.clamp(min=0), mask=torch.ones_like(block.mask))


# -- fast_weight ----------------------------------------------------------------------------------


def writes(meta: Meta, events: Events) -> fast_weight._Writes:
    """What these events write."""
    return fast_weight._writes(meta, events, context(events.current, events.previous))


def test_first_order_leaves_values_and_changes_gradients() -> None:
    """`first_order` gives the same interests, and another outer gradient of what is written."""
    second, first = (make_meta("fast_weight", first_order=order) for order in (False, True))
    block, vectors = make_block(4, 20), make_vectors()
    left, right = (adapter.unroll(m, adapter.init(m, 4), block, vectors) for m in (second, first))
    torch.testing.assert_close(left[1], right[1], atol=1e-5, rtol=0)
    assert distance(left[0], right[0]) < 1e-5
    full, cut = (gradients(m, block, vectors, True)["adapter.write"] for m in (second, first))
    assert float((full - cut).norm() / full.norm()) > 0.01


def test_first_order_is_the_step_with_a_constant_residual() -> None:
    """Its gradient is that of steps written by hand with W' k detached."""
    meta, block = double(make_meta("fast_weight", first_order=True)), all_valid(make_block(3, 8))
    vectors, names = make_vectors().double(), ("adapter.write", "adapter.start_weight")
    found = []
    for parallel in (True, False):
        leaves = {k: meta[k].clone().requires_grad_() for k in names}
        model = Meta(meta.config, {**meta.tensors, **leaves})
        start = adapter.init(model, 3)
        if parallel:
            weight = adapter.unroll(model, start, block, vectors)[0]["weight"]
        else:
            weight = start["weight"]
            events = fast_weight._events(model, start, block, vectors)
            for key, value, size, decay in zip(
                *(x.unbind(1) for x in writes(model, events)), strict=True
            ):
                origin = model["adapter.start_weight"]
                weight = origin + decay.exp()[..., None, None] * (weight - origin)
                known = torch.einsum("nhvp,nhp->nhv", weight, key).detach()
                error = size[..., None] * (known - value)
                weight = weight - torch.einsum("nhv,nhp->nhvp", error, key)
        found.append(torch.autograd.grad(weight.square().sum(), list(leaves.values())))
    for left, right in zip(*found, strict=True):
        assert float(left.abs().max()) > 0
        torch.testing.assert_close(left, right, atol=1e-9, rtol=1e-6)


def test_without_decay_a_step_writes_at_its_key_alone() -> None:
    """With `decay` off a step leaves what W recalls for all keys at right angles to its own."""
    meta, vectors = make_meta("fast_weight", decay=False), make_vectors()
    state, _ = adapter.unroll(meta, adapter.init(meta, 2), make_block(2, 9), vectors)
    block = all_valid(make_block(2, 1, seed=8))
    key = writes(meta, fast_weight._events(meta, state, block, vectors)).key[:, 0]
    moved = adapter.step(meta, state, block, vectors)["weight"] - state["weight"]
    across = moved - torch.einsum("nhvp,nhp,nhq->nhvq", moved, key, key)
    assert float(moved.abs().max()) > 0.01
    assert float(across.abs().max()) < 1e-5


# -- gru ------------------------------------------------------------------------------------------


def test_gru_is_torchs_cell() -> None:
    """Hidden units follow `torch.nn.GRUCell` with the same weights over the event inputs."""
    meta, block, vectors = make_meta("gru"), all_valid(make_block(4, 12)), make_vectors()
    cell = torch.nn.GRUCell(64, 64)
    names = ("input_weight", "hidden_weight", "input_bias", "hidden_bias")
    for parameter, name in zip(cell.parameters(), names, strict=True):
        parameter.data = meta[f"adapter.{name}"]
    state = adapter.init(meta, 4)
    inputs = read_events(meta, state, state["last"], block, vectors).current
    hidden = state["hidden"]
    for place in range(12):
        hidden = cell(rms(inputs[:, place]), hidden)
    after, _ = adapter.unroll(meta, state, block, vectors)
    torch.testing.assert_close(after["hidden"], hidden, atol=1e-6, rtol=1e-5)


# -- sasrec ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [2, 3, 9, 64])
def test_sasrec_sees_its_window_and_nothing_else(window: int) -> None:
    """Interests depend on the oldest input of the window, and on none before it."""
    meta, block = make_meta("sasrec", window=window), all_valid(make_block(3, window + 6))
    vectors = make_vectors()
    _, before = adapter.unroll(meta, adapter.init(meta, 3), block, vectors)
    oldest = block.items.shape[1] - window
    for place, seen in ((oldest, True), (oldest - 1, False)):
        values = block.values.clone()
        values[:, place] += 1.0
        changed = replace(block, values=values)
        _, after = adapter.unroll(meta, adapter.init(meta, 3), changed, vectors)
        moved = (after - before)[:, -1].abs().amax()
        assert float(moved) > 1e-7 if seen else float(moved) < 1e-9


def test_sasrec_of_the_default_window_runs_beyond_it() -> None:
    """150 events through a window of 64 give at the end what encoding the last 64 gives."""
    meta, block, vectors = make_meta("sasrec", window=64), make_block(3, 150), make_vectors()
    state, interests = adapter.unroll(meta, adapter.init(meta, 3), block, vectors)
    assert state["length"].tolist() == [64] * 3
    torch.testing.assert_close(adapter.read(meta, state), interests[:, -1], atol=2e-5, rtol=0)


def test_sasrec_encodes_no_more_than_the_second_layer_sees() -> None:
    """The first layer at all places gives what it gives at those alone that are looked at."""
    meta, vectors = make_meta("sasrec", window=11), make_vectors()
    for events in (2, 6, 30):  # windows nearly empty, half full, full
        state, _ = adapter.unroll(meta, adapter.init(meta, 4), make_block(4, events), vectors)
        torch.testing.assert_close(sasrec.encode(meta, state, 11), adapter.read(meta, state))


def test_sasrec_attends_as_textbooks_say() -> None:
    """One layer is softmax attention by head over earlier places, and a feed-forward part."""
    meta = make_meta("sasrec", window=20)
    x = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(4))
    bias, weight = meta["adapter.distance_0"], meta["adapter.attend_0"]
    normed = x / x.square().mean(-1, keepdim=True).sqrt()
    query, key, value = (normed @ part.T for part in weight.split(64))
    expected = torch.zeros_like(x)
    for user in range(2):
        for place in range(7):
            heads = []
            for head in range(2):
                own = slice(32 * head, 32 * head + 32)
                scores = key[user, : place + 1, own] @ query[user, place, own] / math.sqrt(32)
                scores = scores + bias[head, : place + 1].flip(0)
                heads.append(scores.softmax(0) @ value[user, : place + 1, own])
            here = x[user, place] + meta["adapter.merge_0"] @ torch.cat(heads)
            inner = functional.silu(meta["adapter.expand_0"] @ rms(here))
            expected[user, place] = here + meta["adapter.contract_0"] @ inner
    torch.testing.assert_close(sasrec.layer(meta, 0, x, 7), expected, atol=1e-5, rtol=1e-4)


def test_a_sliding_window_is_no_blow_up() -> None:
    """A block that replaces the whole window passes the trust region, which counts by place."""
    meta, vectors = make_meta("sasrec", window=64), 5 * make_vectors()
    meta.tensors["adapter.item_scale"] *= 2.0
    old, _ = adapter.unroll(meta, adapter.init(meta, 2), make_block(2, 90), vectors)
    new, _ = adapter.unroll(meta, old, make_block(2, 90, seed=8), vectors)
    assert float((new["inputs"] - old["inputs"]).flatten(1).norm(dim=1).min()) > 100.0
    assert not bool(adapter.refused(old, new).any())


@pytest.mark.parametrize("window", [2, 3, 9, 64])
def test_cached_sasrec_is_sasrec(window: int) -> None:
    """Kept keys and values give what encoding the window anew gives, masked places and all."""
    plain = make_meta("sasrec", window=window, interests=2)
    cached = replace(plain, config=replace(plain.config, kind="sasrec_cached"))
    block, vectors = make_block(5, window + 30), make_vectors()
    profile = torch.stack([vectors[i] * (i > 0) for i in range(5)])
    one, other = (adapter.init(m, 5, profile) for m in (plain, cached))
    torch.testing.assert_close(adapter.read(plain, one), adapter.read(cached, other))
    for place in range(window + 30):
        one, other = (
            adapter.step(m, s, at(block, place), vectors)
            for m, s in ((plain, one), (cached, other))
        )
        left, right = adapter.read(plain, one), adapter.read(cached, other)
        torch.testing.assert_close(left, right, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sasrec", "maml"])
def test_one_event_moves_a_window_as_a_block_does(kind: str) -> None:
    """A step gives the very window that the way for blocks gives, half empty or full."""
    meta, vectors = make_meta(kind), make_vectors()
    state = adapter.init(meta, 6)
    for place in range(14):
        block = at(make_block(6, 14), place)
        module = {"sasrec": sasrec, "maml": maml}[kind]
        blockwise, *_ = module._append(meta, state, block, vectors)
        state = adapter.step(meta, state, block, vectors)
        assert state.keys() == blockwise.keys()
        assert all(torch.equal(state[k], blockwise[k]) for k in state)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"window": 1}, "window"), ({"dim": 9}, "dim"), ({"inner_support": 1}, "inner_support")],
)
def test_impossible_sizes_are_refused_by_name(options: dict[str, int], name: str) -> None:
    """Sizes that cannot work are errors that name the field."""
    kind = "maml" if name == "inner_support" else "sasrec"
    with pytest.raises(ValueError, match=name):
        adapter.fields(replace(ModelConfig(kind=kind), **options))  # type: ignore[arg-type]


# -- maml -----------------------------------------------------------------------------------------


def inner_loss(vector: Tensor, items: Tensor, weight: Tensor, prototypes: Tensor) -> Tensor:
    """The inner loss of `adapters.maml` summed over vectors [n, K, d], as its docstring has it."""
    scale = math.sqrt(vector.shape[-1])
    other = torch.logsumexp(torch.einsum("nkd,md->nkm", vector, prototypes) / scale, -1)
    margin = torch.einsum("nkd,nsd->nks", vector, items) / scale - other[..., None]
    signed = weight.sign()[:, None] * margin
    each = weight.abs()[:, None] * (1 + (-signed).exp()).log()
    return (scale * each.sum(-1) / (1 + weight.abs().sum(-1, keepdim=True))).sum()


def support(places: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Items [3, S, 8], weights of both signs and zero [3, S], and prototypes [5, 8]."""
    g = torch.Generator().manual_seed(7)
    items, weight, prototypes = (
        torch.randn(*shape, generator=g, dtype=torch.float64)
        for shape in ((3, places, 8), (3, places), (5, 8))
    )
    weight[:, 2] = 0.0
    return items, weight, prototypes


def test_maml_gradient_is_that_of_autograd() -> None:
    """The gradient in closed form is the derivative of the inner loss."""
    items, weight, prototypes = support()
    vector = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    vector.requires_grad_()
    loss = inner_loss(vector, items, weight, prototypes)
    (expected,) = torch.autograd.grad(loss, vector)
    found = maml._gradient(vector, items, weight, prototypes)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


def fitted(meta: Meta, **options: object) -> Tensor:
    """Vectors of the model with other options on random support sets: [4, K, d]."""
    g = torch.Generator().manual_seed(9)
    items, weight = torch.randn(4, 6, 64, generator=g), torch.rand(4, 6, generator=g)
    model = replace(meta, config=replace(meta.config, **options))  # type: ignore[arg-type]
    return maml._fit(model, items, weight)


def test_maml_steps_go_from_the_start_downhill() -> None:
    """Every inner step lowers the loss on the support set; with none the start is read."""
    meta = make_meta("maml", interests=2)
    g = torch.Generator().manual_seed(9)
    items, weight = torch.randn(4, 6, 64, generator=g), torch.rand(4, 6, generator=g)
    vectors = [fitted(meta, inner_steps=steps) for steps in range(4)]
    start = meta["adapter.start_interest"].expand(4, -1, -1)
    torch.testing.assert_close(vectors[0], start)
    falls = [float(inner_loss(v, items, weight, meta["adapter.prototype"])) for v in vectors]
    assert falls == sorted(falls, reverse=True)
    torch.testing.assert_close(fitted(adapter.steps_off(meta)), start)


def test_maml_proximal_pulls_to_the_start() -> None:
    """The stronger the proximal term the closer to the start; a huge one stays there."""
    meta = make_meta("maml")
    start = meta["adapter.start_interest"]
    far = [float((fitted(meta, proximal=p) - start).norm()) for p in (0.0, 0.5, 5.0, 1e8)]
    assert far == sorted(far, reverse=True)
    assert far[0] > 0.1
    assert far[-1] < 1e-6


def test_maml_first_order_passes_the_gradient_straight_to_the_start() -> None:
    """`first_order` gives the same vectors, whose derivative by the start is the identity."""
    meta = make_meta("maml")
    start = meta["adapter.start_interest"].clone().requires_grad_()
    model = Meta(meta.config, {**meta.tensors, "adapter.start_interest": start})
    second, first = (fitted(model, first_order=order) for order in (False, True))
    torch.testing.assert_close(second, first)
    one, other = (torch.autograd.grad(v.sum(), start)[0] for v in (first, second))
    torch.testing.assert_close(one, torch.full_like(one, 4.0))
    assert float((one - other).abs().max()) > 1e-3


def test_maml_forgets_what_left_the_support_set() -> None:
    """An event older than the support set no longer tells."""
    meta, block, vectors = make_meta("maml"), all_valid(make_block(3, 12)), make_vectors()
    _, before = adapter.unroll(meta, adapter.init(meta, 3), block, vectors)
    for place, seen in ((12 - 5, True), (12 - 6, False)):
        values = block.values.clone()
        values[:, place] += 1.0
        changed = replace(block, values=values)
        _, after = adapter.unroll(meta, adapter.init(meta, 3), changed, vectors)
        assert bool((after - before)[:, -1].any()) == seen


# -- all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_steps_off_keeps_kinds_without_inner_steps(kind: str) -> None:
    """`steps_off` changes what is read of kinds with inner steps, and of no other."""
    meta, block, vectors = make_meta(kind), make_block(3, 10), make_vectors()
    off = adapter.steps_off(meta)
    state, interests = adapter.unroll(meta, adapter.init(meta, 3), block, vectors)
    still, same = adapter.unroll(off, adapter.init(off, 3), block, vectors)
    assert torch.equal(interests, same) == (kind in ("gru", "sasrec", "sasrec_cached"))
    assert torch.equal(state["count"], still["count"])


def test_a_config_of_an_older_bundle_loads() -> None:
    """Fields that an older version did not write take their defaults."""
    old = ModelConfig(actions=("click",)).to_dict()
    for name in ("decay", "first_order", "proximal", "inner_steps", "inner_support", "window"):
        del old[name]
    assert ModelConfig.from_dict(old) == ModelConfig(actions=("click",))
