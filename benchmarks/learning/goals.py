"""Each goal against the figures: `met` or `not met`, and by what."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from adapters.report import Figure, by_shots, compare, per_user
from benchmarks.learning.kept import Array, Judged
from benchmarks.learning.rows import ALONE, FOLLOWING, IDS, OWN

MARGIN = -0.03
"""Lower end of a relative difference that still counts as no worse."""

FEWEST = 500
"""Predictions of a cohort from which on it is judged apart."""

FEWEST_NEW = 100
"""Predictions of items less than a day old from which on these are judged."""

AHEAD = 0.05
"""Relative lead over the best simple baseline that is asked for."""

STEPPED = 4
"""Shots from which on inner steps alone are to pay: three clicks and one more to tell."""

SETS = 3
"""Data sets that a verdict needs."""

Table = dict[str, Array]
"""Row and variant -> a figure [m], mean of the seeds."""


@dataclass(frozen=True, slots=True)
class SetResult:
    """All figures of a data set at the same positions."""

    name: str
    judged: Judged  # users, shots and new items of the positions
    ndcg: Table
    next_hit: Table  # share of seeds whose ten hold the very next item, where runs tell it
    best_simple: str  # the baseline that was best on validation
    commits: tuple[str, ...] = ()  # of the code that made the runs
    seeds: dict[str, int] = field(default_factory=dict)  # trainings behind each row of `ndcg`
    defaults: dict[int, Table] = field(default_factory=dict)  # by seeds, rows of OWN alone


@dataclass(frozen=True, slots=True)
class Verdict:
    """One goal."""

    goal: str
    met: bool | None  # None = the rows it needs were not run
    why: str

    def line(self) -> str:
        """A line of text."""
        word = {True: "met", False: "not met", None: "not run"}[self.met]
        return f"{word}: {self.goal} ({self.why})"


def verdicts(found: list[SetResult]) -> list[Verdict]:
    """All goals that can be told from lists."""
    return [
        _beats_simple(found, OWN),
        _beats_simple(found, FOLLOWING),
        *(_no_worse(found, kind) for kind in ("SASRec", "GRU")),
        _steps_alone(found),
        _steps_with_experts(found),
        _steps_off(found),
        _new_items(found),
    ]


def difference(found: SetResult, one: str, other: str, where: Array | None = None) -> Figure:
    """nDCG of one row minus that of another, relative to the other: mean over users, 95%."""
    inside = np.ones(len(found.judged.users), bool) if where is None else where
    return compare(found.judged.users[inside], found.ndcg[one][inside], found.ndcg[other][inside])


def ahead(found: SetResult, row: str, own: str = OWN) -> Figure:
    """How far `own`, a row of the defaults, is ahead of another that may have fewer seeds.

    Both are means of the same seeds then: one seed moves the encoder's figures by up to 15%.
    """
    mine = found.defaults.get(found.seeds.get(row, 0), found.ndcg)
    return compare(found.judged.users, mine[own], found.ndcg[row])


def cohorts(found: SetResult) -> list[tuple[str, Array]]:
    """The cohorts that are large enough to be judged apart."""
    return [part for part in by_shots(found.judged.shots) if part[1].sum() >= FEWEST]


def words(lead: Figure) -> str:
    """A relative difference with its interval."""
    return f"{lead.mean:+.1%} ({lead.low:+.1%} to {lead.high:+.1%})"


def _beats_simple(found: list[SetResult], row: str) -> Verdict:
    goal = f"{row}: ahead of the best simple baseline by 5% on two sets, level on the third, "
    goal += "no cohort lost"
    leads, lost, said = 0, [], []
    run = [own for own in found if row in own.ndcg]
    for own in run:
        lead = difference(own, row, own.best_simple)
        said.append(f"{own.name} {words(lead)} over {own.best_simple}")
        leads += lead.mean >= AHEAD and lead.low > 0
        lost += [own.name] * (lead.mean < 0) + _lost(own, row, own.best_simple)
    met = None if len(run) < SETS else leads >= 2 and not lost
    return Verdict(goal, met, _said(said, lost))


def _no_worse(found: list[SetResult], kind: str) -> Verdict:
    run = [own for own in found if kind in own.ndcg]
    leads = _leads(run, OWN, kind)
    lost = [name for name, lead in leads.items() if lead.low < MARGIN]
    lost += [part for own in run for part in _lost(own, OWN, kind)]
    return Verdict(f"no worse than {kind}", _if_all(leads, not lost), _said(_each(leads), lost))


def _steps_alone(found: list[SetResult]) -> Verdict:
    goal = "steps against training without them, experts off, after 3 shots: ahead on every set"
    leads = _leads(found, f"{OWN}, encoder only", "no inner loop, encoder only", STEPPED)
    return _ahead_everywhere(goal, leads)


def _steps_with_experts(found: list[SetResult]) -> Verdict:
    goal = "the same with experts: no worse on any set, ahead on one"
    leads = _leads(found, OWN, "no inner loop")
    lows = [lead.low for lead in leads.values()]
    good = all(low >= MARGIN for low in lows) and any(low > 0 for low in lows)
    return Verdict(goal, _if_all(leads, good), ", ".join(_each(leads)))


def _steps_off(found: list[SetResult]) -> Verdict:
    goal = "the same weights with steps switched off, experts off: worse on every set"
    alone = [f"{OWN}, {variant}" for variant in ALONE]
    verdict = _ahead_everywhere(goal, _leads(found, *alone))
    mixed = ", ".join(_each(_leads(found, OWN, f"{OWN}, steps off")))
    return replace(verdict, why=f"{verdict.why}; with experts {mixed}")


def _ahead_everywhere(goal: str, leads: dict[str, Figure]) -> Verdict:
    good = all(lead.low > 0 for lead in leads.values())
    return Verdict(goal, _if_all(leads, good), ", ".join(_each(leads)))


def _leads(found: list[SetResult], one: str, other: str, since: int = 0) -> dict[str, Figure]:
    """By set, where both rows were run: how far one is ahead from `since` shots on."""
    return {
        own.name: difference(own, one, other, own.judged.shots >= since)
        for own in found
        if {one, other} <= own.ndcg.keys()
    }


def _if_all(leads: dict[str, Figure], met: bool) -> bool | None:
    """No verdict before all sets were run."""
    return met if len(leads) >= SETS else None


def _new_items(found: list[SetResult]) -> Verdict:
    goal = "items less than a day old hit at least twice as often as by the model of ids alone"
    leads, said = [], []
    for own in found:
        new = own.judged.new
        if {OWN, IDS} <= own.next_hit.keys() and new.sum() >= FEWEST_NEW:
            users, mine, theirs = (
                x[new] for x in (own.judged.users, own.next_hit[OWN], own.next_hit[IDS])
            )
            leads.append(compare(users, mine, theirs))
            rates = (
                f"{per_user(users, mine).mean():.3f} against {per_user(users, theirs).mean():.3f}"
            )
            said.append(f"{own.name} {rates}, {words(leads[-1])}")
    met = None if not leads else all(lead.mean >= 1 for lead in leads)
    return Verdict(goal, met, ", ".join(said))


def _lost(own: SetResult, one: str, other: str) -> list[str]:
    found = ((name, difference(own, one, other, inside)) for name, inside in cohorts(own))
    return [
        f"{own.name} at {name} shots {words(lead)}" for name, lead in found if lead.low < MARGIN
    ]


def _each(leads: dict[str, Figure]) -> list[str]:
    return [f"{name} {words(lead)}" for name, lead in leads.items()]


def _said(said: list[str], lost: list[str]) -> str:
    return "; ".join(said) + ("" if not lost else "; lost: " + ", ".join(lost))
