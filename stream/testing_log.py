"""The log itself of the in-memory twins in `stream.testing`: partitions, transactions, groups."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock
from typing import Literal

from stream.errors import Aborted, OffsetOutOfRange, TopicError
from stream.murmur2 import partition_of
from stream.ports import Message, Record, TopicPartition


@dataclass(eq=False)
class Transaction:
    """What one producer has open or has ended."""

    state: Literal["open", "committed", "aborted"] = "open"
    first: dict[TopicPartition, int] = field(default_factory=dict)
    last: dict[TopicPartition, int] = field(default_factory=dict)
    offsets: dict[str, dict[TopicPartition, int]] = field(default_factory=dict)


@dataclass
class _Entry:
    """One offset: a record, or None for the marker that ends a transaction."""

    record: Record | None
    transaction: Transaction | None

    @property
    def visible(self) -> bool:
        """Whether readers of committed records see it."""
        return self.record is not None and (
            self.transaction is None or self.transaction.state == "committed"
        )


@dataclass
class _Partition:
    start: int = 0
    entries: list[_Entry] = field(default_factory=list)
    open: list[Transaction] = field(default_factory=list)


@dataclass
class _Group:
    generation: int = 0
    committed: dict[TopicPartition, int] = field(default_factory=dict)


class MemoryLog:
    """A cluster of one broker in memory; may be used from several threads."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.failing_commits = 0
        """How many of the next commits end as aborted, through no fault of the batch."""
        self.unheard_commits = 0
        """How many of the next commits go through without their producer hearing of it."""
        self.losing_reads = 0
        """How many of a group's next reads end in an error, and the records read are gone."""
        self.standing = set[TopicPartition]()
        """What groups get nothing of until they restart it."""
        self._clock = clock
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._limits: dict[str, int] = {}
        self._groups: dict[str, _Group] = {}
        self.epochs: dict[str, int] = {}
        self.transactions: dict[str, Transaction] = {}
        self._lock = RLock()

    def create(self, topic: str, partitions: int = 1, max_bytes: int = 1_048_588) -> None:
        """Make a topic; larger messages abort their transaction."""
        self._limits[topic] = max_bytes
        for i in range(partitions):
            self._partitions[TopicPartition(topic, i)] = _Partition()

    def limit(self, topic: str, max_bytes: int) -> None:
        """From now on a topic takes messages of so many bytes at most."""
        self._limits[topic] = max_bytes

    def partitions(self, topic: str) -> list[TopicPartition]:
        """All partitions of a topic. Raises `TopicError` when there is none."""
        found = [tp for tp in self._partitions if tp.topic == topic]
        if not found:
            raise TopicError(f"{topic} does not exist")
        return found

    def append(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        partition: int | None = None,
        headers: tuple[tuple[str, bytes], ...] = (),
    ) -> TopicPartition:
        """Write outside of transactions, to the key's murmur2 partition unless one is given."""
        if partition is None:
            partition = partition_of(key or b"", len(self.partitions(topic)))
        self.write(Message(topic, partition, key, value, headers), None)
        return TopicPartition(topic, partition)

    def records(self, topic: str) -> list[Record]:
        """All committed records of a topic, partition by partition."""
        found: list[Record] = []
        for tp in self.partitions(topic):
            end = self.end(tp)
            found += self.read(tp, self.partition(tp).start, end, limit=end)[0]
        return found

    def end(self, tp: TopicPartition) -> int:
        """The end offset, those of open transactions included."""
        return self.partition(tp).start + len(self.partition(tp).entries)

    def offset_at(self, tp: TopicPartition, time_ms: int) -> int:
        """The first offset whose record is of `time_ms` or later, or the end."""
        with self._lock:
            records = (entry.record for entry in self.partition(tp).entries)
            late = (r.offset for r in records if r is not None and r.timestamp >= time_ms)
            return next(late, self.end(tp))

    def delete_before(self, tp: TopicPartition, offset: int) -> None:
        """What retention does."""
        with self._lock:
            log = self.partition(tp)
            del log.entries[: max(0, offset - log.start)]
            log.start = max(log.start, offset)

    # -- used by the ports --------------------------------------------------------------------

    def partition(self, tp: TopicPartition) -> _Partition:
        """The log of one partition. Raises `TopicError` when there is none."""
        if tp not in self._partitions:
            raise TopicError(f"{tp.topic}[{tp.partition}] does not exist")
        return self._partitions[tp]

    def write(self, message: Message, transaction: Transaction | None) -> int:
        """Append and return the offset. Raises `Aborted` for a message that is too large."""
        tp = TopicPartition(message.topic, message.partition)
        size = len(message.key or b"") + len(message.value or b"")
        with self._lock:
            log, offset = self.partition(tp), self.end(tp)
            if size > self._limits[tp.topic]:
                raise Aborted(
                    f"{size} bytes to {tp.topic}[{tp.partition}], key {message.key!r}",
                    reason="msg_size_too_large",
                    blames_batch=True,
                )
            now = int(self._clock() * 1000)
            record = Record(*tp, offset, now, message.key, message.value, message.headers)
            log.entries.append(_Entry(record, transaction))
            if transaction is not None and transaction not in log.open:
                log.open.append(transaction)
                transaction.first[tp] = offset
            if transaction is not None:
                transaction.last[tp] = offset
        return offset

    def read(
        self, tp: TopicPartition, position: int, end: int, limit: int
    ) -> tuple[list[Record], int]:
        """Committed records from `position` below `end`, and the position behind them."""
        with self._lock:
            log = self.partition(tp)
            if not log.start <= position <= self.end(tp):
                raise OffsetOutOfRange(*tp)
            stable = min((t.first[tp] for t in log.open), default=end)
            records: list[Record] = []
            while position < min(end, stable) and len(records) < limit:
                entry = log.entries[position - log.start]
                if entry.visible and entry.record is not None:
                    records.append(entry.record)
                position += 1
        return records, position

    def end_transaction(
        self, transaction: Transaction, state: Literal["committed", "aborted"]
    ) -> None:
        """Write the markers; offsets count from here on when it is committed."""
        with self._lock:
            transaction.state = state
            for tp in transaction.first:
                self.partition(tp).entries.append(_Entry(None, transaction))
                self.partition(tp).open.remove(transaction)
            if state == "committed":
                for group, positions in transaction.offsets.items():
                    self.group(group).committed.update(positions)

    def group(self, name: str) -> _Group:
        """The group of this name, which comes to be by being asked for."""
        return self._groups.setdefault(name, _Group())

    def next_epoch(self, transactional_id: str) -> int:
        """Fence older producers of this id and abort what they left open."""
        with self._lock:
            left = self.transactions.pop(transactional_id, None)
            if left is not None:
                self.end_transaction(left, "aborted")
            self.epochs[transactional_id] = self.epochs.get(transactional_id, -1) + 1
            return self.epochs[transactional_id]
