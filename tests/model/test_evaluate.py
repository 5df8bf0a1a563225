"""Progressive evaluation: exact, without a look ahead, and the same lists as when served."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from adapters import adapter, evaluate, experts, ranking
from adapters.episodes import Log
from adapters.evaluate import Options
from adapters.experts import prior_from_log
from adapters.positions import Sequences, interests_at, relevant, views
from adapters.report import Lists, by_shots, summarise
from adapters.signals import Signals, fold_neighbours, observe, previous_items
from adapters.types import Block, UserView
from tests.model import planted
from tests.model.planted import BEGIN, DAY

SIZE = 40


def test_figures_by_hand() -> None:
    """NDCG, hit and reciprocal rank of a list whose second and third item are relevant."""
    found = evaluate.figures(np.array([[5, 1, 2]]), np.array([[2, 1, 9, 8]]))
    gain = 1 / np.log2(3) + 1 / np.log2(4)
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4)
    np.testing.assert_allclose(found, [[gain / ideal, 1.0, 0.5]])


def test_empty_places_are_no_hits() -> None:
    """Padding in the list and in the relevant items never matches."""
    found = evaluate.figures(np.array([[-1, -1]]), np.array([[-1, -1]]))
    np.testing.assert_array_equal(found, [[0.0, 0.0, 0.0]])


def test_the_encoder_alone_ranks_by_its_own_score() -> None:
    """Whatever weight the fit gave it: one below 0 would turn the list around."""
    meta = planted.model(planted.config())
    fitted = torch.full_like(meta["expert_weight"], -0.5)
    turned = replace(meta, tensors={**meta.tensors, "expert_weight": fitted})
    alone = evaluate.variant_meta(turned, "encoder only")
    assert alone["expert_weight"][0].tolist() == [1, 0, 0, 0]
    assert not alone["expert_weight"][1:].any()
    assert alone["expert_weight_zero"][0] == 1
    others = evaluate.variant_meta(turned, "experts only")["expert_weight"]
    assert not others[0].any()
    assert torch.equal(others[1:], fitted[1:])


def test_relevant_items_are_the_next_new_positives() -> None:
    """Items met before, disliked or unknown do not count; the event itself does for requests."""
    log = planted.log([(1, 4, 0), (1, 5, 1), (2, 9, 1), (1, 4, 2), (1, 6, 3), (1, 7, 4)])
    log.values[4] = -1.0
    seq = Sequences.of(log)
    request = relevant(seq, np.array([0, 1]), "request", 3, mask_seen=True)
    assert request.tolist() == [[4, 5, 7], [5, 7, -1]]
    published = relevant(seq, np.array([0, 5]), "published", 3, mask_seen=True)
    assert published.tolist() == [[5, 7, -1], [-1, -1, -1]]
    again = relevant(seq, np.array([1]), "request", 3, mask_seen=False)
    assert again.tolist() == [[5, 4, 7]]


def test_a_basket_is_one_request() -> None:
    """Items bought at one time: the list before the first is judged, all of them are relevant."""
    log = planted.log([(1, 4, 0), (2, 8, 1), (1, 5, 1), (1, 6, 1), (1, 7, 1), (1, 8, 2)])
    meta = planted.model(planted.config())
    items = planted.catalogue(meta.config, SIZE)
    options = Options(variants=("popularity",), users=np.array([1]))
    found = evaluate.positions(meta, log, BEGIN, items, None, options, None)
    assert found.shots.tolist() == [0, 1, 4]
    assert sorted(found.relevant[1][found.relevant[1] >= 0].tolist()) == [5, 6, 7, 8]


def test_interests_come_from_the_past_alone() -> None:
    """Interests at a position equal those of single steps over the events before it."""
    meta = planted.model(planted.config())
    items = planted.catalogue(meta.config, SIZE)
    log = planted.random_log(users=3, items=SIZE, events=90, days=2)
    seq, events = Sequences.of(log), np.arange(90)
    found = interests_at(meta, seq, events, "published", items.vectors)
    for user in range(3):
        state = adapter.init(meta, 1)
        for event in np.flatnonzero(log.users == user)[:12]:
            state = adapter.step(meta, state, _block(log, event), items.vectors)
            torch.testing.assert_close(
                found[event], adapter.read(meta, state)[0], rtol=1e-2, atol=2e-3
            )


def test_histories_of_any_length_are_read_together() -> None:
    """A long history beside short ones changes nothing for either, and costs what it holds."""
    meta = planted.model(planted.config())
    vectors = planted.catalogue(meta.config, SIZE).vectors
    lengths = [1, 2, 63, 64, 65, 129, *[3] * 120, 20_000]
    rng = np.random.default_rng(0)
    users = rng.permutation(np.repeat(np.arange(len(lengths)), lengths))
    log = planted.log([(int(u), int(rng.integers(SIZE)), at) for at, u in enumerate(users)])
    seq = Sequences.of(log)
    last = np.array([np.flatnonzero(log.users == user)[-1] for user in range(len(lengths))])

    def read(events: np.ndarray) -> tuple[torch.Tensor, float]:
        began = time.process_time()
        found = interests_at(meta, seq, events, "published", vectors)
        return found, time.process_time() - began

    together, cost = read(last)
    for user in (0, 2, 3, 4, 5, 6):
        torch.testing.assert_close(together[user], read(last[user : user + 1])[0][0])
    long, own = read(last[-1:])
    torch.testing.assert_close(together[-1], long[0])
    assert cost < 10 * own  # side by side to the end it would be some 100 times


def test_the_lists_are_those_of_a_worker_that_learns_event_by_event() -> None:
    """A loop over single events, as a worker would do it, publishes the same lists."""
    meta = planted.model(planted.config())
    size, config = 60, meta.config
    log = planted.random_log(users=6, items=size, events=120, days=1)
    cut = BEGIN + 0.3 * DAY
    prior = prior_from_log(config, size, log.users, log.items, log.values, log.times, cut)
    items = planted.catalogue(config, size, prior)
    events = np.flatnonzero(log.times >= cut)
    found = evaluate.lists(meta, log, events, items, prior)

    signals, kept = Signals(config, size), experts.Snapshotter(config)
    states = {user: adapter.init(meta, 1) for user in range(6)}
    past: dict[int, list[int]] = {user: [] for user in range(6)}
    lists = []
    for event in range(len(log)):
        user = int(log.users[event])
        now = float(log.times[event] // config.bucket * config.bucket)
        states[user] = adapter.step(meta, states[user], _block(log, event), items.vectors)
        if log.times[event] >= cut:
            signals.apply_neighbours(fold_neighbours(signals, now))
            shared = kept.snapshot([signals], prior, now)
            view = _view(meta, log, [*past[user], event])
            view = ranking.replace(view, interests=adapter.read(meta, states[user]))
            lists.append(ranking.rank(meta, view, items, shared, 10, 0.0).items[0].numpy())
            signals.apply(_observed(signals, log, past[user], event))
        past[user].append(event)
    same = np.mean([set(a) == set(b) for a, b in zip(found, lists, strict=True)])
    assert same > 0.97  # rounding of the state may swap items of equal score


@pytest.mark.parametrize("variant", evaluate.STANDARD)
def test_the_future_changes_no_list(variant: str) -> None:
    """Rewriting everything after a moment leaves all lists up to that moment as they were."""
    meta = planted.model(planted.config())
    log = planted.random_log(users=8, items=SIZE, events=150, days=4)
    start, cut = BEGIN + DAY, BEGIN + 2 * DAY
    prior = prior_from_log(meta.config, SIZE, log.users, log.items, log.values, log.times, start)
    items = planted.catalogue(meta.config, SIZE, prior)
    events = np.flatnonzero((log.times >= start) & (log.times < cut))
    options = Options(variants=(variant,))
    future = log.items.copy()
    future[log.times >= cut] = 3
    other = Log(log.users, future, log.actions, log.values, log.times)
    before = evaluate.lists(meta, log, events, items, prior, options)
    after = evaluate.lists(meta, other, events, items, prior, options)
    np.testing.assert_array_equal(before, after)


def test_a_planted_favourite_of_the_day_is_found_by_recency() -> None:
    """Where favourites change every day, recency popularity beats popularity, and clearly."""
    meta = planted.model(planted.config())
    log = planted.random_log(users=300, items=SIZE, events=3_000, days=12)
    items = planted.catalogue(meta.config, SIZE)
    options = Options(variants=("recency popularity", "popularity"), horizon=1)
    report = evaluate.progressive(meta, log, BEGIN + 4 * DAY, items, None, options)
    ahead = report.row("popularity").ahead
    assert ahead.low > 0.02


def test_every_cohort_and_variant_has_a_row() -> None:
    """The report covers all variants and states users, positions and intervals around the mean."""
    meta = planted.model(planted.config())
    log = planted.random_log(users=30, items=SIZE, events=400, days=3)
    items = planted.catalogue(meta.config, SIZE)
    report = evaluate.progressive(meta, log, BEGIN + DAY, items, None)
    for variant in evaluate.STANDARD:
        row = report.row(variant)
        assert row.ndcg.low <= row.ndcg.mean <= row.ndcg.high
    assert report.row("adapted").ahead.mean == 0
    assert len(report.table()) == len(report.rows) + 1
    assert report.to_dict()["rows"][0]["variant"] == "adapted"
    with pytest.raises(KeyError):
        report.row("magic")


def test_users_weigh_the_same_however_much_they_do() -> None:
    """A user with many positions counts once."""
    users = np.array([1] * 9 + [2])
    lists = Lists(figures={"ndcg@10": np.r_[np.zeros(9), 1.0]}, rows=np.zeros((10, 1), int))
    report = summarise(users, by_shots(np.full(10, 5)), {"a": lists}, 1)
    assert report.row("a", "4-7").ndcg.mean == pytest.approx(0.5)


def _block(log: Log, event: int) -> Block:
    one = [
        torch.from_numpy(c[event : event + 1])[None]
        for c in (log.items, log.actions, log.values, log.times)
    ]
    return Block(*one, mask=torch.ones(1, 1, dtype=torch.bool))


def _view(meta: evaluate.Meta, log: Log, past: list[int]) -> UserView:
    own = log.select(np.array(past))
    seq = Sequences.of(own)
    size = len(experts.names(meta.config))
    return views(meta, seq, np.array([len(past) - 1]), "published", True, size)


def _observed(signals: Signals, log: Log, past: list[int], event: int) -> evaluate.observe:
    support = np.array(past[::-1], dtype=int)
    at = slice(event, event + 1)
    previous = previous_items(
        log.items[support][None],
        log.values[support][None],
        log.items[at][None],
        log.values[at][None],
        np.ones((1, 1), bool),
    )
    return observe(signals, log.items[at], log.values[at], log.times[at], previous[0])


def test_positions_can_be_those_of_some_users_and_a_draw_of_them() -> None:
    """Other users' positions and those not drawn are left out; the lists of the rest stay."""
    meta = planted.model(planted.config(neighbours=SIZE))  # no pair is ever dropped
    items = planted.catalogue(meta.config, SIZE)
    log = planted.random_log(users=8, items=SIZE, events=200, days=2)
    start = BEGIN + DAY

    def found(**limits: object) -> evaluate.Moments:
        options = Options(variants=("adapted",), **limits)  # type: ignore[arg-type]
        return evaluate.positions(meta, log, start, items, None, options, None)

    whole, some = found(), found(users=np.array([2, 5]))
    mine = np.isin(whole.users, [2, 5])
    np.testing.assert_array_equal(some.events, whole.events[mine])
    np.testing.assert_array_equal(some.lists["adapted"], whole.lists["adapted"][mine])
    drawn = found(most=10)
    assert len(drawn.events) == 10
    at = np.searchsorted(whole.events, drawn.events)
    np.testing.assert_array_equal(drawn.relevant, whole.relevant[at])
