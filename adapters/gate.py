"""Whether a challenger may take the champion's place: the rule, and the figures it rests on.

1. It is not worse. The difference of nDCG@10 relative to the champion, paired by user, has a 95%
   interval whose lower end is above -MARGIN: over all positions, and in every cohort of shots
   with at least LEAST of them.
2. It is ahead of the best simple baseline. Over all positions its mean lies above that of the
   baseline that did best on these very positions.

The first is a test of non-inferiority: the burden of proof is the challenger's, so that too little
data refuses. The second asks for the mean alone. Luck is on the rival's side, which was chosen by
its result on the slice; and on a small log the interval reaches below zero even for a model that
is better, so that asking for it would keep the champion without any reason to think it better. A
first model has no champion to be compared with, and has to pass the second alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adapters.report import Array, Figure, by_shots, compare, per_user

MARGIN = 0.03
"""Relative loss of nDCG@10 that the lower end of the interval must stay above."""

LEAST = 500
"""Positions from which on a cohort counts, and below which a slice says nothing."""

LEAST_USERS = 30
"""Users below whom a slice says nothing: intervals are drawn over users."""

ALL = "all"
"""The cohort of all positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """nDCG@10 of everybody's lists at the same m positions."""

    users: Array  # [m]
    shots: Array  # [m] events of the user that the list knew
    challenger: Array  # [m]
    champion: Array | None  # [m]; None = there is none yet
    baselines: Mapping[str, Array]  # name -> [m]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Challenger and champion at the positions of one cohort; means are over users."""

    name: str
    positions: int
    users: int
    challenger: float
    champion: float | None
    change: Figure | None  # relative to the champion; None = there is none

    @property
    def counts(self) -> bool:
        """Whether there are positions enough to decide on."""
        return self.name == ALL or self.positions >= LEAST

    @property
    def passed(self) -> bool:
        """Whether the challenger is not worse here, or nothing is decided on it."""
        return self.change is None or not self.counts or self.change.low > -MARGIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A simple baseline over all positions."""

    name: str
    ndcg: float
    lead: Figure  # the challenger's, relative to the baseline

    @property
    def passed(self) -> bool:
        """Whether the challenger's mean is above the baseline's."""
        return self.lead.mean > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All figures, and what follows from them."""

    cohorts: tuple[Cohort, ...]  # all positions first
    rivals: tuple[Rival, ...]  # the best one first

    @property
    def reasons(self) -> list[str]:
        """Why the challenger must not take over; empty = it may."""
        lost = [cohort for cohort in self.cohorts if not cohort.passed]
        beaten = [rival for rival in self.rivals[:1] if not rival.passed]
        return [*map(_worse, lost), *map(_behind, beaten)]

    @property
    def promoted(self) -> bool:
        """Whether the challenger may take the champion's place."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "promoted": self.promoted,
            "reasons": self.reasons,
            "rule": {"margin": MARGIN, "least": LEAST, "k": 10},
            "cohorts": [
                {**asdict(c), "counts": c.counts, "passed": c.passed} for c in self.cohorts
            ],
            "baselines": [{**asdict(r), "passed": r.passed} for r in self.rivals],
        }


def judge(judged: Judged) -> Verdict:
    """The verdict on a challenger. Raises `ValueError` where there are no positions."""
    everywhere = np.ones(len(judged.users), np.bool_)
    parts = [(ALL, everywhere), *by_shots(judged.shots)]
    rivals = (_rival(judged, name) for name in judged.baselines)
    return Verdict(
        cohorts=tuple(_cohort(judged, name, inside) for name, inside in parts if inside.any()),
        rivals=tuple(sorted(rivals, key=lambda rival: -rival.ndcg)),
    )


def enough(users: Array) -> bool:
    """Whether positions of these users [m] are enough for a verdict."""
    return len(users) >= LEAST and len(np.unique(users)) >= LEAST_USERS


def _cohort(judged: Judged, name: str, inside: Array) -> Cohort:
    users, own = judged.users[inside], judged.challenger[inside]
    other = None if judged.champion is None else judged.champion[inside]
    return Cohort(
        name=name,
        positions=len(users),
        users=len(np.unique(users)),
        challenger=_mean(users, own),
        champion=None if other is None else _mean(users, other),
        change=None if other is None else compare(users, own, other),
    )


def _rival(judged: Judged, name: str) -> Rival:
    scores = judged.baselines[name]
    lead = compare(judged.users, judged.challenger, scores)
    return Rival(name=name, ndcg=_mean(judged.users, scores), lead=lead)


def _mean(users: Array, values: Array) -> float:
    return float(per_user(users, values[:, None]).mean())


def _worse(cohort: Cohort) -> str:
    where = "over all positions" if cohort.name == ALL else f"at {cohort.name} shots"
    return f"{where} nDCG@10 changes by {spread(cohort.change)}, and {-MARGIN:.0%} is the limit"


def _behind(rival: Rival) -> str:
    return f"nDCG@10 is not above that of {rival.name}: {spread(rival.lead)}"


def spread(figure: Figure | None) -> str:
    """A relative difference with its interval, such as `+1.2% (-0.4% to +2.8%)`."""
    if figure is None:
        return "-"
    return f"{_percent(figure.mean)} ({_percent(figure.low)} to {_percent(figure.high)})"


def _percent(difference: float) -> str:
    """Relative to next to nothing a number has no meaning but that it is large."""
    return f"{difference:+.1%}" if difference < 10 else ">+1000%"
