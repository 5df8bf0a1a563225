"""Impressions: the worker's rings and those found in a log, on the same events."""

from __future__ import annotations

import numpy as np
import pytest

from adapters.episodes import Log, make_log
from adapters.impressions import RING, Fates, make_impressions
from adapters.types import ModelConfig
from stream.message_types import Ranking
from stream.showing import Acts, Lists, settle
from stream.user_state import Layout, Records, hash_id, low_half, picked, shown_hashes

LAYOUT = Layout.of(ModelConfig())
USERS, ITEMS, WINDOW = 3, 60, 1_800.0
BEGIN = 1_700_000_000_000


class Days:
    """Lists and acts of a few users in order of time, both in many lengths and near repeats."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        size = 400
        self.times = BEGIN + np.sort(rng.choice(size * 90_000, size, replace=False))
        self.users = rng.integers(0, USERS, size)
        self.listed = rng.random(size) < 0.4
        self.items = rng.integers(0, ITEMS, size)
        self.shown = [rng.permutation(ITEMS)[: rng.integers(1, 45)] for _ in range(size)]

    def lists(self, part: slice) -> Lists:
        """The lists of a part of the days."""
        at = np.arange(len(self.times))[part]
        at = at[self.listed[at]]
        events = [
            Ranking(
                id=f"r{n}",
                timestamp=int(self.times[n]),
                user=str(self.users[n]),
                items=[f"i{item}" for item in self.shown[n]],
            )
            for n in at.tolist()
        ]
        return Lists(self.users[at], at, events)

    def acts(self, part: slice) -> Acts:
        """The interactions of a part of the days."""
        at = np.arange(len(self.times))[part]
        at = at[~self.listed[at]]
        items = np.array([hash_id(f"i{n}") for n in self.items[at].tolist()], np.uint64)
        return Acts(self.users[at], at, items, self.times[at])

    def settled(self, parts: list[slice]) -> Records:
        """Rings of all users after batches."""
        records = LAYOUT.decode([None] * USERS).copy()
        for part in parts:
            settle(records, self.lists(part), self.acts(part), WINDOW)
        return records

    def log(self) -> Log:
        """The acts as a log."""
        at = np.flatnonzero(~self.listed)
        one = np.ones(len(at))
        return make_log(self.users[at], self.items[at], 0 * one, one, self.times[at] / 1e3)

    def fates(self, log: Log) -> tuple[Fates, np.ndarray]:
        """What became of everything shown, and the order of the log by user."""
        at = np.flatnonzero(self.listed)
        kept = [self.shown[n][:RING][::-1] for n in at.tolist()]
        sizes = [len(items) for items in kept]
        times = (self.times[at] / 1e3).repeat(sizes)
        shown = make_impressions(self.users[at].repeat(sizes), np.concatenate(kept), times, WINDOW)
        order = np.argsort(log.users, kind="stable")
        assert shown is not None
        return Fates.of(shown, log.users[order], log.items[order], log.times[order]), order


@pytest.mark.parametrize("seed", range(3))
def test_a_log_tells_what_the_ring_of_a_record_says(seed: int) -> None:
    """After every single event the ring and the log name the same ignored items, repeats too."""
    days = Days(seed)
    log = days.log()
    fates, order = days.fates(log)
    records = LAYOUT.decode([None] * USERS).copy()
    low = {int(low_half(np.array([hash_id(f"i{n}")], np.uint64))[0]): n for n in range(ITEMS)}
    most = 0
    for place in range(len(days.times)):
        part = slice(place, place + 1)
        settle(records, days.lists(part), days.acts(part), WINDOW)
        user = int(days.users[place])
        now = days.times[place] / 1e3
        ends = np.searchsorted(log.users[order], user)
        ends += ((log.users == user) & (log.times <= now)).sum()
        found = fates.ignored(np.array([user]), np.array([ends]), np.array([now]))[0]
        ring = shown_hashes(picked(records, np.array([user])))[0]
        expected = sorted(low[int(h)] for h in ring if h)
        assert sorted(found[found >= 0].tolist()) == expected
        most = max(most, len(expected))
    assert most > RING / 3


def test_rings_do_not_depend_on_batches() -> None:
    """All events at once, a few at a time or one by one leave the same bytes."""
    days = Days(4)
    size = len(days.times)
    found = [
        LAYOUT.encode(days.settled([slice(n, n + step) for n in range(0, size, step)]))
        for step in (1, 13, size)
    ]
    assert found[0] == found[1] == found[2]


def test_nothing_shown_is_no_impression() -> None:
    """A log without lists stands as if nobody had asked."""
    assert make_impressions([], [], [], WINDOW) is None
