"""How fresh lists are in spans of time, such as before, during and after a change of the model.

Read from the topics alone: the age of a list is the time from the record of the event that caused
it to the list's own record. What the commit takes on top is not in it; readers of committed lists
wait for that too. Lists that no event caused have no age.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import orjson

from stream.message_checks import COLD_KEY
from stream.ports import Record


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of production time; the end is not in it."""

    name: str
    start: float  # unix seconds
    end: float  # unix seconds


@dataclass(frozen=True, kw_only=True)
class Freshness:
    """Ages of the lists of a span."""

    span: Span
    lists: int
    p50: float  # seconds, nan without lists
    p99: float  # seconds, nan without lists


def freshness(
    events: Iterable[Record], lists: Iterable[Record], spans: Sequence[Span]
) -> list[Freshness]:
    """Ages by span, each list in that of its event; events are those of `events` by offset."""
    produced = {(e.partition, e.offset): e.timestamp for e in events}
    causes = [(r, cause) for r in lists if (cause := _cause(r)) in produced]
    began = np.array([produced[cause] for _, cause in causes if cause], np.float64) / 1000
    ages = np.array([r.timestamp for r, _ in causes], np.float64) / 1000 - began
    return [_summed(span, ages[(began >= span.start) & (began < span.end)]) for span in spans]


def _summed(span: Span, ages: np.ndarray) -> Freshness:
    if not len(ages):
        return Freshness(span=span, lists=0, p50=float("nan"), p99=float("nan"))
    p50, p99 = np.quantile(ages, [0.5, 0.99]).tolist()
    return Freshness(span=span, lists=len(ages), p50=p50, p99=p99)


def _cause(record: Record) -> tuple[int, int] | None:
    """Partition and offset of the event that a list answers, None where there is none."""
    if record.value is None or record.key == COLD_KEY.encode():
        return None
    cause = orjson.loads(record.value)["caused_by"]
    return None if cause is None else (cause["partition"], cause["offset"])
