"""Lag: how far the committed offsets are behind the ends of `events`, in messages and seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from stream.metrics import Metrics
from stream.ports import LogReader, TopicPartition

STANDS_S = 20.0
"""Seconds without a step after which a partition that has more to read stands still."""


@dataclass
class _Place:
    """Where the handled part of a partition ends."""

    position: int  # the next offset
    timestamp: float  # unix seconds, of the last record handled
    caught_up: float = 0.0  # unix seconds when nothing was left, as far as is known
    moved: float = 0.0  # unix seconds when it moved last, or was looked after


class LagWatch:
    """Knows what was handled, asks for the ends now and then, and sets the gauges.

    The oldest record that waits is younger than the last one handled, and younger than the last
    moment at which nothing waited: the later of the two bounds its age. So a record that comes
    after a quiet hour does not look an hour late.
    """

    def __init__(
        self, reader: LogReader, metrics: Metrics, clock: Callable[[], float] = time.time
    ) -> None:
        self._reader = reader
        self._metrics = metrics
        self._clock = clock
        self._places: dict[TopicPartition, _Place] = {}
        self._unknown: dict[TopicPartition, float] = {}  # unix seconds when it was first served

    def handled(
        self, positions: Mapping[TopicPartition, int], timestamps: Mapping[TopicPartition, int]
    ) -> None:
        """These positions are committed; `timestamps` are ms of the last records before them."""
        for tp, position in positions.items():
            before = self._places.get(tp)
            caught_up = 0.0 if before is None else before.caught_up
            self._places[tp] = _Place(position, timestamps[tp] / 1000, caught_up, self._clock())

    def unknown(self, served: Collection[TopicPartition]) -> bool:
        """Whether nothing has come of a partition for `STANDS_S`, so that it has no lag yet."""
        now, new = self._clock(), [tp for tp in served if tp not in self._places]
        self._unknown = {tp: self._unknown.get(tp, now) for tp in new}
        return any(now - since > STANDS_S for since in self._unknown.values())

    def found(self, positions: Mapping[TopicPartition, int]) -> None:
        """These are the next offsets; what waits there is at least as old as has been watched."""
        for tp, position in positions.items():
            if tp not in self._places:
                since = self._unknown.get(tp, self._clock())
                self._places[tp] = _Place(position, since, moved=since)

    def forget(self, tp: TopicPartition) -> None:
        """The partition is somebody else's now."""
        if self._places.pop(tp, None) is not None:
            self._metrics.forget_partition(tp.partition)

    def observe(self, served: Collection[TopicPartition]) -> list[TopicPartition]:
        """Set the gauges of the partitions served; those that have stood still for `STANDS_S`.

        Raises `BrokerUnavailable`.
        """
        known = [tp for tp in served if tp in self._places]
        asked = self._clock()
        ends = self._reader.end_offsets(known) if known else {}
        for tp in known:
            self._set(tp, self._places[tp], ends.get(tp, 0), asked)
        standing = [tp for tp in known if asked - self._places[tp].moved > STANDS_S]
        for tp in standing:
            self._places[tp].moved = asked
        return standing

    def _set(self, tp: TopicPartition, place: _Place, end: int, asked: float) -> None:
        behind = max(0, end - place.position)
        if not behind:
            place.caught_up = place.moved = asked
        age = self._clock() - max(place.timestamp, place.caught_up) if behind else 0.0
        label = str(tp.partition)
        self._metrics.lag_messages.labels(label).set(behind)
        self._metrics.lag_seconds.labels(label).set(max(0.0, age))
