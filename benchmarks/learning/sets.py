"""The logs that are learned from, and how each is cut by time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from adapters.episodes import Log

DATA = Path("var/data")


@dataclass(frozen=True, slots=True)
class DataSet:
    """A log in the message format. Parts: training, then fit and tuning, then test."""

    name: str
    events: str
    items: str
    repeats: bool = False  # whether people take the same item again
    fit_share: float = 0.8  # of the events, by time: here the fit begins
    test_share: float = 0.1  # of the events, the last ones
    fit_at: float | None = None  # unix seconds, in place of the shares
    test_at: float | None = None
    most_items: int | None = None  # those that training saw most; None = all
    share: float = 1.0  # of the events, by time, that take part
    until: float | None = None  # unix seconds, in place of that share
    earlier_fit_at: float | None = None  # unix seconds, of `before_test`
    proof: bool = True  # part of `make evaluate`

    def before_test(self) -> DataSet:
        """The log as it ends where the test begins: settings are chosen on its last part."""
        if self.test_at is None:
            return replace(self, share=1 - self.test_share)
        return replace(self, until=self.test_at, test_at=self.fit_at, fit_at=self.earlier_fit_at)

    def taking_part(self, log: Log) -> Log:
        """The events that take part."""
        if self.until is not None:
            return log.select(slice(int(np.searchsorted(log.times, self.until))))
        return log.select(slice(int(len(log) * self.share)))


def _file(name: str, kind: str) -> str:
    return str(DATA / name / f"{kind}.jsonl")


def _day(month: int) -> float:
    return datetime(2017, month, 1, tzinfo=UTC).timestamp()


SETS = {
    found.name: found
    for found in (
        DataSet("movietweetings", "movietweetings", "movietweetings"),
        DataSet("ml-100k", _file("ml-100k", "events"), _file("ml-100k", "items")),
        DataSet(
            "groceries",
            _file("groceries", "events"),
            _file("groceries", "items"),
            repeats=True,
            fit_at=_day(9),
            test_at=_day(10),
            earlier_fit_at=_day(8),
            most_items=5_000,
        ),
        DataSet(
            "history",
            _file("history", "events"),
            _file("history", "items"),
            repeats=True,
            proof=False,
        ),
    )
}
"""Data sets by name; what is not shipped comes from `make data`, and `history` from
`benchmarks.git_history`."""
