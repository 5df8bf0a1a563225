"""Every metric of the monitor, declared once.

Counters add up over several monitors, each of which follows users of its own partitions. Gauges are
about the latest `monitor.window_minutes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from stream.monitor.report import Report
from stream.monitor.runs import FAILED, Status
from stream.monitor.watch import Watch
from stream.monitor.windows import Group

_COUNTED = {
    "lists": ("innerloop_monitor_lists", "Lists published"),
    "judged": ("innerloop_monitor_judged", "Interactions of users who had such a list"),
    "hits": ("innerloop_monitor_hits", "Of them, with an item of the list's first K"),
    "shown": ("innerloop_monitor_shown", "Items of a list's first K that were shown"),
    "clicked": ("innerloop_monitor_clicked", "Of them, acted on within the feedback window"),
}
"""Field of `Sums` -> name and meaning."""

OUTCOMES: tuple[Status, ...] = ("succeeded", "refused", *FAILED)


class Totals(Collector):
    """The counters, which are kept elsewhere and read when Prometheus asks."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.watch: Watch | None = None
        self.outcomes: Mapping[Status, int] = {}
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        watch = self.watch
        groups = {} if watch is None else dict(watch.totals)
        for field, (name, meaning) in _COUNTED.items():
            family = CounterMetricFamily(name, meaning, labels=Group._fields)
            for group, sums in groups.items():
                family.add_metric(list(group), getattr(sums, field))
            yield family
        yield CounterMetricFamily(
            "innerloop_monitor_events",
            "Accepted events that were followed",
            watch.events if watch else 0,
        )
        yield CounterMetricFamily(
            "innerloop_monitor_unreadable",
            "Records that could not be read",
            watch.unreadable if watch else 0,
        )
        yield _labelled(
            "innerloop_monitor_unjudged",
            "Events that no hit rate counts",
            "reason",
            watch.unjudged if watch else {},
        )
        yield _labelled(
            "innerloop_retrainings",
            "Runs of retraining that ended",
            "outcome",
            {outcome: self.outcomes.get(outcome, 0) for outcome in OUTCOMES},
        )


class MonitorMetrics:
    """The metrics of one monitor in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.totals = Totals(self.registry)
        self._hit_rate = self._gauge(
            "innerloop_monitor_hit_rate", "Hits over judged interactions", "by", "value"
        )
        self._ctr = self._gauge(
            "innerloop_monitor_ctr",
            "Clicks over items shown, or hits over places of lists",
            "by",
            "value",
            "basis",
        )
        self._churn = self._gauge(
            "innerloop_monitor_churn",
            "Share of a list that was not in the user's list before",
            "by",
            "value",
        )
        self._freshness = self._gauge(
            "innerloop_monitor_freshness_seconds", "Event's record to its list's", "quantile"
        )
        self._coverage = self._gauge(
            "innerloop_monitor_coverage", "Items in some list's first K over items of the catalogue"
        )
        self._drift = self._gauge(
            "innerloop_monitor_drift_bits", "Divergence of clicks from those before", "of"
        )
        self._gain = self._gauge(
            "innerloop_monitor_learning_gain",
            "Hit rate of adapted lists less the control's",
            "bound",
        )
        self._lag_messages = self._gauge(
            "innerloop_monitor_lag_messages", "Records behind the end of events", "partition"
        )
        self._lag_seconds = self._gauge(
            "innerloop_monitor_lag_seconds",
            "Age of the record at the committed offset",
            "partition",
        )
        self._workers = self._gauge("innerloop_monitor_workers", "Members of the workers' group")
        self._looked = self._gauge(
            "innerloop_monitor_looked_timestamp_seconds", "When lag and workers were last known"
        )
        self._share = self._gauge("innerloop_monitor_users_followed", "Share of users, by hash")
        self._alarm = self._gauge("innerloop_monitor_alarm", "1 while the alarm is on", "alarm")
        self._running = self._gauge("innerloop_retraining_running", "1 while a run is under way")
        self._seconds = self._gauge("innerloop_retraining_seconds", "Duration of the newest run")
        self._exit_code = self._gauge(
            "innerloop_retraining_exit_code", "Of the newest run; -1 = it was killed"
        )
        self._finished = self._gauge(
            "innerloop_retraining_finished_timestamp_seconds", "When the newest run ended"
        )

    def show(self, report: Report, watch: Watch, outcomes: Mapping[Status, int]) -> None:
        """Take the counters in and set the gauges; what is not known is left out."""
        self.totals.watch, self.totals.outcomes = watch, outcomes
        self._show_rows(report)
        _fill(self._freshness, {(f"0.{p}",): v for p, v in report.freshness.items()})
        _fill(self._drift, {(of,): bits for of, bits in report.drift.items()})
        _fill(self._coverage, {(): report.coverage})
        _fill(self._gain, {(bound,): value for bound, value in _bounds(report).items()})
        lags = {(str(partition),): lag for partition, lag in report.lags.items()}
        _fill(self._lag_messages, {name: lag.messages for name, lag in lags.items()})
        _fill(self._lag_seconds, {name: lag.seconds for name, lag in lags.items()})
        _fill(self._alarm, {(alarm.value,): bool(why) for alarm, why in report.alarms.items()})
        self._workers.set(report.workers)
        self._share.set(report.share)
        self._looked.set(report.looked_at)
        self._show_run(report)

    def _show_rows(self, report: Report) -> None:
        rows = [(by, row) for by, rows in report.figures.items() for row in rows]
        _fill(self._hit_rate, {(by, row.name): row.hit_rate for by, row in rows})
        _fill(self._ctr, {(by, row.name, row.ctr_by): row.ctr for by, row in rows})
        _fill(self._churn, {(by, row.name): row.churn for by, row in rows})

    def _show_run(self, report: Report) -> None:
        run = report.run
        self._running.set(run is not None and run.status == "running")
        if run is None or run.finished_at is None or run.seconds is None:
            return
        self._seconds.set(run.seconds)
        self._exit_code.set(-1 if run.exit_code is None else run.exit_code)
        self._finished.set(run.finished_at / 1000)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(name, meaning, labels, registry=self.registry)


def _fill(gauge: Gauge, values: Mapping[tuple[str, ...], float | None]) -> None:
    """Exactly these values; one that is not known has no series, or is not a number."""
    if () in values:
        found = values[()]
        gauge.set(float("nan") if found is None else found)
        return
    gauge.clear()
    for labels, value in values.items():
        if value is not None:
            gauge.labels(*labels).set(value)


def _bounds(report: Report) -> dict[str, float]:
    """Gain and interval; nothing where there are no two users to compare."""
    learning = report.learning
    if min(learning.adapted.users, learning.control.users) < 2:
        return {}
    return {"low": learning.low, "mean": learning.gain, "high": learning.high}


def _labelled(name: str, meaning: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=[label])
    for value, count in dict(values).items():
        family.add_metric([value], count)
    return family
