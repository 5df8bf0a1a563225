"""When somebody has to look: figures against the thresholds of `monitor.*_alarm*`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from stream.config import Monitor
from stream.monitor.control import Comparison, Verdict
from stream.monitor.lags import Lag
from stream.monitor.runs import FAILED, Run


class Alarm(StrEnum):
    """What is wrong; the value is the label of `innerloop_monitor_alarm`."""

    DRIFT = "drift"
    LEARNING = "learning_not_helping"
    LAG = "lag"
    FRESHNESS = "freshness"
    WORKERS = "workers_absent"
    RETRAINING = "retraining_failed"


@dataclass(frozen=True, kw_only=True)
class Readings:
    """What alarms are decided on; None = not known."""

    drift: Mapping[str, float | None]  # bits, by what is told apart
    learning: Comparison
    lags: Mapping[int, Lag]
    freshness: float | None  # seconds, 99% of the lists
    absent_s: float  # for so long the workers' group has had no member
    run: Run | None  # the newest one


def alarms(seen: Readings, limits: Monitor) -> dict[Alarm, str]:
    """The alarms that are on, each with a sentence that says why and what to do."""
    found = {
        Alarm.DRIFT: _drift(seen, limits),
        Alarm.LEARNING: _learning(seen.learning),
        Alarm.LAG: _lag(seen, limits),
        Alarm.FRESHNESS: _freshness(seen, limits),
        Alarm.WORKERS: _absent(seen, limits),
        Alarm.RETRAINING: _retraining(seen.run),
    }
    return {alarm: why for alarm, why in found.items() if why}


def _drift(seen: Readings, limits: Monitor) -> str:
    of, bits = max(seen.drift.items(), key=lambda entry: entry[1] or 0.0, default=("", None))
    if bits is None or bits <= limits.drift_alarm:
        return ""
    return (
        f"Clicks by {of} differ by {bits:.3f} bits from before, {limits.drift_alarm:g} is allowed. "
        "See what changed on the site; retrain when it is there to stay."
    )


def _learning(learning: Comparison) -> str:
    if learning.verdict is not Verdict.NOT_HELPING:
        return ""
    return (
        f"Adapted lists hit {learning.adapted.rate:.4f}, those of the control "
        f"{learning.control.rate:.4f}; the gain lies between {learning.low:+.4f} and "
        f"{learning.high:+.4f}. Retrain, or roll back to the model before."
    )


def _lag(seen: Readings, limits: Monitor) -> str:
    late = {p: lag.seconds for p, lag in seen.lags.items() if lag.seconds > limits.lag_alarm_s}
    if not late:
        return ""
    worst = max(late, key=lambda partition: late[partition])
    return (
        f"{len(late)} partitions wait longer than {limits.lag_alarm_s:g} s, partition {worst} for "
        f"{late[worst]:.0f} s. Add workers, or see whether one hangs."
    )


def _freshness(seen: Readings, limits: Monitor) -> str:
    if seen.freshness is None or seen.freshness <= limits.freshness_alarm_s:
        return ""
    return (
        f"1% of the lists came {seen.freshness:.1f} s after their event or later, "
        f"{limits.freshness_alarm_s:g} s are allowed. See innerloop_stage_seconds of the workers."
    )


def _absent(seen: Readings, limits: Monitor) -> str:
    if seen.absent_s < limits.absent_alarm_s:
        return ""
    return f"No worker has been in the group for {seen.absent_s:.0f} s. Start one; nothing is lost."


def _retraining(run: Run | None) -> str:
    if run is None or run.status not in FAILED:
        return ""
    return f"Run {run.run} has ended as {run.status}: {run.verdict}. {remedy(run)}"


def remedy(run: Run) -> str:
    """What to do after a run that was no success."""
    if run.status == "timed_out":
        return f"Raise monitor.retrain_timeout_hours or shorten the window; see {run.log}."
    return f"Read {run.log}; the workers serve the model that they had."
