"""The ring of a record: which items, in what order, and on which days they were taken."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import features
from stream.seen_ring import LATE, older_seen, seen_days, seen_hashes
from stream.user_state import (
    MAX_BYTES,
    Records,
    fold_events,
    needs_rebuild,
    stamp,
)
from tests.unit.records import AGAIN, LAYOUT, S, block, fresh, many, random_state


def test_the_ring_keeps_every_liked_event_where_items_may_come_again() -> None:
    """With repeats what left the support set stands in the ring event by event, newest first."""
    records = fresh()
    liked = [7, 7, 8, 7]
    values = [[1.0, 1.0, -1.0, 1.0]]
    records = fold_events(records, block([liked], values, ids=[[1, 2, 3, 4]]), repeats=True)
    rest = block([list(range(100, 100 + S))])
    assert older_seen(fold_events(records, rest, repeats=True))[0].tolist() == [7, 7, 7]
    assert sorted(older_seen(fold_events(records, rest))[0].tolist()) == [7, 8]
    more = block([[9, 7, *range(200, 200 + S)]])
    twice = fold_events(fold_events(records, rest, repeats=True), more, repeats=True)
    assert older_seen(twice)[0, :2].tolist() == [7, 9]


DAY = 86_400_000


def bought(days: list[int], first: int = 1) -> Records:
    """A user who took items `first`, `first + 1`, … at noon of these days, one after the other."""
    items = list(range(first, first + len(days)))
    times = [[day * DAY + DAY // 2 for day in days]]
    return fold_events(AGAIN.decode([None]), block([items], times=times), repeats=True)


def told_days(records: Records) -> dict[int, int]:
    """Days since each item of the first user, by item."""
    pairs = zip(seen_hashes(records)[0].tolist(), seen_days(records)[0].tolist(), strict=True)
    return {item: days for item, days in pairs if item}


def test_days_are_remembered_where_items_may_come_again() -> None:
    """In the support set and in the ring, over many years and late events, to the day."""
    rng = np.random.default_rng(1)
    days = (20_000 + rng.integers(0, 9, S + AGAIN.seen).cumsum()).tolist()
    days[40] += LATE - 5  # an event that came late
    days[90:] = [day + 200 for day in days[90:]]  # a long break
    newest = days[-1]
    expected = {item: max(newest - day, 0) for item, day in enumerate(days, start=1)}
    assert AGAIN.seen + S >= features.AGAIN
    assert told_days(bought(days)) == expected
    back = AGAIN.decode(AGAIN.encode(bought(days)))
    assert told_days(back) == expected
    assert seen_days(AGAIN.decode([None])).shape == (1, 1)


def test_a_record_fits_the_limit_with_days() -> None:
    """At most 6,000 bytes, of which the days take a fifth of the older items."""
    assert AGAIN.dtype.itemsize <= MAX_BYTES
    assert 0.75 * LAYOUT.seen < AGAIN.seen < LAYOUT.seen


def test_the_setting_for_repeats_may_change() -> None:
    """Records keep the adapter and the newest items in order; unknown days are the latest known."""
    state = random_state(1)
    plain = stamp(LAYOUT.set_adapter(many(1, S + 300), state), np.array([9]), 5)
    plain["support"]["time"] = 20_000 * DAY
    again = AGAIN.decode(LAYOUT.encode(plain))
    kept = AGAIN.seen
    assert older_seen(again)[0, :kept].tolist() == older_seen(plain)[0, :kept].tolist()
    assert again["adapter"].tobytes() == plain["adapter"].tobytes()
    assert not needs_rebuild(again, 5).any()
    assert set(seen_days(again)[0].tolist()) == {0}
    more = fold_events(again, block([[5_000]], times=[[20_003 * DAY]]), repeats=True)
    assert told_days(more)[5_000] == 0
    assert set(list(told_days(more).values())[1:]) == {3}
    there = LAYOUT.decode(AGAIN.encode(more))
    assert older_seen(there)[0, :kept].tolist() == older_seen(more)[0, :kept].tolist()
    first = fold_events(there, block([[5_001]], times=[[20_003 * DAY]]))
    assert older_seen(first)[0, :2].tolist() == [302, 301]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=90), min_size=1, max_size=6))
def test_every_item_stays_seen_while_there_is_room(blocks: list[list[int]]) -> None:
    """Support set and ring together hold each item, liked or not, and no other."""
    records, id_ = fresh(), 0
    for items in blocks:
        values = [[1.0 if i % 3 else -1.0 for i in items]]
        ids = [[id_ + i + 1 for i in range(len(items))]]
        records, id_ = fold_events(records, block([items], values, ids=ids)), id_ + len(items)
    want = {i for items in blocks for i in items}
    assert set(seen_hashes(records)[0].tolist()) - {0} == want
    ring = older_seen(records)[0]
    assert len(set(ring.tolist())) == len(ring)
    assert records["shots"][0] == id_


def test_oldest_seen_items_give_way() -> None:
    """When the ring is full, the item that was remembered first is forgotten first."""
    total = LAYOUT.seen + S + 5
    seen = set(seen_hashes(many(1, total))[0].tolist())
    assert seen == set(range(6, total + 1))
