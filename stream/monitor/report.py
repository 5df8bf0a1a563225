"""What a monitor tells, as values and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stream.monitor.alarms import Alarm
from stream.monitor.control import Comparison
from stream.monitor.lags import Lag
from stream.monitor.runs import Run
from stream.monitor.windows import Group, Sums, by, click_through, rate
from stream.tables import instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Figures of the lists that have a strategy, cohort or model in common; None = nothing yet."""

    name: str
    lists: int
    judged: int
    hits: int
    hit_rate: float | None
    ctr: float | None
    ctr_by: str
    churn: float | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything a monitor knows at a moment."""

    at: float  # unix seconds
    started: float
    share: float  # of the users who are followed
    figures: Mapping[str, list[Row]]  # by strategy, shots and model
    freshness: Mapping[str, float | None]  # percentile -> seconds
    items_listed: int
    items: int
    drift: Mapping[str, float | None]
    learning: Comparison
    lags: Mapping[int, Lag]
    workers: int
    looked_at: float  # when lag and workers were seen, unix seconds
    run: Run | None
    alarms: Mapping[Alarm, str | None]

    @property
    def coverage(self) -> float | None:
        """Items among the first K of some list of the window over items of the catalogue."""
        return rate(self.items_listed, self.items)

    def to_json(self, window_minutes: float, k: int) -> dict[str, Any]:
        """The report in plain types."""
        return {
            "at": instant(round(1000 * self.at)),
            "watching_since": instant(round(1000 * self.started)),
            "window_minutes": window_minutes,
            "window_complete": self.at - self.started >= 60 * window_minutes,
            "k": k,
            "users_followed": self.share,
            "figures": {name: [asdict(row) for row in rows] for name, rows in self.figures.items()},
            "freshness_seconds": dict(self.freshness),
            "coverage": {
                "items_listed": self.items_listed,
                "items": self.items,
                "share": self.coverage,
            },
            "drift_bits": dict(self.drift),
            "learning": _learning(self.learning),
            "workers": self.workers,
            "lag_at": instant(round(1000 * self.looked_at)) if self.looked_at else None,
            "lag": {str(p): asdict(lag) for p, lag in sorted(self.lags.items())},
            "retraining": None if self.run is None else _run(self.run),
            "alarms": {alarm.value: why for alarm, why in self.alarms.items()},
        }


def rows(groups: Mapping[Group, Sums], dimension: str, k: int) -> list[Row]:
    """One row for each value of a dimension of `Group`, in the order of names."""
    return [_row(name, sums, k) for name, sums in sorted(by(groups, dimension).items())]


def _row(name: str, sums: Sums, k: int) -> Row:
    ctr, basis = click_through(sums, k)
    return Row(
        name=name,
        lists=sums.lists,
        judged=sums.judged,
        hits=sums.hits,
        hit_rate=rate(sums.hits, sums.judged),
        ctr=ctr,
        ctr_by=basis,
        churn=rate(sums.new_items, sums.compared),
    )


def _learning(found: Comparison) -> dict[str, Any]:
    kinds = {
        name: {"users": kind.users, "judged": kind.judged, "hit_rate": kind.rate}
        for name, kind in (("adapted", found.adapted), ("control", found.control))
    }
    known = min(found.adapted.users, found.control.users) > 1
    interval = [found.low, found.high] if known else None
    gain = found.gain if known else None
    return {"verdict": found.verdict.value, "gain": gain, "interval": interval, **kinds}


def _run(run: Run) -> dict[str, Any]:
    return {
        "run": run.run,
        "status": run.status,
        "monitor": run.monitor,
        "started_at": instant(run.started_at),
        "seconds": run.seconds,
        "exit_code": run.exit_code,
        "verdict": run.verdict,
        "output": run.log,
    }
