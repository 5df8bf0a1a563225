"""Every metric, declared once.

Freshness of a list is the time from the production timestamp of the event that caused it to the
moment its transaction was committed; the stages say where it went.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

STAGES = (
    "decode",
    "load",
    "step",
    "fold",
    "rank",
    "encode",
    "signals",
    "produce",
    "commit",
    "apply",
)
"""The stages of a batch, in order."""

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class BatchHistogram(Collector):
    """A histogram that takes a whole batch of observations at once."""

    def __init__(
        self, name: str, documentation: str, registry: CollectorRegistry, buckets: tuple[float, ...]
    ) -> None:
        self._name, self._documentation = name, documentation
        self._bounds = np.array(buckets)
        self._counts = np.zeros(len(buckets) + 1, dtype=np.int64)
        self._sum = 0.0
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, values: np.ndarray) -> None:
        """Add observations, [n] seconds."""
        counts = np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
        with self._lock:
            self._counts += counts
            self._sum += float(values.sum())

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        with self._lock:
            cumulative, total = np.cumsum(self._counts).tolist(), self._sum
        bounds = [*(str(b) for b in self._bounds.tolist()), "+Inf"]
        family = HistogramMetricFamily(self._name, self._documentation)
        family.add_metric([], list(zip(bounds, cumulative, strict=True)), total)
        yield family


class Metrics:
    """The metrics of one worker in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.freshness = BatchHistogram(
            "innerloop_freshness_seconds",
            "Event record's timestamp to its list committed",
            r,
            _SECONDS,
        )
        self.stage = Histogram(
            "innerloop_stage_seconds",
            "Time of a batch by stage",
            ["stage"],
            buckets=_SECONDS,
            registry=r,
        )
        self.waiting = BatchHistogram(
            "innerloop_waiting_seconds",
            "Event record's timestamp to the start of its batch",
            r,
            _SECONDS,
        )
        self.batch_events = Histogram(
            "innerloop_batch_events",
            "Records in a batch",
            buckets=(1, 10, 50, 100, 200, 500, 1000, 2000, 5000),
            registry=r,
        )
        self.lag_messages = Gauge(
            "innerloop_lag_messages", "Records behind the end of events", ["partition"], registry=r
        )
        self.lag_seconds = Gauge(
            "innerloop_lag_seconds",
            "Age of the record at the committed offset",
            ["partition"],
            registry=r,
        )
        self.events = Counter("innerloop_events", "Accepted events", ["event"], registry=r)
        self.steps = Counter("innerloop_steps", "Inner-loop steps taken", registry=r)
        self.refused = Counter(
            "innerloop_steps_refused", "Steps not finite or out of trust", registry=r
        )
        self.damaged = Counter(
            "innerloop_damaged_records", "User records that nobody can read", registry=r
        )
        self.lists = Counter("innerloop_lists", "Lists published", ["strategy"], registry=r)
        self.dead_letters = Counter(
            "innerloop_dead_letters", "Dead letters", ["reason"], registry=r
        )
        self.skipped = Counter(
            "innerloop_skipped", "Events counted and skipped", ["reason"], registry=r
        )
        self.misrouted = Counter(
            "innerloop_misrouted", "Records off the partition of their key", registry=r
        )
        self.gaps = Counter(
            "innerloop_gap_records", "Records lost to retention before read", registry=r
        )
        self.commits = Counter("innerloop_commits", "Transactions committed", registry=r)
        self.aborts = Counter("innerloop_aborts", "Transactions aborted", ["reason"], registry=r)
        self.restarts = Counter(
            "innerloop_starts_over",
            "Times that the worker restored from the broker's word alone",
            registry=r,
        )
        self.stalls = Counter(
            "innerloop_stalls",
            "Times that a partition was read anew, as nothing came of it though there was more",
            registry=r,
        )
        self.expired = Counter("innerloop_expired_users", "Users who no longer act", registry=r)
        self.items = Gauge("innerloop_items", "Items that can be ranked", registry=r)
        self.item_seconds = BatchHistogram(
            "innerloop_item_seconds",
            "Item record's timestamp to the item being ranked",
            r,
            _SECONDS,
        )
        self.bad_items = Counter(
            "innerloop_bad_items", "Items that could not be read", ["reason"], registry=r
        )
        self.partitions = Gauge("innerloop_partitions", "Partitions served", registry=r)
        self.restoring = Gauge("innerloop_restoring", "Partitions being restored", registry=r)
        self.restored = Counter(
            "innerloop_restored_records", "Changelog records replayed", registry=r
        )
        self.model = Gauge(
            "innerloop_model", "Share of the users that a model serves", ["version"], registry=r
        )
        self.swaps = Counter("innerloop_model_swaps", "Changes of what serves", registry=r)
        self.swap_pause = Histogram(
            "innerloop_model_pause_seconds",
            "How long batches waited for a change of the model",
            buckets=_SECONDS,
            registry=r,
        )
        self.models_refused = Counter(
            "innerloop_models_refused", "Releases that could not serve", registry=r
        )
        self.refreshed = Counter(
            "innerloop_refreshed_users", "Users given a list by a new model", registry=r
        )
        self.refresh_left = Gauge(
            "innerloop_refresh_left", "Active users whom an older model served last", registry=r
        )

    def forget_partition(self, partition: int) -> None:
        """Report no lag of a partition that another worker serves now."""
        for gauge in (self.lag_messages, self.lag_seconds):
            gauge.remove(str(partition))
