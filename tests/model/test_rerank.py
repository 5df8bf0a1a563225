"""The second look: its features by hand, its place behind the mix, and what its fit finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from adapters import evaluate, experts, features, fit_experts, ranking, rerank
from adapters.episodes import Log, make_log
from adapters.evaluate import Options
from adapters.experts import prior_from_log
from adapters.fit_experts import FitOptions
from adapters.types import Catalogue, Meta, Shared, UserView
from tests.model import planted
from tests.model.planted import BEGIN, DAY

SIZE = 200
PLACE = {name: at for at, name in enumerate(rerank.NAMES)}


def world() -> tuple[Meta, UserView, Catalogue, Shared]:
    """A model with random weights of the second look, 40 users and what they can be shown."""
    settings = planted.config()
    meta, generator = planted.model(settings), torch.Generator().manual_seed(7)
    shape = (len(rerank.names(settings)), rerank.CIRCUMSTANCES)
    tensors = {**meta.tensors, **rerank.with_weights(torch.randn(shape, generator=generator))}
    catalogue, shared = planted.catalogue(settings, SIZE), planted.shared(settings, SIZE)
    return replace(meta, tensors=tensors), planted.view(settings, 40, SIZE), catalogue, shared


def looked(view: UserView, rows: list[int]) -> tuple[torch.Tensor, features.Prepared]:
    """The features of these rows for the first user."""
    meta, _, catalogue, shared = world()
    prepared = features.prepare(meta.config, catalogue, shared)
    one = ranking.select(view, slice(0, 1))
    found = ranking.all_values(meta, prepared, one, torch.tensor([rows]))
    return found[0, :, -len(rerank.NAMES) :], prepared


def with_events(items: list[int], values: list[float]) -> UserView:
    """One user with these events, newest first."""
    _, view, _, _ = world()
    one = ranking.select(view, slice(0, 1))
    one.support.items[:], one.support.values[:] = -1, 0.0
    one.support.items[0, : len(items)] = torch.tensor(items)
    one.support.values[0, : len(items)] = torch.tensor(values)
    seen = torch.tensor([items]) if items else one.seen[:, :0]
    return replace(one, shots=torch.tensor([len(items)]), seen=seen)


def test_nearness_is_the_cosine_to_what_was_liked() -> None:
    """The latest event counts with its sign, the nearest one only if it was liked."""
    rows = [50, 51, 52]
    found, prepared = looked(with_events([10, 11], [-1.0, 1.0]), rows)
    cosine = prepared.unit[rows] @ prepared.unit[[10, 11]].T
    torch.testing.assert_close(found[:, PLACE["near_last"]], -cosine[:, 0])
    torch.testing.assert_close(found[:, PLACE["near_best"]], cosine[:, 1].clamp(min=0))
    mean = (-cosine[:, 0] + features.SEED_DECAY * cosine[:, 1]) / (1 + features.SEED_DECAY)
    torch.testing.assert_close(found[:, PLACE["near_mean"]], mean)
    texts = prepared.text[rows] @ prepared.text[11]
    torch.testing.assert_close(found[:, PLACE["text_best"]], texts.clamp(min=0))


def test_links_are_those_of_the_latest_item_alone() -> None:
    """A neighbour of the latest liked item has its link's weight, one of an older item nothing."""
    _, _, _, shared = world()
    items, weights = shared.neighbour_items[:, :5], shared.neighbour_weights[:, :5]
    first, second = items[10].tolist(), items[11].tolist()
    rows = [first[0], next(row for row in second if row not in shared.neighbour_items[10])]
    found, _ = looked(with_events([10, 11], [1.0, 1.0]), rows)
    linked = found[:, PLACE["covisit_stream_last"]]
    assert float(linked[1]) == 0
    expected = weights[10][[first.index(row) for row in first if row == first[0]]].sum()
    assert float(linked[0]) == pytest.approx(float(expected))
    disliked, _ = looked(with_events([10, 11], [-1.0, 1.0]), rows)
    assert not disliked[:, PLACE["covisit_stream_last"]].any()


def test_candidates_come_from_the_mix_and_their_order_from_the_second_look() -> None:
    """The list is the best of the mix's candidates by the scores that `explain` adds up."""
    meta, view, catalogue, shared = world()
    mix = ranking.rank(rerank.without(meta), view, catalogue, shared, rerank.CANDIDATES, 0.0)
    found = ranking.rank(meta, view, catalogue, shared, 10, 0.0)
    prepared = features.prepare(meta.config, catalogue, shared)
    scores = ranking.contributions(meta, prepared, view, mix.items.clamp(min=0)).sum(2)
    best = scores.masked_fill(mix.items < 0, -torch.inf).topk(10)
    torch.testing.assert_close(found.scores, best.values, rtol=1e-4, atol=1e-4)
    assert not torch.equal(found.items, mix.items[:, :10])


def test_what_is_seen_stays_out_of_the_second_look() -> None:
    """No item that must not be ranked comes back, and short catalogues end in -1."""
    meta, view, catalogue, shared = world()
    few = replace(catalogue, alive=torch.arange(SIZE) < 30)
    found = ranking.rank(meta, view, few, shared, 40, 0.0)
    for user in range(len(view.shots)):
        allowed = set(range(30)) - set(view.seen[user].tolist())
        listed = found.items[user].tolist()
        assert set(listed) - {-1} == allowed
        assert listed[len(allowed) :] == [-1] * (40 - len(allowed))


GROUP = 10


def groups_log(users: int = 250) -> Log:
    """Events in pairs of one group of items, any group: what is popular says nothing."""
    rng = np.random.default_rng(3)
    group = rng.integers(0, SIZE // GROUP, (users, 3, 1)).repeat(2, 2)
    items = group * GROUP + rng.integers(0, GROUP, group.shape)
    times = BEGIN + np.sort(rng.random((users, 6)) * 6 * DAY, 1)
    owner = np.arange(users).repeat(6)
    return make_log(owner, items.ravel(), 0 * owner, 0 * owner + 1, times.ravel())


def test_the_fit_finds_what_the_mix_cannot_say() -> None:
    """Where an item like the latest one is next, the second look finds it and the mix does not."""
    meta, log, start = planted.model(planted.config()), groups_log(), BEGIN + DAY
    columns = (log.users, log.items, log.values, log.times)
    prior = prior_from_log(meta.config, SIZE, *columns, start)
    catalogue = planted.catalogue(meta.config, SIZE, prior)
    catalogue.vectors[:] = catalogue.vectors[::GROUP].repeat_interleave(GROUP, 0)
    options = FitOptions(pool=40, negatives=32, horizon=1)
    train, test = np.arange(150), np.arange(150, 250)
    fitted = fit_experts.fit(meta, log, start, catalogue, prior, train, options).meta
    assert rerank.fitted(fitted)
    asked = Options(k=10, horizon=1, users=test, variants=("adapted", "mix alone"))
    report = evaluate.progressive(fitted, log, start, catalogue, prior, asked)
    assert report.row("adapted").ndcg.mean > 1.3 * report.row("mix alone").ndcg.mean
    assert report.row("mix alone").ahead.low > 0


def test_without_an_expert_both_stages_are_without_it() -> None:
    """`experts only` takes the encoder out of the mix and of the second look alike."""
    meta, view, catalogue, shared = world()
    bare = evaluate.variant_meta(meta, "experts only")
    view = replace(view, delta=torch.zeros_like(view.delta))
    other = replace(view, interests=view.interests.flip(0))
    one, two = (ranking.rank(bare, v, catalogue, shared, 10, 0.0).items for v in (view, other))
    assert torch.equal(one, two)
    assert not bare.tensors["rerank_weight"][experts.names(meta.config).index("encoder")].any()


def test_a_new_item_keeps_the_hope_that_the_mix_has_in_it() -> None:
    """While an item borrows, its age weighs as in the mix if that is more; scores add up."""
    meta, view, catalogue, shared = world()
    view = replace(view, delta=torch.zeros_like(view.delta))
    place = experts.names(meta.config).index("age")
    meta["rerank_weight"][place] = -1.0
    meta["expert_weight"][place] = meta["expert_weight_zero"][place] = 0.0
    meta["expert_weight"][place, 0] = meta["expert_weight_zero"][place] = 3.0
    catalogue.created[:] = BEGIN - 400 * DAY
    catalogue.created[:3] = shared.now - 60.0
    prepared = features.prepare(meta.config, catalogue, shared)
    assert prepared.loans.rows.tolist() == [0, 1, 2]
    rows = torch.arange(6).expand(len(view.shots), -1)
    parts = ranking.contributions(meta, prepared, view, rows)
    torch.testing.assert_close(parts[:, :3, place], torch.full_like(parts[:, :3, 0], 3.0))
    assert (parts[:, 3:, place] < 3.0).all()
    found = ranking.rank_prepared(meta, prepared, view, 10)
    listed = ranking.contributions(meta, prepared, view, found.items.clamp(min=0)).sum(2)
    torch.testing.assert_close(found.scores, listed, rtol=1e-4, atol=1e-4)
