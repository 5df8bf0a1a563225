"""What a batch does, if it is committed, and what metrics and the log say of it afterwards."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream.message_checks import Reason, Skip
from stream.metrics import Metrics
from stream.ports import Message, Put, Record, TopicPartition

Ages = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass
class Outcome:
    """What a batch does, if it is committed."""

    messages: list[Message] = field(default_factory=list)
    puts: dict[int, list[Put]] = field(default_factory=lambda: defaultdict(list))
    positions: dict[TopicPartition, int] = field(default_factory=dict)
    timestamps: dict[TopicPartition, int] = field(default_factory=dict)  # ms, of the last record
    produced: Ints = field(
        default_factory=lambda: np.zeros(0, np.int64)
    )  # ms, of each list's cause
    kinds: Counter[str] = field(default_factory=Counter)
    strategies: Counter[str] = field(default_factory=Counter)
    dead: Counter[Reason] = field(default_factory=Counter)
    skipped: Counter[Skip] = field(default_factory=Counter)
    newest: dict[int, int] = field(default_factory=dict)  # ms of event time, by partition
    cold: list[int] = field(default_factory=list)  # partitions whose `_cold` list is in
    expired: int = 0  # users
    refreshed: int = 0  # users
    misrouted: int = 0
    steps: int = 0
    refused: int = 0
    damaged: int = 0  # user records that nobody can read


def positions_of(records: Sequence[Record]) -> Outcome:
    """An outcome that says where the batch ends."""
    outcome = Outcome()
    for record in records:
        tp = TopicPartition(record.topic, record.partition)
        outcome.positions[tp] = record.offset + 1
        outcome.timestamps[tp] = record.timestamp
    return outcome


def count(
    metrics: Metrics, outcome: Outcome, ages: Ages, seconds: float, spent: Mapping[str, float]
) -> None:
    """Add a committed batch to the metrics; `ages` [lists] and `spent` by stage are seconds."""
    m = metrics
    m.commits.inc()
    m.freshness.observe(ages)
    m.waiting.observe(np.maximum(ages - seconds, 0.0))
    m.steps.inc(outcome.steps)
    m.refused.inc(outcome.refused)
    m.damaged.inc(outcome.damaged)
    m.misrouted.inc(outcome.misrouted)
    for stage, took in spent.items():
        m.stage.labels(stage).observe(took)
    if outcome.positions:
        m.batch_events.observe(sum(outcome.kinds.values()) + outcome.dead.total())
    for counter, found in (
        (m.events, outcome.kinds),
        (m.lists, outcome.strategies),
        (m.dead_letters, outcome.dead),
        (m.skipped, outcome.skipped),
    ):
        for label, times in found.items():
            counter.labels(label).inc(times)


def line(
    outcome: Outcome, ages: Ages, seconds: float, spent: Mapping[str, float]
) -> dict[str, object]:
    """Everything about a batch, for one log line; times in milliseconds."""
    found: dict[str, object] = {
        "events": sum(outcome.kinds.values()),
        "lists": len(ages),
        "steps": outcome.steps,
        "dead": outcome.dead.total(),
        "skipped": outcome.skipped.total(),
        "partitions": len(outcome.positions),
        "ms": round(1000 * seconds, 1),
    }
    if len(ages):
        p50, worst = np.quantile(ages, [0.5, 1.0]).tolist()
        found |= {"fresh_ms_p50": round(1000 * p50), "fresh_ms_max": round(1000 * worst)}
    return found | {f"{k}_ms": round(1000 * v, 1) for k, v in spent.items()}
