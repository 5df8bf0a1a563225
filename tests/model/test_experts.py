"""Counters, neighbours and what they become when partitions are merged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from adapters import experts, features, signals
from adapters.experts import Snapshotter, prior_from_log
from adapters.positions import Sequences, previous_in_log
from adapters.signals import Signals, fold_neighbours, observe, previous_items
from tests.model import planted
from tests.model.planted import BEGIN, DAY

HOUR = 3_600.0


def learn(own: Signals, events: list[tuple[int, float]], batch: int = 1000) -> None:
    """Observe (row, hours after BEGIN) in batches, all in pairs with row 0."""
    for at in range(0, len(events), batch):
        part = events[at : at + batch]
        rows = np.array([row for row, _ in part])
        times = BEGIN + HOUR * np.array([hour for _, hour in part])
        previous = np.full((len(part), signals.PREVIOUS), -1)
        previous[:, 0] = np.where(rows == 0, -1, 0)
        own.apply(observe(own, rows, np.ones(len(part), np.float32), times, previous))


def test_a_counter_is_the_sum_of_decayed_evidence() -> None:
    """A count is the sum of 2^(-age / half-life), aged from the end of the event's bucket."""
    own = Signals(planted.config(), 5)
    learn(own, [(2, 0.5), (2, 5.2)])
    now = BEGIN + 30 * HOUR
    found = experts.snapshot([own], None, now).popularity[2]
    half = torch.tensor(planted.config().half_lives)
    expected = 2 ** (-29 * HOUR / half) + 2 ** (-24 * HOUR / half)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_the_open_bucket_does_not_count() -> None:
    """Events at or after a bucket's start are invisible to it, and visible to the next one."""
    own = Signals(planted.config(), 3)
    learn(own, [(1, 1.0), (1, 1.9)])
    own.apply_neighbours(fold_neighbours(own, BEGIN + HOUR))
    early = experts.snapshot([own], None, BEGIN + HOUR)
    assert early.popularity.sum() == 0
    assert (early.neighbour_items == -1).all()
    own.apply_neighbours(fold_neighbours(own, BEGIN + 2 * HOUR))
    late = experts.snapshot([own], None, BEGIN + 2 * HOUR)
    assert late.popularity[1, 0] == pytest.approx(2.0)
    assert late.neighbour_items[1, 0] == 0
    assert late.neighbour_items[0, 0] == 1


def test_batches_and_order_make_no_difference() -> None:
    """One batch, single events and late events lead to the same counters."""
    rng = np.random.default_rng(0)
    events = [
        (int(row), float(hour))
        for row, hour in zip(rng.integers(0, 6, 60), np.sort(rng.random(60)) * 50, strict=True)
    ]
    late = [events[i] for i in rng.permutation(60)]
    found = []
    for order, batch in ((events, 60), (events, 1), (late, 7)):
        own = Signals(planted.config(), 6)
        learn(own, order, batch)
        own.apply_neighbours(fold_neighbours(own, BEGIN + 60 * HOUR))
        found.append(experts.snapshot([own], None, BEGIN + 60 * HOUR))
    for other in found[1:]:
        torch.testing.assert_close(other.popularity, found[0].popularity)
        torch.testing.assert_close(other.neighbour_weights, found[0].neighbour_weights)


def test_partitions_add_up() -> None:
    """Splitting the users' events over partitions leaves counts and neighbours as they were."""
    rng = np.random.default_rng(1)
    events = [
        (int(row), float(hour))
        for row, hour in zip(rng.integers(0, 6, 80), np.sort(rng.random(80)) * 20, strict=True)
    ]
    one, many = Signals(planted.config(), 6), [Signals(planted.config(), 6) for _ in range(4)]
    learn(one, events)
    for p, own in enumerate(many):
        learn(own, events[p::4])
    now = BEGIN + 21 * HOUR
    for own in (one, *many):
        own.apply_neighbours(fold_neighbours(own, now))
    whole, parts = experts.snapshot([one], None, now), experts.snapshot(many, None, now)
    torch.testing.assert_close(parts.popularity, whole.popularity)
    torch.testing.assert_close(parts.neighbour_weights, whole.neighbour_weights)


def test_a_snapshotter_that_remembers_equals_a_fresh_one() -> None:
    """Merging only what changed gives what merging everything gives, bucket after bucket."""
    rng = np.random.default_rng(2)
    parts = [Signals(planted.config(), 8) for _ in range(3)]
    keeper = Snapshotter(planted.config())
    for hour in range(0, 30, 3):
        for own in parts:
            learn(
                own,
                [
                    (int(r), hour + float(h))
                    for r, h in zip(rng.integers(0, 8, 5), rng.random(5) * 4, strict=True)
                ],
            )
            own.apply_neighbours(fold_neighbours(own, BEGIN + (hour + 3) * HOUR))
        kept = keeper.snapshot(parts, None, BEGIN + (hour + 3) * HOUR)
        fresh = experts.snapshot(parts, None, BEGIN + (hour + 3) * HOUR)
        torch.testing.assert_close(kept.popularity, fresh.popularity)
        torch.testing.assert_close(kept.neighbour_weights, fresh.neighbour_weights)


def test_observe_changes_nothing_until_applied() -> None:
    """`observe` is pure: the same call twice gives the same values."""
    own = Signals(planted.config(), 4)
    learn(own, [(1, 0.1)])
    call = (
        np.array([1, 3]),
        np.ones(2, np.float32),
        BEGIN + np.array([60.0, 90.0]),
        np.full((2, signals.PREVIOUS), -1),
    )
    first, second = observe(own, *call), observe(own, *call)
    np.testing.assert_array_equal(first.counts, second.counts)
    assert own.counts[1, -1] == 1


def test_negative_evidence_and_unknown_items_do_not_count() -> None:
    """Dislikes and rows of -1 leave counters and pairs alone."""
    own = Signals(planted.config(), 4)
    delta = observe(
        own,
        np.array([-1, 2]),
        np.array([1.0, -1.0], np.float32),
        np.full(2, BEGIN),
        np.zeros((2, signals.PREVIOUS), np.int64),
    )
    assert len(delta.rows) == 0
    assert len(delta.pairs.rows) == 0


def test_restored_values_stand_in_for_learned_ones() -> None:
    """Counters and neighbours set from records give the snapshot they were taken from."""
    own = Signals(planted.config(), 5)
    learn(own, [(1, 0.0), (2, 1.0), (1, 3.0)])
    delta = fold_neighbours(own, BEGIN + 4 * HOUR)
    own.apply_neighbours(delta)
    other = Signals(planted.config(), 0)
    other.resize(5)
    rows = np.arange(5)
    other.set_counters(rows, own.counts, own.times)
    other.set_neighbours(delta.rows, delta.items, delta.weights, delta.times)
    a, b = (experts.snapshot([s], None, BEGIN + 5 * HOUR) for s in (own, other))
    torch.testing.assert_close(a.popularity, b.popularity)
    torch.testing.assert_close(a.neighbour_weights, b.neighbour_weights)


def test_the_heaviest_neighbours_stay() -> None:
    """Beyond M neighbours the lightest go; lists are sorted by weight."""
    own = Signals(planted.config(neighbours=2), 6)
    learn(own, [(1, 0.0), (2, 0.0), (2, 0.0), (3, 0.0), (3, 0.0), (3, 0.0)])
    delta = fold_neighbours(own, BEGIN + HOUR)
    assert delta.items[delta.rows == 0].tolist() == [[3, 2]]


def test_previous_items_of_a_block_and_of_a_log_agree() -> None:
    """Serving (support set and block) and training (whole log) pair the same items."""
    log = planted.random_log(users=1, items=12, events=30, days=1)
    log.values[::5] = -1
    whole = previous_in_log(Sequences.of(log))
    cut = 20
    found = previous_items(
        log.items[None, :cut][:, ::-1],
        log.values[None, :cut][:, ::-1],
        log.items[None, cut:],
        log.values[None, cut:],
        np.ones((1, 10), bool),
    )
    np.testing.assert_array_equal(found[0], whole[cut:])


def test_the_prior_ignores_the_future_and_meets_the_stream_without_a_seam() -> None:
    """Prior counts plus stream counts equal the counts of one stream over everything."""
    settings, size = planted.config(), 20
    log = planted.random_log(users=5, items=size, events=200, days=6)
    cut = BEGIN + 3 * DAY
    prior = prior_from_log(settings, size, log.users, log.items, log.values, log.times, cut)
    again = prior_from_log(
        settings,
        size,
        *(c[log.times < cut] for c in (log.users, log.items, log.values, log.times)),
        cut,
    )
    np.testing.assert_array_equal(prior.counts, again.counts)
    np.testing.assert_array_equal(prior.neighbour_items, again.neighbour_items)

    def stream(rows: np.ndarray, values: np.ndarray, times: np.ndarray) -> Signals:
        own = Signals(settings, size)
        own.apply(observe(own, rows, values, times, np.full((len(rows), 1), -1)))
        return own

    late = log.times >= cut
    rest = stream(log.items[late], log.values[late], log.times[late])
    everything = stream(log.items, log.values, log.times)
    now = BEGIN + 7 * DAY
    torch.testing.assert_close(
        experts.snapshot([rest], prior, now).popularity,
        experts.snapshot([everything], None, now).popularity,
        rtol=1e-4,
        atol=1e-5,
    )


def test_item_knn_is_a_shrunk_cosine() -> None:
    """Items of the same users are neighbours; the weight grows with the users they share."""
    log = planted.log([(u, i, 0.0) for u in range(6) for i in (0, 1)] + [(9, 0, 0.0), (9, 2, 0.0)])
    prior = prior_from_log(
        planted.config(), 4, log.users, log.items, log.values, log.times, BEGIN + 1
    )
    assert prior.neighbour_items[0, :2].tolist() == [1, 2]
    assert prior.neighbour_weights[0, 0] > 2 * prior.neighbour_weights[0, 1]
    assert (prior.neighbour_items[3] == -1).all()


def test_users_without_events_have_weights_of_their_own() -> None:
    """w0 + w1 log(1 + shots) + delta from the first event on, the zero-shot weights before."""
    meta = planted.model(planted.config())
    meta.tensors["expert_weight"][:, 1] = 0.5
    meta.tensors["expert_weight_zero"][:] = 7.0
    view = replace(planted.view(meta.config, 2, 9), shots=torch.tensor([0, 3]))
    found = experts.weights(meta, view, torch.zeros(2))
    assert (found[0] == 7.0).all()
    expected = meta["expert_weight"][:, 0] + 0.5 * np.log(4.0) + view.delta[1]
    torch.testing.assert_close(found[1], expected)


def test_weights_depend_on_pace_and_trend() -> None:
    """Two events at once have pace 1, an hour apart 1/2, a single event 0; trend is passed on."""
    meta = planted.model(planted.config())
    view = planted.view(meta.config, 3, 9)
    times = torch.zeros_like(view.support.times)
    times[:, 0] = 10_000.0
    times[0, 1], times[1, 1] = 10_000.0, 10_000.0 - experts.PACE
    view = replace(view, shots=torch.tensor([2, 2, 1]), support=replace(view.support, times=times))
    found = experts.circumstances(view, torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(found[:, 2], torch.tensor([1.0, 0.5, 0.0]))
    torch.testing.assert_close(found[:, 3], torch.tensor([0.1, 0.2, 0.3]))


def test_the_age_feature_falls_with_the_logarithm_of_age() -> None:
    """1 up to a day, 0 from ten years on and for unknown ages, evenly in between by factors."""
    created = torch.tensor([BEGIN, BEGIN - DAY, BEGIN - 10 * 365 * DAY, torch.nan, 0.0]).double()
    now = BEGIN
    created[4] = now - (features.FRESH * features.AGED) ** 0.5
    found = features.age_feature(created, now)
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, 0.0, 0.0, 0.5]), atol=1e-3, rtol=0)


def test_a_new_item_borrows_from_items_like_it() -> None:
    """An item of today gets popularity and co-visitation of its nearest; a month later nothing."""
    config = planted.config()
    items = planted.catalogue(config, 40)
    text = items.text.clone()
    text[39] = text[3]
    created = torch.full((40,), BEGIN - 400 * DAY, dtype=torch.float64)
    created[39] = BEGIN
    items = replace(items, text=text, created=created)
    shared = planted.shared(config, 40)
    counts = shared.popularity.clone()
    counts[39] = 0
    shared = replace(shared, popularity=counts)
    new = features.prepare(config, items, shared)
    assert new.loans.rows.tolist() == [39]
    assert new.loans.lenders[0, 0] == 3
    popular = config.dim + config.text_dim
    assert new.columns[popular, 39] > 0
    later = features.prepare(config, items, replace(shared, now=BEGIN + 30 * DAY))
    assert not len(later.loans.rows)
    assert later.columns[popular, 39] == 0
