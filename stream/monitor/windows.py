"""Figures over the latest minutes: sums in buckets of the records' production time.

A window is a ring of buckets; it moves on by one bucket at a time, so that a figure is about
between eleven and twelve twelfths of `monitor.window_minutes`. Only sums are kept.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple

BUCKETS = 12
"""In a window."""

WAITS = tuple(0.01 * 1.25**power for power in range(48))
"""Upper bounds of the freshness histogram, in seconds: 10 ms to 6 min, a quarter apart."""


class Group(NamedTuple):
    """What a list was: figures are told apart by it."""

    strategy: str
    shots: str  # the cohort's name
    model: str


@dataclass(slots=True)
class Sums:
    """What came together for the lists of a group."""

    lists: int = 0  # published
    compared: int = 0  # of them, those with a list of the same user before
    new_items: float = 0.0  # sum over `compared` of the share of items that were not in it
    judged: int = 0  # interactions of users who had such a list
    hits: int = 0  # of them, those with an item of its first K
    shown: int = 0  # places of such lists that a `ranking` event said were shown
    clicked: int = 0  # of them, those acted on within the feedback window

    def add(self, other: Sums) -> None:
        """Take another's sums in."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(slots=True)
class Bucket:
    """Sums of a stretch of production time."""

    groups: defaultdict[Group, Sums] = field(default_factory=lambda: defaultdict(Sums))
    waits: list[int] = field(default_factory=lambda: [0] * (len(WAITS) + 1))
    clicks: Counter[int] = field(default_factory=Counter)  # hits and misses, by hash of the item
    kinds: Counter[str] = field(default_factory=Counter)  # the same, by category


class Window:
    """The buckets of the latest time; times are unix seconds of production."""

    def __init__(self, seconds: float) -> None:
        self.width = seconds / BUCKETS
        self._buckets: dict[int, Bucket] = {}
        self._newest = 0
        self._listed: dict[int, int] = {}  # newest bucket of each item that was in a list
        self.totals: defaultdict[Group, Sums] = defaultdict(Sums)  # since the monitor began
        self.late = 0  # what came for a bucket that had gone

    def at(self, time: float) -> Bucket:
        """The bucket of a moment. What is too old goes to one that nobody sees, and is counted."""
        place = int(time // self.width)
        if self._newest and place <= self._newest - BUCKETS:
            self.late += 1
            return Bucket()
        return self._buckets.setdefault(min(place, self._newest or place), Bucket())

    def add(self, time: float, group: Group, sums: Sums) -> None:
        """Something happened to a list of this group."""
        self.at(time).groups[group].add(sums)
        self.totals[group].add(sums)

    def listed(self, time: float, items: Iterable[int]) -> None:
        """These items were in a list."""
        place = int(time // self.width)
        for item in items:
            self._listed[item] = max(place, self._listed.get(item, place))

    def advance(self, now: float) -> list[Bucket]:
        """Move on to `now`; returns the buckets that have left the window, oldest first."""
        self._newest = max(self._newest, int(now // self.width))
        oldest = self._newest - BUCKETS + 1
        gone = [self._buckets.pop(place) for place in sorted(self._buckets) if place < oldest]
        if gone:
            self._listed = {item: at for item, at in self._listed.items() if at >= oldest}
        return gone

    # -- reading --------------------------------------------------------------------------------

    def groups(self) -> dict[Group, Sums]:
        """Sums of each group over the window."""
        total: defaultdict[Group, Sums] = defaultdict(Sums)
        for bucket in self._buckets.values():
            for group, sums in bucket.groups.items():
                total[group].add(sums)
        return dict(total)

    def clicks(self) -> Counter[int]:
        """Judged interactions over the window, by hash of the item."""
        return sum((bucket.clicks for bucket in self._buckets.values()), Counter())

    def kinds(self) -> Counter[str]:
        """Judged interactions over the window, by category of the item."""
        return sum((bucket.kinds for bucket in self._buckets.values()), Counter())

    def items_listed(self) -> int:
        """Different items among the first K of the window's lists."""
        return len(self._listed)

    def waited(self, share: float) -> float | None:
        """The time within which this share of the lists came after their event, in seconds.

        The upper bound of a step of the histogram, a quarter too large at most; None = no lists.
        """
        counts = [sum(column) for column in zip(*self._waits(), strict=True)]
        wanted, seen = share * sum(counts), 0
        for bound, count in zip((*WAITS, float("inf")), counts, strict=False):
            seen += count
            if count and seen >= wanted:
                return bound
        return None

    def _waits(self) -> Iterator[list[int]]:
        return (bucket.waits for bucket in self._buckets.values())


def note_wait(bucket: Bucket, seconds: float) -> None:
    """A list came so long after its event."""
    bucket.waits[bisect_left(WAITS, seconds)] += 1


def by(groups: Mapping[Group, Sums], dimension: str) -> dict[str, Sums]:
    """The sums told apart by one dimension of `Group` alone."""
    total: defaultdict[str, Sums] = defaultdict(Sums)
    for group, sums in groups.items():
        total[getattr(group, dimension)].add(sums)
    return dict(total)


def rate(part: float, whole: int) -> float | None:
    """`part / whole`; None where there is nothing to tell."""
    return part / whole if whole else None


def click_through(sums: Sums, k: int) -> tuple[float | None, str]:
    """Clicks on what was shown over what was shown, and what says so: `rankings` or `lists`.

    Without `ranking` events nobody knows what was seen: then every list counts as its K places
    shown once, and every hit as a click.
    """
    if sums.shown:
        return rate(sums.clicked, sums.shown), "rankings"
    return rate(sums.hits, k * sums.lists), "lists"
