"""What a list may know and when: delays, partitions, items to come, rebuilt adapters, baskets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from adapters import adapter, baselines, evaluate
from adapters.episodes import Log
from adapters.evaluate import REBUILT, Delays, Moments, Options
from adapters.positions import Sequences, interests_at, new_items, rebuilt_at, relevant
from adapters.profiles import make_profiles
from adapters.types import Block, Catalogue, Meta
from adapters.walking import arranged, walk
from tests.model import planted
from tests.model.planted import BEGIN, DAY

SIZE = 40
HOUR = 3_600.0


def _world(**changes: object) -> tuple[Meta, Catalogue]:
    meta = planted.model(planted.config(neighbours=SIZE, **changes))
    return meta, planted.catalogue(meta.config, SIZE)


def _found(log: Log, options: Options, start: float = BEGIN + DAY) -> Moments:
    meta, items = _world()
    with torch.inference_mode():
        return evaluate.positions(meta, log, start, items, None, options, None)


def _known(delays: Delays, log: Log, event: int) -> np.ndarray:
    """Popularity of all items as the user of an event is ranked by."""
    meta, items = _world()
    seq, events = Sequences.of(log), np.array([event])
    _, groups = arranged(seq, events, meta.config.bucket, delays)
    (step,) = walk(meta, seq, events, items, None, delays, groups)
    return np.asarray(step.shared.popularity[:, 0].numpy())


# -- label delay ----------------------------------------------------------------------------------


def test_with_a_delay_an_event_counts_once_it_is_that_old() -> None:
    """Shots are the user's events that are at least as old as the delay."""
    log = planted.log([(1, item, 100.0 * item) for item in range(8)])
    shots = {
        delay: _found(log, Options(variants=("popularity",), delays=Delays(delay)), BEGIN).shots
        for delay in (0.0, 100.0, 250.0, 1e6)
    }
    assert shots[0.0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert shots[100.0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert shots[250.0].tolist() == [0, 0, 0, 1, 2, 3, 4, 5]
    assert not shots[1e6].any()


@pytest.mark.parametrize("variant", [*evaluate.STANDARD, REBUILT, "repeat"])
def test_no_list_knows_of_events_that_are_too_young(variant: str) -> None:
    """Rewriting what is younger than the delay changes no list; it would without a delay."""
    log = planted.random_log(users=6, items=SIZE, events=200, days=4)
    cut, delay = BEGIN + 2.5 * DAY, 0.4 * DAY
    rewritten = log.items.copy()
    rewritten[log.times > cut - delay] = 3
    other = Log(log.users, rewritten, log.actions, log.values, log.times)
    events = np.flatnonzero((log.times >= cut - 0.5 * DAY) & (log.times < cut))
    meta, items = _world(support=16)
    tried = {**baselines.BASELINES, "repeat": baselines.repeat}
    for delays, same in ((Delays(delay), True), (Delays(), False)):
        options = Options(variants=(variant,), baselines=tried, delays=delays, mask_seen=False)
        lists = [evaluate.lists(meta, x, events, items, None, options) for x in (log, other)]
        assert bool((lists[0] == lists[1]).all()) is same


def test_a_delay_costs_where_the_last_event_tells_the_next() -> None:
    """Users who go through items in a row: the event before says all, unless it is not known."""
    rng = np.random.default_rng(0)
    events = []
    for user in range(60):
        begin, at = int(rng.integers(0, SIZE)), float(rng.uniform(0, 6 * DAY))
        events += [(user, (begin + k) % SIZE, at + 600.0 * k) for k in range(10)]
    log = planted.log(events)
    rates = {}
    for delay in (0.0, 2 * HOUR):
        options = Options(variants=("experts only",), horizon=1, k=3, delays=Delays(delay))
        rates[delay] = _found(log, options, BEGIN + 4 * DAY).figures("experts only")[:, 1].mean()
    assert rates[0.0] > 2 * rates[2 * HOUR]


# -- partitions -----------------------------------------------------------------------------------


def test_other_partitions_know_later() -> None:
    """What a user did just before the bucket closed is known to the own partition alone."""
    log = planted.log([(0, 5, HOUR - 30.0), (0, 6, HOUR - 90.0), (1, 7, HOUR), (2, 8, HOUR + 1)])
    delays = Delays(partition=np.array([0, 0, 1]), signal=60.0)
    near, far = (_known(delays, log, event) for event in (2, 3))
    assert (near[5] > 0, near[6] > 0) == (True, True)
    assert (far[5] > 0, far[6] > 0) == (False, True)
    np.testing.assert_allclose(near[6], far[6])


def test_what_was_late_is_counted_in_the_next_bucket() -> None:
    """A bucket later all partitions agree with one, to the last digits."""
    log = planted.log(
        [(0, 5, HOUR - 30.0), (0, 6, HOUR - 90.0), (1, 7, 1.5 * HOUR), (2, 8, 2 * HOUR)]
    )
    for users in ([0, 0, 1], [0, 1, 2]):
        delays = Delays(partition=np.array(users), signal=60.0)
        np.testing.assert_allclose(_known(delays, log, 3), _known(Delays(), log, 3), rtol=1e-6)


def test_without_delay_partitions_change_no_list() -> None:
    """The sum over four partitions is what one partition counts, neighbours included."""
    log = planted.random_log(users=12, items=SIZE, events=300, days=3)
    one = Options(variants=("adapted", "recency popularity"))
    four = replace(one, delays=Delays(partition=np.arange(12) % 4))
    first, second = _found(log, one), _found(log, four)
    for variant in one.variants:
        np.testing.assert_array_equal(first.lists[variant], second.lists[variant])


def test_a_long_delay_between_partitions_costs_recency() -> None:
    """Favourites change every day: who learns of them days later recommends the old ones."""
    log = planted.random_log(users=300, items=SIZE, events=3_000, days=8)
    at_once = Options(variants=("recency popularity",), most=150)
    late = Delays(partition=np.arange(300) % 20, signal=2 * DAY)
    ndcg = [
        _found(log, replace(at_once, delays=delays), BEGIN + 4 * DAY)
        .figures("recency popularity")[:, 0]
        .mean()
        for delays in (Delays(), late)
    ]
    assert ndcg[0] > 1.5 * ndcg[1]


# -- rebuilt adapters -----------------------------------------------------------------------------


def test_a_rebuilt_adapter_has_seen_the_support_set_alone() -> None:
    """Interests are those of steps over the last events; short histories lose nothing."""
    meta, items = _world(support=16)
    log = planted.log([(1, k % SIZE, 60.0 * k) for k in range(40)])
    seq, events = Sequences.of(log), np.arange(40)
    at = (seq, events, "request", items.vectors, 0.0)
    own = interests_at(meta, *at)
    found = rebuilt_at(meta, *at, own=own)
    torch.testing.assert_close(found[:17], own[:17], rtol=0, atol=0)
    state = adapter.init(meta, 1)
    for event in range(14, 30):
        state = adapter.step(meta, state, _one(log, event), items.vectors)
    torch.testing.assert_close(found[30], adapter.read(meta, state)[0], rtol=1e-2, atol=2e-3)
    assert (found[30] - own[30]).abs().max() > 2e-3


def test_rebuilt_lists_stand_beside_the_others() -> None:
    """The variant is judged at the same positions and differs for users with long histories."""
    log = planted.random_log(users=2, items=SIZE, events=120, days=3)
    options = Options(variants=("adapted", REBUILT), mask_seen=False)
    found = _found(log, options)
    same = (found.lists["adapted"] == found.lists[REBUILT]).all(1)
    assert same[found.shots <= 16].all()
    assert not same[found.shots > 16].all()


# -- what is relevant, and who is new -------------------------------------------------------------


def test_the_next_one_is_the_next_basket() -> None:
    """With a horizon of 1 all items of the next request are relevant; with 2, two of them."""
    log = planted.log([(1, 3, 0), (1, 5, 1), (1, 6, 1), (1, 7, 1), (2, 9, 1), (1, 8, 2)])
    seq, events = Sequences.of(log), np.array([0, 1, 4, 5])
    one = relevant(seq, events, "request", 1, mask_seen=True)
    assert one.tolist() == [[3, -1, -1], [5, 6, 7], [9, -1, -1], [8, -1, -1]]
    two = relevant(seq, events, "request", 2, mask_seen=True)
    assert two.tolist() == [[3, 5], [5, 6], [9, -1], [8, -1]]


def test_an_item_is_new_for_a_day() -> None:
    """The next item counts as new until a day after anybody's first event with it."""
    log = planted.log([(1, 4, 0), (2, 4, DAY - 1), (3, 4, DAY), (3, 5, DAY + 1)])
    found = new_items(log, np.array([0, 1, 2, 3, 3]), np.array([4, 4, 4, 5, -1]))
    assert found.tolist() == [True, True, False, True, False]


def test_the_very_next_item_is_hit_in_the_first_places_alone() -> None:
    """What is relevant later does not count, nor what stands below."""
    log = planted.log([(1, item, 100.0 * item) for item in range(8)])
    found = _found(log, Options(variants=("popularity",)), BEGIN)
    lists = np.array([[7, 3, -1], [3, 7, -1], [5, 6, 7]])
    wanted = np.array([[3, 7], [7, -1], [7, 5]])
    moments = replace(found, lists={"popularity": lists}, relevant=wanted)
    assert moments.next_hit("popularity", 2).tolist() == [True, True, False]


def test_users_with_events_before_the_start_are_known() -> None:
    """A user stays known, or new, for all positions of the evaluation."""
    log = planted.log([(1, 4, 0), (1, 5, 10), (2, 6, 11), (2, 7, 12), (1, 8, 13)])
    found = _found(log, Options(variants=("popularity",)), BEGIN + 5)
    assert found.known.tolist() == [True, False, False, True]
    names = {name: inside.tolist() for name, inside in evaluate.cohorts(found)}
    assert names["known users"] == [True, False, False, True]
    assert names["new users"] == [False, True, True, False]


def test_no_list_has_an_item_before_it_exists() -> None:
    """An item that appears within the bucket is in lists from its second on, in none before."""
    meta, items = _world()
    born = BEGIN + 0.5 * HOUR
    created = items.created.clone()
    created[7] = born
    items = replace(items, created=created)
    log = planted.log([(1, 3, 0.4 * HOUR), (2, 3, 0.6 * HOUR), (1, 4, 3 * HOUR), (2, 4, 3 * HOUR)])
    options = Options(k=SIZE, variants=("adapted", "popularity", "mean of the support"))
    with torch.inference_mode():
        found = evaluate.positions(meta, log, BEGIN, items, None, options, None)
    for variant in options.variants:
        there = (found.lists[variant] == 7).any(1)
        assert there.tolist() == (log.times[found.events] >= born).tolist(), variant


def test_lists_can_be_judged_at_several_diversities() -> None:
    """More diversity gives more varied lists; each is a variant of its own with all figures."""
    log = planted.random_log(users=60, items=SIZE, events=600, days=3)
    meta, items = _world()
    options = Options(k=20, variants=("adapted",), diversities=(0.2, 0.9))
    report = evaluate.progressive(meta, log, BEGIN + 2 * DAY, items, None, options)
    names = ("adapted", evaluate.diversified(0.2), evaluate.diversified(0.9))
    plain, some, most = (report.row(name).figures["diversity"].mean for name in names)
    assert plain < some < most
    figures = {f"{n}@{k}" for n in ("ndcg", "hit", "mrr") for k in (10, 20)}
    assert {*figures, "novelty", "diversity", "miscalibration"} == set(report.row("adapted").lead)
    assert set(report.beyond()[0]) >= {"ndcg@20", "novelty", "coverage"}


def _one(log: Log, event: int) -> Block:
    columns = (log.items, log.actions, log.values, log.times)
    one = [torch.from_numpy(c[event : event + 1])[None] for c in columns]
    return Block(*one, mask=torch.ones(1, 1, dtype=torch.bool))


# -- profiles -------------------------------------------------------------------------------------


def test_first_lists_with_and_without_a_profile_are_reported_apart() -> None:
    """Both cohorts are there where anybody has a profile, and neither where nobody has."""
    log = planted.log([(user, item, 900.0 * item + user) for user in (1, 2, 3) for item in (4, 5)])
    asked, (meta, items) = Options(variants=("popularity",)), _world()
    told = make_profiles(np.array([2]), np.array([BEGIN - 1]), np.full((1, 16), 9))
    plain, found = (
        evaluate.progressive(meta, one, BEGIN, items, None, asked)
        for one in (log, replace(log, profiles=told))
    )
    assert found.row("popularity", "0, profile").positions == 1
    assert found.row("popularity", "0, no profile").positions == 2
    assert not [row for row in plain.rows if "profile" in row.cohort]
