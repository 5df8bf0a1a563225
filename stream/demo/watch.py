"""What the worker says of itself on `/metrics`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families as parse

from stream.config import Settings
from stream.kafka.admin import Admin


@dataclass(frozen=True, slots=True)
class Reading:
    """Figures of one moment."""

    p50: float  # seconds, freshness as the worker measures it
    p99: float
    lag_messages: float
    lag_seconds: float
    events: float
    lists: float
    dead: float
    items: float
    skipped: float


def read(text: bytes) -> Reading:
    """The figures in a page of `/metrics`."""
    values: dict[str, float] = {}
    bounds: list[tuple[float, float]] = []
    for family in parse(text.decode()):
        for sample in family.samples:
            if sample.name == "innerloop_freshness_seconds_bucket":
                bounds.append((float(sample.labels["le"]), sample.value))
            elif sample.name == "innerloop_lag_seconds":
                values[sample.name] = max(values.get(sample.name, 0.0), sample.value)
            else:
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return Reading(
        p50=quantile(bounds, 0.5),
        p99=quantile(bounds, 0.99),
        lag_messages=values.get("innerloop_lag_messages", 0.0),
        lag_seconds=values.get("innerloop_lag_seconds", 0.0),
        events=values.get("innerloop_events_total", 0.0),
        lists=values.get("innerloop_lists_total", 0.0),
        dead=values.get("innerloop_dead_letters_total", 0.0),
        items=values.get("innerloop_items", 0.0),
        skipped=values.get("innerloop_skipped_total", 0.0),
    )


def lag(settings: Settings) -> int:
    """Events that the workers have not committed yet."""
    kafka = settings.kafka
    with Admin(kafka) as admin:
        partitions = admin.partitions(kafka.topic("events"))
        ends = admin.end_offsets(partitions)
        done = admin.committed(kafka.group_id, partitions)
    return sum(ends[tp] - done.get(tp, 0) for tp in partitions)


def quantile(bounds: list[tuple[float, float]], share: float) -> float:
    """The quantile of a histogram's cumulative buckets, linear inside a bucket; nan when empty."""
    total = bounds[-1][1] if bounds else 0.0
    if total == 0:
        return math.nan
    low, below = 0.0, 0.0
    for high, count in bounds:
        if count >= share * total:
            if high == math.inf:
                return low
            return low + (high - low) * (share * total - below) / max(count - below, 1e-12)
        low, below = high, count
    return low
