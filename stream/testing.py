"""In-memory twins of the log ports, for tests of the worker and of what stands on its topics.

    log = MemoryLog()
    log.create("events", partitions=4)
    log.append("events", b"user", b"{}")
    consumer, producer = MemoryConsumer(log), MemoryProducer(log, "worker-1")

They keep what the worker relies on: offsets with transaction markers, committed reads only up to
the oldest open transaction, fencing by transactional id and by group generation. A group has one
member: the one that subscribed last. Nothing waits; a call that finds nothing returns at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from stream.errors import Aborted, BrokerUnavailable, OffsetOutOfRange, ProducerFenced
from stream.ports import Message, Positions, RebalanceListener, Record, TopicPartition
from stream.testing_log import MemoryLog, Transaction

__all__ = ["MemoryConsumer", "MemoryLog", "MemoryProducer", "MemoryReader", "MemoryTail"]


class MemoryConsumer:
    """`stream.ports.GroupConsumer` in memory."""

    def __init__(
        self,
        log: MemoryLog,
        group: str = "innerloop",
        *,
        auto_offset_reset: Literal["earliest", "error"] = "earliest",
    ) -> None:
        self._log = log
        self._group = group
        self._reset = auto_offset_reset
        self._topic: str | None = None
        self._listener: RebalanceListener | None = None
        self._generation = -1
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()

    def subscribe(self, topic: str, listener: RebalanceListener) -> None:
        """Become the one member of the group, from the next `consume` on."""
        group = self._log.group(self._group)
        group.generation += 1
        self._topic, self._listener, self._generation = topic, listener, group.generation

    def consume(self, limit: int, timeout: float) -> list[Record]:
        """At most `limit` records; returns at once."""
        self._rebalance()
        records: list[Record] = []
        for tp in sorted(self._positions.keys() - self._paused - self._log.standing):
            try:
                start = self._started(tp)
                found, position = self._log.read(tp, start, self._log.end(tp), limit - len(records))
            except OffsetOutOfRange:
                if records:
                    break  # these first; the next call raises
                raise
            records += found
            self._positions[tp] = position
        if records and self._log.losing_reads:
            self._log.losing_reads -= 1
            raise BrokerUnavailable("an error came among the records")
        return records

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver nothing of these."""
        self._paused.update(partitions)

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver again."""
        self._paused.difference_update(partitions)

    def seek(self, positions: Positions) -> None:
        """Go on from these offsets. Others' partitions are ignored."""
        self._positions |= {tp: at for tp, at in positions.items() if tp in self._positions}

    def restart(self, positions: Positions) -> None:
        """As `seek`, for partitions of which nothing comes."""
        self._log.standing.difference_update(positions)
        self.seek(positions)

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Committed offsets; partitions without one are left out."""
        committed = self._log.group(self._group).committed
        return {tp: committed[tp] for tp in partitions if tp in committed}

    def assignment(self) -> set[TopicPartition]:
        """The partitions that are owned now."""
        return set(self._positions)

    def group_metadata(self) -> object:
        """The group and the generation in which this member joined it."""
        return (self._group, self._generation)

    def hurry(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Stop; the partitions are given back."""
        if self._positions and self._listener is not None:
            self._listener.revoked(sorted(self._positions), lost=False)
        self._positions, self._listener = {}, None

    def _rebalance(self) -> None:
        if self._listener is None or self._topic is None:
            return
        current = self._log.group(self._group).generation == self._generation
        if not current and self._positions:
            gone, self._positions = sorted(self._positions), {}
            self._paused.clear()
            self._listener.revoked(gone, lost=True)
        elif current and not self._positions:
            mine = self._log.partitions(self._topic)
            self._positions = {**dict.fromkeys(mine, -1), **self.committed(mine)}
            self._paused.update(mine)
            self._listener.assigned(mine)

    def _started(self, tp: TopicPartition) -> int:
        if self._positions[tp] >= 0:
            return self._positions[tp]
        if self._reset == "error":
            raise OffsetOutOfRange(*tp)
        return self._log.partition(tp).start


class MemoryProducer:
    """`stream.ports.TransactionalProducer` in memory."""

    def __init__(self, log: MemoryLog, transactional_id: str = "worker") -> None:
        self._log = log
        self._id = transactional_id
        self._epoch = -1
        self._failed = False

    def init(self) -> None:
        """Fence older producers of the same id and abort what they left open."""
        self._epoch = self._log.next_epoch(self._id)

    def hurry(self) -> None:
        """Nothing waits here."""

    def begin(self) -> None:
        """Open a transaction."""
        self._check_epoch()
        self._failed = False
        self._log.transactions[self._id] = Transaction()

    def produce(self, messages: Iterable[Message]) -> None:
        """Write to explicit partitions. Raises `Aborted` for a message that is too large."""
        self._check_epoch()
        transaction = self._log.transactions[self._id]
        for message in messages:
            try:
                self._log.write(message, transaction)
            except Aborted:
                self._failed = True
                raise

    def send_offsets(self, positions: Positions, group_metadata: object) -> None:
        """Add the consumed positions. Raises `Aborted` from a member that lost its partitions."""
        self._check_epoch()
        if not isinstance(group_metadata, tuple):
            raise TypeError("group_metadata is that of a MemoryConsumer")
        group, generation = group_metadata
        if generation != self._log.group(group).generation:
            self._failed = True
            raise Aborted(f"{group}: no longer a member", reason="illegal_generation")
        self._log.transactions[self._id].offsets.setdefault(group, {}).update(positions)

    def commit(self) -> dict[TopicPartition, int]:
        """Commit. Returns the highest offset that was written to each partition."""
        self._check_epoch()
        if self._failed:
            raise Aborted("an earlier call failed", reason="state")
        if self._log.failing_commits > 0:
            self._log.failing_commits -= 1
            raise Aborted("the broker aborted it", reason="unknown_server_error")
        transaction = self._log.transactions.pop(self._id)
        self._log.end_transaction(transaction, "committed")
        if self._log.unheard_commits > 0:
            self._log.unheard_commits -= 1
            raise ProducerFenced(f"transactional id {self._id}: no answer to the commit")
        return transaction.last

    def abort(self) -> None:
        """Throw the transaction away."""
        self._check_epoch()
        transaction = self._log.transactions.pop(self._id, None)
        if transaction is not None:
            self._log.end_transaction(transaction, "aborted")

    def renew(self) -> None:
        """Begin anew with the same id, after an error that this producer does not survive."""
        self.init()

    def close(self) -> None:
        """Stop; an open transaction is left to the next `init` of this id."""

    def _check_epoch(self) -> None:
        if self._epoch != self._log.epochs.get(self._id):
            raise ProducerFenced(f"transactional id {self._id}")


class MemoryReader:
    """`stream.ports.TimeReader` in memory."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    def start_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Offsets of the oldest records that are still there."""
        return {tp: self._log.partition(tp).start for tp in partitions}

    def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """True end offsets, those of open transactions included."""
        return {tp: self._log.end(tp) for tp in partitions}

    def offsets_at(
        self, partitions: Sequence[TopicPartition], time_ms: int
    ) -> dict[TopicPartition, int]:
        """The first offset whose record is of `time_ms` or later, or the end."""
        return {tp: self._log.offset_at(tp, time_ms) for tp in partitions}

    def read(
        self, positions: Positions, targets: Positions, limit: int = 10_000
    ) -> Iterator[list[Record]]:
        """Committed records from `positions` until every partition stands at its target.

        Raises `OffsetOutOfRange` when a position is not, or no longer, in the log.
        """
        for tp, at in positions.items():
            if at > targets[tp]:
                raise OffsetOutOfRange(*tp)
        reached = {tp: at for tp, at in positions.items() if at < targets[tp]}
        while any(at < targets[tp] for tp, at in reached.items()):
            batch: list[Record] = []
            for tp, at in reached.items():
                found, reached[tp] = self._log.read(tp, at, targets[tp], limit - len(batch))
                batch += found
            yield batch

    def close(self) -> None:
        """Stop."""


class MemoryTail:
    """`stream.ports.Tail` in memory."""

    def __init__(self, log: MemoryLog, topic: str) -> None:
        self._log = log
        self._positions = {tp: log.partition(tp).start for tp in log.partitions(topic)}
        self._targets = {tp: log.end(tp) for tp in self._positions}

    def poll(self, limit: int = 10_000, timeout: float = 0.0) -> list[Record]:
        """What came in since the last call."""
        records: list[Record] = []
        for tp, at in self._positions.items():
            at = max(at, self._log.partition(tp).start)
            found, self._positions[tp] = self._log.read(
                tp, at, self._log.end(tp), limit - len(records)
            )
            records += found
        return records

    def caught_up(self) -> bool:
        """Whether everything that was in the topic when the tail was opened has been returned."""
        return all(at >= self._targets[tp] for tp, at in self._positions.items())

    def close(self) -> None:
        """Stop."""
