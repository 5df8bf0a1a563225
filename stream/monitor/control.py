"""Does learning help? Adapted lists against those of the control, by users.

`ranking.control_share` of the users, chosen by hash, get lists without adaptation. Hit rates of the
two kinds are ratios of sums over users, and what a user does hangs together: the variance of a
ratio over clusters is that of the delta method (Deng, Knoblich, Lu, "Applying the Delta Method in
Metric Analytics", 2018).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

Z = 1.96
"""Of a 95% interval."""

STRATEGIES = ("adapted", "control")


class Counted(NamedTuple):
    """What a user did: interactions that were judged, and hits among them."""

    judged: int
    hits: int


class Verdict(StrEnum):
    """What can be said."""

    NO_CONTROL = "no_control"  # nobody has lists without adaptation: nothing can be told
    TOO_FEW = "too_few_users"
    HELPS = "helps"
    UNDECIDED = "undecided"
    NOT_HELPING = "not_helping"


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A hit rate over users, and its variance."""

    users: int
    judged: int
    rate: float
    variance: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Adapted less control, with the 95% interval that the verdict rests on."""

    verdict: Verdict
    adapted: Rate
    control: Rate
    gain: float = 0.0
    low: float = 0.0
    high: float = 0.0


def rate(users: Collection[Counted]) -> Rate:
    """Hits over judged interactions of these users; of fewer than two the variance is infinite."""
    n, judged, hits = len(users), sum(u.judged for u in users), sum(u.hits for u in users)
    if not judged:
        return Rate(users=n, judged=0, rate=0.0, variance=math.inf)
    ratio = hits / judged
    left = sum((u.hits - ratio * u.judged) ** 2 for u in users)
    variance = n / (n - 1) * left / judged**2 if n > 1 else math.inf
    return Rate(users=n, judged=judged, rate=ratio, variance=variance)


def compare(
    adapted: Collection[Counted],
    control: Collection[Counted],
    *,
    share: float,
    fewest: int,
    least_gain: float,
) -> Comparison:
    """The verdict on two groups of users.

    Learning helps where the whole interval lies above 0. It does not where even the upper end is
    below `least_gain` times the control's rate: the gain, if there is one, is not worth having.
    `share` is `ranking.control_share`, `fewest` the users that each group needs.
    """
    ours, theirs = rate(adapted), rate(control)
    gain, half = ours.rate - theirs.rate, Z * math.sqrt(ours.variance + theirs.variance)
    if not share and not theirs.users:
        verdict = Verdict.NO_CONTROL
    elif min(ours.users, theirs.users) < fewest:
        verdict = Verdict.TOO_FEW
    elif gain - half > 0:
        verdict = Verdict.HELPS
    elif gain + half < least_gain * theirs.rate or not (ours.rate or theirs.rate):
        verdict = Verdict.NOT_HELPING
    else:
        verdict = Verdict.UNDECIDED
    return Comparison(
        verdict=verdict,
        adapted=ours,
        control=theirs,
        gain=gain,
        low=gain - half,
        high=gain + half,
    )


class Key(NamedTuple):
    """A user (by hash), and what made the lists that he acted on."""

    strategy: str
    model: str
    user: int


class Halves:
    """What each user did over the latest one to two halves of `seconds`, at most `most` users.

    Users who come when the memory is full are left out of this half, whatever their group.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self._half = seconds / 2
        self._most = most
        self._place = 0
        self._older: dict[Key, Counted] = {}
        self._newer: dict[Key, Counted] = {}

    def note(self, time: float, key: Key, hit: bool) -> None:
        """A judged interaction of a user who had such a list."""
        self.advance(time)
        if key in self._newer or len(self._newer) < self._most:
            judged, hits = self._newer.get(key, (0, 0))
            self._newer[key] = Counted(judged + 1, hits + hit)

    def advance(self, now: float) -> None:
        """Let go of what is older than two halves; `now` is production time, unix seconds."""
        place = int(now // self._half)
        if place > self._place:
            self._older = self._newer if place == self._place + 1 else {}
            self._place, self._newer = place, {}

    def users(self, strategy: str) -> list[Counted]:
        """The users with lists of this strategy, whatever model made them."""
        own = ((key.user, done) for key, done in self._all() if key.strategy == strategy)
        return list(_added(own).values())

    def rates(self) -> dict[str, list[float]]:
        """The hit rate of each user of adapted lists, by the model that made them."""
        own = (((key.model, key.user), d) for key, d in self._all() if key.strategy == "adapted")
        rates: defaultdict[str, list[float]] = defaultdict(list)
        for (model, _), done in _added(own).items():
            rates[model].append(done.hits / done.judged)
        return dict(rates)

    def _all(self) -> Iterator[tuple[Key, Counted]]:
        return chain(self._older.items(), self._newer.items())


def _added(parts: Iterable[tuple[K, Counted]]) -> dict[K, Counted]:
    """Sums of what has a key in common."""
    total: dict[K, Counted] = {}
    for key, (judged, hits) in parts:
        before = total.get(key, Counted(0, 0))
        total[key] = Counted(before.judged + judged, before.hits + hits)
    return total
