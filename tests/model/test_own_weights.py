"""Users' own weights of the experts follow a user, little at first, and only what is liked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters import (
    adapter,
    evaluate,
    experts,
    fit_experts,
    fit_own_weights,
    own_walk,
    own_weights,
    rerank,
)
from adapters.episodes import Log, make_log
from adapters.evaluate import Options
from adapters.experts import Prior
from adapters.fit_history import FitOptions, History
from adapters.own_weights import Evidence
from adapters.positions import Sequences
from adapters.types import Catalogue, Meta
from tests.model import planted
from tests.model.planted import BEGIN, DAY

SIZE, GROUPS, EVENTS = 200, 20, 24
PLACE = {name: at for at, name in enumerate(experts.names(planted.config()))}


def two_kinds(users: int) -> Log:
    """Every user has three groups of items: of one text, or, users of odd number, linked ones."""
    rng = np.random.default_rng(8)
    owner = np.arange(users).repeat(EVENTS)
    groups = np.argsort(rng.random((users, GROUPS)), 1)[:, :3]
    group = groups[owner, rng.integers(0, 3, len(owner))]
    inside = rng.integers(0, SIZE // GROUPS, len(owner))
    items = np.where(owner % 2, group + GROUPS * inside, group * (SIZE // GROUPS) + inside)
    times = BEGIN + np.sort(rng.random((users, EVENTS)) * 9 * DAY, 1).ravel()
    return make_log(owner, items, 0 * owner, 0 * owner + 1, times)


def known_items(meta: Meta) -> tuple[Catalogue, Prior]:
    """Ten items after each other have one text; those GROUPS apart are linked."""
    items = planted.catalogue(meta.config, SIZE)
    step = SIZE // GROUPS
    items.text[:] = items.text[::step].repeat_interleave(step, 0)
    others = (torch.arange(SIZE)[:, None] + GROUPS * torch.arange(1, step)) % SIZE
    width = meta.config.neighbours
    items.prior_items[:] = others[:, :width]
    items.prior_weights[:] = 0.1
    counts = np.ones((SIZE, len(meta.config.half_lives)), np.float32)
    none = np.full((SIZE, width), -1), np.zeros((SIZE, width), np.float32)
    return items, Prior(BEGIN, counts, *none)


@pytest.fixture(scope="module")
def fitted() -> tuple[Meta, Log, Catalogue, Prior]:
    """A model whose steps were fitted to some of the users."""
    log, meta = two_kinds(120), planted.model(planted.config(user_delta=True, bucket=2 * DAY))
    meta = replace(meta, tensors={**meta.tensors, **rerank.default_tensors(meta.config)})
    items, prior = known_items(meta)
    history = History.of(log, BEGIN, items, prior, FitOptions(), 0)
    found = fit_own_weights.fit(meta, history, np.arange(30), np.arange(30, 60))
    return found, log, items, prior


def test_users_of_two_kinds_get_lists_of_their_kind(
    fitted: tuple[Meta, Log, Catalogue, Prior],
) -> None:
    """The fit finds that steps pay: lists get better after ten events, and hardly move before."""
    meta, log, items, prior = fitted
    assert own_weights.active(meta)
    variants = ("adapted", own_off := "own weights off", "steps off")
    asked = Options(users=np.arange(60, 120), variants=variants)
    with torch.inference_mode():
        found = evaluate.positions(meta, log, BEGIN, items, prior, asked, None)
        still = evaluate.positions(adapter.steps_off(meta), log, BEGIN, items, prior, asked, None)
    ahead = found.figures("adapted")[:, 0] - found.figures(own_off)[:, 0]
    assert ahead[found.shots >= 10].mean() > 0.01
    assert abs(ahead[found.shots <= 2].mean()) < 0.005
    assert not ahead[found.shots <= 1].any()
    np.testing.assert_array_equal(still.lists["adapted"], found.lists["steps off"])
    np.testing.assert_array_equal(still.lists[own_off], found.lists["steps off"])


def test_own_weights_say_what_a_user_goes_by(fitted: tuple[Meta, Log, Catalogue, Prior]) -> None:
    """Who goes by links comes to weigh these more, and texts less, than who goes by texts."""
    meta, log, items, prior = fitted
    own, users = at_the_end(meta, log, items, prior)
    odd = torch.from_numpy(users % 2 == 1)
    more = own[odd].mean(0) - own[~odd].mean(0)
    assert float(more[PLACE["covisit_prior"]]) > 0.1
    assert float(more[PLACE["text"]]) < -0.1


def test_only_what_is_liked_and_could_be_ranked_moves_them(
    fitted: tuple[Meta, Log, Catalogue, Prior],
) -> None:
    """A dislike, an item that is not known and one that was seen before change nothing."""
    meta, log, items, prior = fitted
    log = log.select(log.users < 8)
    own, _ = at_the_end(meta, log, items, prior)
    end = np.full(8, log.times.max() + 60)
    last = [log.items[log.users == user][-1] for user in range(8)]
    other = (np.array(last) + 1) % SIZE
    cases = ((other, -1.0), (np.full(8, -1), 1.0), (np.array(last), 1.0), (other, 1.0))
    moved = []
    for taken, value in cases:
        more = [*(getattr(log, name) for name in ("users", "items", "actions", "values", "times"))]
        new = np.arange(8), taken, np.zeros(8), np.full(8, value), end
        longer = make_log(*map(np.concatenate, zip(more, new, strict=True)))
        moved.append(float((at_the_end(meta, longer, items, prior)[0] - own).abs().max()))
    assert max(moved[:3]) < 1e-4
    assert moved[3] > 0.05


def at_the_end(meta: Meta, log: Log, items: Catalogue, prior: Prior) -> tuple[Tensor, np.ndarray]:
    """Own weights [n, E] of all users after their last events, and who they are [n]."""
    seq = Sequences.of(log)
    last = np.sort(seq.order[np.append(np.diff(log.users[seq.order]) != 0, True)])
    with torch.inference_mode():
        own = own_walk.at_events(meta, seq, last, items, prior, mask_seen=True, moment="published")
    order = np.argsort(log.users[last])
    return own[torch.from_numpy(order)], log.users[last][order]


def said(n: int, shots: int) -> tuple[Meta, Evidence]:
    """A model with large steps, and what n users have to say to it."""
    meta = planted.model(planted.config(user_delta=True))
    size = len(PLACE)
    meta = fit_own_weights.with_steps(meta, (9.0, 1.0, 4.0), torch.zeros(size), torch.ones(size))
    values = torch.randn(n, 5, size, generator=torch.Generator().manual_seed(4))
    found = Evidence(
        values=values,
        log_scale=torch.zeros(n, 5),
        weights=torch.zeros(n, size),
        rest=torch.zeros(n, 5),
        good=torch.arange(n) % 2 == 0,
        shots=torch.full((n,), shots),
    )
    return meta, found


def test_a_step_goes_towards_what_was_taken() -> None:
    """It is the gradient of the log-likelihood of the item that was taken, within the radius."""
    meta, found = said(4, 4)
    delta = torch.zeros(4, len(PLACE), requires_grad=True)
    scores = (found.values * (found.weights + delta)[:, None]).sum(2)
    scores.log_softmax(1)[:, 0].sum().backward()  # type: ignore[no-untyped-call]
    start = delta.detach()
    assert delta.grad is not None
    torch.testing.assert_close(own_weights.surprise(found, start), delta.grad)
    expected = (9.0 * 4 / 8 * delta.grad).clamp(-own_weights.RADIUS, own_weights.RADIUS)
    new = own_weights.step(meta, found, start)
    torch.testing.assert_close(new[::2], expected[::2])
    assert float(new.abs().max()) == own_weights.RADIUS
    assert torch.equal(new[1::2], start[1::2])


def test_a_step_that_is_not_finite_is_not_taken() -> None:
    """One user's broken numbers leave that user's weights as they are, and move the others."""
    meta, found = said(3, 4)
    found.values[0, 2, 1] = torch.nan
    new = own_weights.step(meta, found, torch.full((3, len(PLACE)), 0.5))
    assert bool((new[0] == 0.5).all())
    assert bool((new[2] != 0.5).any())


def test_where_steps_do_not_pay_they_are_off() -> None:
    """Users who are all alike get the lists they would get from a model without own weights."""
    log = planted.random_log(200, 60, 2_500, 4, seed=1)
    options = FitOptions(positions=400, pool=20, negatives=32)
    fits = []
    for own in (True, False):
        meta = planted.model(planted.config(user_delta=own, bucket=2 * DAY))
        items = planted.catalogue(meta.config, 60)
        fits.append(fit_experts.fit(meta, log, BEGIN + DAY, items, None, None, options).meta)
    one, other = fits
    assert not own_weights.active(one)
    assert float(one["delta.rate"]) == 0
    assert not [name for name in other.tensors if name.startswith("delta.")]
    for name, tensor in other.tensors.items():
        assert torch.equal(one[name], tensor)


def test_what_comes_later_is_not_known(fitted: tuple[Meta, Log, Catalogue, Prior]) -> None:
    """Own weights at earlier events stay as they are when the log goes on."""
    meta, log, items, prior = fitted
    early = log.select(log.times < BEGIN + 5 * DAY)
    events = np.arange(len(early) - 60, len(early))
    one, other = (
        own_walk.at_events(meta, Sequences.of(part), events, items, prior, mask_seen=True)
        for part in (early, log)
    )
    assert float(one.abs().mean()) > 0.05
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
