"""The partitions of a worker: opened, restored, served, given away (steps 2, 3 and 10).

The rebalance callbacks only take note. Stores are opened and restored between two batches, a
little at a time, so that the partitions which are served already do not wait for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stream import checkpoints, log
from stream.checkpoints import Checkpoint
from stream.config import Kafka
from stream.metrics import Metrics
from stream.ports import (
    GroupConsumer,
    LogReader,
    PartitionStore,
    Positions,
    Record,
    TopicPartition,
)
from stream.restore import Restore

_log = log.get("worker")

TURN_S = 0.1
"""Seconds of restoring between two batches, where partitions wait to be served."""

REPORT_S = 5.0
"""Seconds between two log lines of a long restore."""

CHANGELOGS = ("state", "signals")
"""Roles of the topics that a store is restored from."""


class Serves(Protocol):
    """Who is told which partitions are served; the pipeline."""

    def serve(self, partition: int, store: PartitionStore) -> None:
        """The store has everything; events of the partition come from now on."""

    def closed(self, partition: int) -> None:
        """The store is gone."""


@dataclass
class Owned:
    """A partition that this worker serves or is about to serve."""

    events: TopicPartition
    store: PartitionStore | None = None
    restore: Restore | None = None  # until everything is there
    restored: bool = False
    resumed: bool = False
    again: bool = False  # was served before: go on where the group's offset is
    position: int = -1  # the next offset, as far as this worker committed it
    expected: int = -1  # the next offset, where it was no longer in the log
    began: float = field(default_factory=time.monotonic)
    reported: float = field(default_factory=time.monotonic)


class Partitions:
    """What is owned, and how far each partition is on its way to being served."""

    def __init__(
        self,
        kafka: Kafka,
        consumer: GroupConsumer,
        reader: LogReader,
        open_store: Callable[[int], PartitionStore],
        pipeline: Serves,
        metrics: Metrics,
        checkpoint: Checkpoint,
    ) -> None:
        self._kafka = kafka
        self._consumer = consumer
        self._reader = reader
        self._open_store = open_store
        self._pipeline = pipeline
        self._metrics = metrics
        self._checkpoint = checkpoint
        self._owned: dict[int, Owned] = {}
        self._joined = False

    # -- step 2: assigned ---------------------------------------------------------------------

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Take note; the partitions are paused until they are restored."""
        self._checkpoint(checkpoints.ASSIGNED)
        self._owned |= {tp.partition: Owned(tp) for tp in partitions}
        self._joined = True  # last, or else /readyz would find nothing that is not served yet
        self._count()
        _log.info("assigned", partitions=[tp.partition for tp in partitions])

    # -- step 3: restored ---------------------------------------------------------------------

    def restore_some(self) -> bool:
        """Advance restores, for `TURN_S` where others wait; whether any is still under way.

        Raises `BrokerUnavailable`, `StateError` or `Corrupt`.
        """
        waiting = [o for o in self._owned.values() if not o.restored]
        until = time.monotonic() + TURN_S
        for owned in sorted(waiting, key=lambda o: o.restore is not None):
            self._advance(owned)
            if time.monotonic() > until and self.served():
                break
        if waiting:
            self._count()
        return bool(waiting)

    def _advance(self, owned: Owned) -> None:
        if owned.store is None:
            owned.store = self._open_store(owned.events.partition)
        restore, owned.restore = owned.restore, None  # one that fails is begun anew
        restore = restore or Restore(self._reader, owned.store, self._changelogs(owned))
        self._checkpoint(checkpoints.RESTORING)
        if restore.step():
            owned.restore = restore
            self._report(owned, restore)
            return
        owned.restored = True
        self._metrics.restored.inc(restore.records)
        _log.info("restored", **_facts(owned, restore))
        self._checkpoint(checkpoints.RESTORED)

    def _changelogs(self, owned: Owned) -> dict[str, TopicPartition]:
        partition = owned.events.partition
        return {role: TopicPartition(self._kafka.topic(role), partition) for role in CHANGELOGS}

    def _report(self, owned: Owned, restore: Restore) -> None:
        if time.monotonic() - owned.reported > REPORT_S:
            owned.reported = time.monotonic()
            _log.info("restoring", **_facts(owned, restore), done=round(restore.progress(), 3))

    def resume_ready(self) -> None:
        """Serve what is restored. Raises `BrokerUnavailable`."""
        ready = [o for o in self._owned.values() if o.restored and not o.resumed]
        if not ready:
            return
        if again := [o.events for o in ready if o.again]:
            self._consumer.seek(self._next(again))
        for owned in ready:
            if owned.store is not None:
                owned.resumed, owned.again = True, False
                self._pipeline.serve(owned.events.partition, owned.store)
        self._consumer.resume([o.events for o in ready])
        self._count()

    def start_over(self) -> None:
        """Trust the changelogs and the committed offsets alone: restore every partition again."""
        self._consumer.pause([o.events for o in self._owned.values()])
        for owned in self._owned.values():
            self._close_store(owned)
            self._owned[owned.events.partition] = Owned(owned.events, again=True)
        self._count()

    # -- step 10: revoked ---------------------------------------------------------------------

    def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """Nothing to flush: what was committed is in the changelog. Close and forget."""
        for tp in partitions:
            owned = self._owned.pop(tp.partition, None)
            if owned is not None:
                self._close_store(owned)
                self._checkpoint(checkpoints.REVOKED)
        self._count()
        _log.info("revoked", partitions=[tp.partition for tp in partitions], lost=lost)

    def close(self) -> None:
        """Close all stores."""
        for owned in self._owned.values():
            self._close_store(owned)
        self._owned.clear()

    def _close_store(self, owned: Owned) -> None:
        self._pipeline.closed(owned.events.partition)
        if owned.store is not None:
            owned.store.close()
            owned.store = None

    # -- what is there ------------------------------------------------------------------------

    def take(self, records: Sequence[Record]) -> list[Record]:
        """Those of partitions that are served; the others' will be read again."""
        served = self.served()
        for record in records:
            if record.partition not in served and record.partition in self._owned:
                self._owned[record.partition].again = True
        return [record for record in records if record.partition in served]

    def served(self) -> dict[int, TopicPartition]:
        """The partitions of `events` that are served, by number."""
        return {p: o.events for p, o in self._owned.items() if o.resumed}

    def stores(self) -> dict[int, PartitionStore]:
        """The stores of what is served."""
        return {p: o.store for p, o in self._owned.items() if o.resumed and o.store is not None}

    def handled(self, positions: Positions) -> None:
        """These positions are committed."""
        for tp, position in positions.items():
            self._owned[tp.partition].position = position

    def positions(self) -> dict[TopicPartition, int]:
        """The next offsets of what is served, none of them skipped. Raises `BrokerUnavailable`."""
        served = [o for o in self._owned.values() if o.resumed]
        if missing := [o.events for o in served if o.position < 0]:
            self.handled(self._next(missing))
        return {o.events: o.position for o in served}

    def _next(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """What the group has committed, or else the oldest record."""
        committed = self._consumer.committed(partitions)
        fresh = [tp for tp in partitions if tp not in committed]
        return {**committed, **(self._reader.start_offsets(fresh) if fresh else {})}

    def numbers(self) -> set[int]:
        """All partitions owned, served or not."""
        return set(self._owned)

    def expect(self, partition: int, offset: int) -> None:
        """The log no longer holds `offset`, the next one of this partition; -1 = it has begun."""
        if partition in self._owned:
            self._owned[partition].expected = offset

    def gap_before(self, partition: int, offset: int) -> int:
        """Records that were lost before this one, the first to come; 0 where none was missed."""
        owned = self._owned[partition]
        if owned.expected < 0:
            return 0
        lost, owned.expected = offset - owned.expected, -1
        return lost

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Whether every partition is served, and details; for any thread."""
        owned = dict(self._owned)  # in one go: the loop's thread changes it meanwhile
        serving = sorted(p for p, o in owned.items() if o.resumed)
        restoring = {str(p): _share(o.restore) for p, o in owned.items() if not o.restored}
        details: dict[str, object] = {
            "joined": self._joined,
            "serving": serving,
            "restoring": restoring,
        }
        return self._joined and len(serving) == len(owned), details

    def _count(self) -> None:
        served = len(self.served())
        self._metrics.restoring.set(len(self._owned) - served)
        self._metrics.partitions.set(served)


def _share(restore: Restore | None) -> float:
    return 0.0 if restore is None else round(restore.progress(), 3)


def _facts(owned: Owned, restore: Restore) -> dict[str, object]:
    return {
        "partition": owned.events.partition,
        "records": restore.records,
        "seconds": round(time.monotonic() - owned.began, 3),
    }
