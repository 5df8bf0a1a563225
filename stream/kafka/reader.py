"""Readers without a group: up to a point, or for as long as the process runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import confluent_kafka as ck

from stream import log as log_of_stream
from stream.config import Kafka
from stream.errors import OffsetOutOfRange
from stream.kafka import properties
from stream.kafka.admin import Admin, Ends
from stream.kafka.client import Late, Trouble, connect, log, native_positions, to_records
from stream.kafka.errors import is_denied, passes, translate
from stream.ports import Positions, Record, TopicPartition

AT_ONCE = 4
"""Reads of a `LogReader` that fetch at the same time; each holds some 10 MB that wait."""

LOOK_S = 10.0
"""Seconds between two looks at partitions of which nothing comes."""

_WAIT = 0.02  # seconds without a record after which the caller is let go

_log = log_of_stream.get("reader")


class _Follower:
    """Assigned partitions and how far each has been read, markers and aborted records included."""

    def __init__(
        self,
        admin: Admin,
        properties: properties.Properties,
        positions: Positions,
        targets: Positions,
    ) -> None:
        self._admin = admin
        self._properties = properties
        self._targets = targets
        self._late = Late()
        self._at = dict(positions)
        self.open = {tp for tp, target in targets.items() if positions.get(tp, 0) < target}
        self._begin()

    def _begin(self) -> None:
        self._trouble = Trouble()
        self._consumer = connect(ck.Consumer, self._properties, self._trouble)
        self._consumer.assign(native_positions(self._at))
        self._look_due = time.monotonic() + LOOK_S
        self._asked: Callable[[], Ends] | None = None  # while there is no answer yet
        self._stood: dict[TopicPartition, tuple[int, int]] = {}  # at the last look: where, of what

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
        for tp, offset in {record[:2]: record.offset for record in records}.items():
            self._reached(tp, offset + 1)
        if len(messages) < limit:  # or else there may be more that was read already
            self._look()
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
        self._at[TopicPartition(*tp)] = position
        if position >= self._targets.get(TopicPartition(*tp), 0):
            self.open.discard(TopicPartition(*tp))

    def _look(self) -> None:
        """Now and then: begin anew where nothing came though there is more, or say why not.

        Ends are those of committed records (the last stable offset). Where that does not move,
        nobody can read on before the transaction that is open there has ended.
        """
        if self._asked is not None:
            if (ends := self._asked()) is not None:
                self._stood = {tp: (self._at[tp], end) for tp, end in ends.items()}
                self._asked = None
            return
        if time.monotonic() < self._look_due:
            return
        self._look_due = time.monotonic() + LOOK_S
        standing = {tp for tp, (at, _) in self._stood.items() if self._at[tp] == at}
        missed = {tp for tp in standing if self._at[tp] < self._stood[tp][1]}
        for tp in sorted((standing & self.open) - missed):
            why = "a transaction is open there: see docs/operations.md"
            _log.warning("held back", **tp._asdict(), offset=self._at[tp], why=why)
        if missed:
            _log.warning("reading anew", partitions=[f"{tp[0]}[{tp[1]}]" for tp in sorted(missed)])
            self.close()
            self._begin()
        self._asked = self._admin.ask_committed_ends(list(self._at))


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
        follower = _Follower(self._admin, properties.reader(self._kafka), positions, targets)
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
        self._admin = Admin(kafka)
        partitions = self._admin.partitions(topic)
        starts, targets = self._admin.start_offsets(partitions), self._admin.end_offsets(partitions)
        self._follower = _Follower(self._admin, properties.tail(kafka), starts, targets)

    def poll(self, limit: int = 10_000, timeout: float = 0.0) -> list[Record]:
        """What came in since the last call."""
        return self._follower.poll(limit, timeout)

    def caught_up(self) -> bool:
        """Whether everything that was in the topic when the tail was opened has been returned."""
        return not self._follower.open

    def close(self) -> None:
        """Stop."""
        self._follower.close()
        self._admin.close()
