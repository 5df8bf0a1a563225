"""Lag of the workers' group as the broker knows it, so that it is told while no worker runs.

In messages it is the distance from the committed offset to the end of a partition, in seconds the
age of the record at the committed offset, 0 at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stream.errors import OffsetOutOfRange
from stream.ports import LogReader, TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """How far the workers are behind in a partition."""

    messages: int
    seconds: float


class GroupLag:
    """Looks at the partitions of `events` whenever asked; a record's time is read once."""

    def __init__(
        self,
        reader: LogReader,
        committed: Callable[[], Mapping[TopicPartition, int]],
        partitions: Sequence[TopicPartition],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`committed` asks for the offsets of the workers' group."""
        self._reader = reader
        self._committed = committed
        self._partitions = partitions
        self._clock = clock
        self._oldest: dict[TopicPartition, tuple[int, float]] = {}  # offset, and its record's time

    def observe(self) -> dict[int, Lag]:
        """Lag by partition. Raises `BrokerUnavailable`."""
        ends = self._reader.end_offsets(self._partitions)
        starts = self._reader.start_offsets(self._partitions)
        committed = self._committed()
        places = {tp: max(starts[tp], committed.get(tp, starts[tp])) for tp in self._partitions}
        self._look({tp: at for tp, at in places.items() if at < ends[tp]}, ends)
        return {tp.partition: self._lag(tp, at, ends[tp]) for tp, at in places.items()}

    def _lag(self, tp: TopicPartition, at: int, end: int) -> Lag:
        if at >= end or self._oldest.get(tp, (-1, 0.0))[0] != at:
            return Lag(messages=max(0, end - at), seconds=0.0)
        return Lag(messages=end - at, seconds=max(0.0, self._clock() - self._oldest[tp][1]))

    def _look(
        self, places: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
    ) -> None:
        """Read the record at each place that is new."""
        wanted = {tp: at for tp, at in places.items() if self._oldest.get(tp, (-1,))[0] != at}
        if not wanted:
            return
        try:
            self._read_first(wanted, {tp: ends[tp] for tp in wanted})
        except OffsetOutOfRange:
            return  # retention moved on between the questions; the next look will find it

    def _read_first(
        self, places: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
    ) -> None:
        missing = set(places)
        for batch in self._reader.read(places, ends):
            for record in batch:
                tp = TopicPartition(record.topic, record.partition)
                if tp in missing:
                    missing.discard(tp)
                    self._oldest[tp] = (places[tp], record.timestamp / 1000)
            if not missing:
                return
