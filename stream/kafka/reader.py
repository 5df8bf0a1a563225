"""Readers without a group: up to a point, or for as long as the process runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import confluent_kafka as ck

from stream.config import Kafka
from stream.errors import OffsetOutOfRange
from stream.kafka import properties
from stream.kafka.admin import Admin
from stream.kafka.client import Late, Trouble, connect, log, native_positions, to_records
from stream.kafka.errors import is_denied, passes, translate
from stream.ports import Positions, Record, TopicPartition

AT_ONCE = 4
"""Reads of a `LogReader` that fetch at the same time; each holds some 10 MB that wait."""

_WAIT = 0.02  # seconds without a record after which the caller is let go


class _Follower:
    """Assigned partitions and how far each has been read, markers and aborted records included."""

    def __init__(
        self, properties: properties.Properties, positions: Positions, targets: Positions
    ) -> None:
        self._trouble = Trouble()
        self._consumer = connect(ck.Consumer, properties, self._trouble)
        self._targets = targets
        self._late = Late()
        self.open = {tp for tp, target in targets.items() if positions.get(tp, 0) < target}
        self._consumer.assign(native_positions(positions))

    def poll(self, limit: int, timeout: float) -> list[Record]:
        """Errors are raised after the records before them have been returned."""
        self._late.raise_first()
        with self._trouble.explained("reading"):
            messages = self._consumer.consume(limit, 0)
            if not messages and (first := self._consumer.poll(timeout)) is not None:
                messages = [first, *self._consumer.consume(limit - 1, 0)]
        records, errors = to_records(messages)
        for message in errors:
            self._note(message, message.error())
        if self.open:
            for tp, offset in {record[:2]: record.offset for record in records}.items():
                self._reached(tp, offset + 1)
        if not records:
            self._late.raise_first()
        return records

    def close(self) -> None:
        self._consumer.close()

    def _note(self, message: ck.Message, error: ck.KafkaError) -> None:
        tp = (str(message.topic()), int(message.partition() or 0))
        if error.code() == ck.KafkaError._PARTITION_EOF:
            self._reached(tp, int(message.offset() or 0))
        elif error.code() == ck.KafkaError._AUTO_OFFSET_RESET:
            self._late.add(OffsetOutOfRange(*tp))
        elif is_denied(error.name()) or not passes(error.name()):
            self._late.add(translate(error, f"reading {tp[0]}"))
        else:
            log.debug("%s: %s", error.name(), error.str())

    def _reached(self, tp: tuple[str, int], position: int) -> None:
        if position >= self._targets.get(TopicPartition(*tp), 0):
            self.open.discard(TopicPartition(*tp))


class LogReader:
    """`stream.ports.TimeReader`; every `read` has a connection of its own."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._reading = 0
        self._admin = Admin(kafka)

    def start_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Offsets of the oldest records that are still there."""
        return self._admin.start_offsets(partitions)

    def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """True end offsets, those of open transactions included."""
        return self._admin.end_offsets(partitions)

    def offsets_at(
        self, partitions: Sequence[TopicPartition], time_ms: int
    ) -> dict[TopicPartition, int]:
        """The first offset whose record is of `time_ms` or later, or the end."""
        return self._admin.offsets_at(partitions, time_ms)

    def read(
        self, positions: Positions, targets: Positions, limit: int = 10_000
    ) -> Iterator[list[Record]]:
        """Committed records from `positions` until every partition stands at its target.

        While `AT_ONCE` others are under way it yields empty batches. Raises `OffsetOutOfRange`
        when a position is not, or no longer, in the log.
        """
        wanted = {tp: at for tp, at in positions.items() if at < targets[tp]}
        self._check_ends(positions, targets)
        if not wanted:
            return
        while self._reading >= AT_ONCE:
            yield []
        self._reading += 1
        try:
            yield from self._fetched(wanted, {tp: targets[tp] for tp in wanted}, limit)
        finally:
            self._reading -= 1

    def _fetched(
        self, positions: Positions, targets: Positions, limit: int
    ) -> Iterator[list[Record]]:
        follower = _Follower(properties.reader(self._kafka), positions, targets)
        try:
            while follower.open:
                found = follower.poll(limit, _WAIT)
                yield [r for r in found if r.offset < targets[TopicPartition(r[0], r[1])]]
        finally:
            follower.close()

    def close(self) -> None:
        """Stop."""
        self._admin.close()

    def _check_ends(self, positions: Positions, targets: Positions) -> None:
        for tp, at in positions.items():
            if at > targets[tp]:
                raise OffsetOutOfRange(*tp)


class Tail:
    """`stream.ports.Tail`: all partitions of a topic from their beginning."""

    def __init__(self, kafka: Kafka, topic: str) -> None:
        with Admin(kafka) as admin:
            partitions = admin.partitions(topic)
            starts, targets = admin.start_offsets(partitions), admin.end_offsets(partitions)
        self._follower = _Follower(properties.tail(kafka), starts, targets)

    def poll(self, limit: int = 10_000, timeout: float = 0.0) -> list[Record]:
        """What came in since the last call."""
        return self._follower.poll(limit, timeout)

    def caught_up(self) -> bool:
        """Whether everything that was in the topic when the tail was opened has been returned."""
        return not self._follower.open

    def close(self) -> None:
        """Stop."""
        self._follower.close()
