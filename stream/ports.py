"""The ports of the worker: what it needs of a log and of a store, in Kafka's own words.

`stream.kafka` and `stream.store` implement them for real, `stream.testing` in memory; one
contract suite runs over both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol


class TopicPartition(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


class Record(NamedTuple):
    """A record as it was read."""

    topic: str
    partition: int
    offset: int
    timestamp: int  # ms since epoch, production time; -1 = the broker has none
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


class Message(NamedTuple):
    """A record to be written."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


Positions = Mapping[TopicPartition, int]
"""The next offset to be read, by partition."""


class RebalanceListener(Protocol):
    """Called from within `GroupConsumer.consume` only."""

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """These partitions came in addition; they are paused."""

    def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """These partitions go away; `lost` = somebody else may have them already."""


class GroupConsumer(Protocol):
    """A static member of the consumer group, cooperative, without auto-commit."""

    def subscribe(self, topic: str, listener: RebalanceListener) -> None:
        """Join the group."""

    def consume(self, limit: int, timeout: float) -> list[Record]:
        """At most `limit` records; an empty list after `timeout` seconds.

        After an error the committed offsets say where to go on: the read may have moved on.
        """

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver nothing of these."""

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver again."""

    def seek(self, positions: Positions) -> None:
        """Go on from these offsets. Others' partitions are ignored."""

    def restart(self, positions: Positions) -> None:
        """As `seek`, for partitions of which nothing comes: what is under way is given up."""

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Committed offsets; partitions without one are left out.

        Waits while a transaction is open on the group's offsets (KIP-447).
        """

    def assignment(self) -> set[TopicPartition]:
        """The partitions that are owned now."""

    def group_metadata(self) -> object:
        """What fences a member that lost its partitions without knowing (KIP-447).

        Of the generation that `assigned` was told of last, not of one that was joined since.
        """

    def hurry(self) -> None:
        """Do not wait long for brokers any more: the process is to stop."""

    def close(self) -> None:
        """Stop. A static member stays in the group until its session times out."""


class TransactionalProducer(Protocol):
    """A producer with a stable transactional id.

    `Aborted` = nothing of the transaction counts. `ProducerFenced` and `BrokerUnavailable` = what
    became of it is not known here: `renew`, then ask for the committed offsets. `Fenced` = another
    worker uses this one's id.
    """

    def init(self) -> None:
        """Fence older producers of the same id and abort what they left open."""

    def renew(self) -> None:
        """Begin anew with the same id, after an error that this producer does not survive.

        On return the transaction that was open has ended, one way or the other.
        """

    def begin(self) -> None:
        """Open a transaction."""

    def produce(self, messages: Iterable[Message]) -> None:
        """Queue messages to their explicit partitions."""

    def send_offsets(self, positions: Positions, group_metadata: object) -> None:
        """Add the consumed positions to the transaction."""

    def commit(self) -> dict[TopicPartition, int]:
        """Flush and commit; retried while retriable.

        Returns the highest offset that this transaction wrote to each partition.
        """

    def abort(self) -> None:
        """Throw the transaction away."""

    def hurry(self) -> None:
        """Do not wait long for brokers any more: the process is to stop."""


class LogReader(Protocol):
    """Reads partitions without a group, committed records only."""

    def start_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Offsets of the oldest records that are still there."""

    def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """True end offsets, those of open transactions included (read uncommitted)."""

    def read(
        self, positions: Positions, targets: Positions, limit: int = 10_000
    ) -> Iterator[list[Record]]:
        """Committed records from `positions` until every partition stands at its target.

        Yields batches as they come, empty ones too, so that the caller can do other things.
        """


class TimeReader(LogReader, Protocol):
    """A `LogReader` that finds offsets by the records' own time."""

    def offsets_at(
        self, partitions: Sequence[TopicPartition], time_ms: int
    ) -> dict[TopicPartition, int]:
        """Of each partition the first offset whose record is of `time_ms` or later, or the end.

        Every record before it is older; later ones may be, too, where producers' clocks differ.
        """


class Tail(Protocol):
    """Follows all partitions of a topic without a group, committed records only."""

    def poll(self, limit: int = 10_000, timeout: float = 0.0) -> list[Record]:
        """What came in since the last call."""

    def caught_up(self) -> bool:
        """Whether everything that was in the topic when the tail was opened has been returned."""

    def close(self) -> None:
        """Stop."""


class Put(NamedTuple):
    """A change to a store; `value` None deletes."""

    key: bytes
    value: bytes | None


class PartitionStore(Protocol):
    """The state of one partition: records by key, and the offsets they stand for.

    `changelogs` are roles (`state`, `signals`); an offset is that of the last applied record.
    """

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of `keys`, in their order."""

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All records whose key starts with `prefix`, in key order."""

    def offset(self, changelog: str) -> int:
        """Offset of the last record applied from this changelog, -1 at first."""

    def apply(self, puts: Iterable[Put], offsets: Mapping[str, int]) -> None:
        """All puts and offsets in one atomic batch."""

    def erase(self, keys: Collection[bytes] | None = None) -> int:
        """What was deleted under these keys, or at all, is gone from the files on return.

        Keys included. Returns how many deletions went. Costs as much as writing the store anew,
        whatever the number of keys, and little where nothing was deleted.
        """

    def restored(self) -> None:
        """The store has everything its changelogs hold, and follows them from now on."""

    def clear(self) -> None:
        """Delete all records and offsets."""

    def close(self) -> None:
        """Let go of the files."""


StoreFactory = Callable[[int], PartitionStore]
"""Opens the store of a partition."""
