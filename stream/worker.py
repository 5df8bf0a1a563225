"""The worker: poll, compute, commit, apply; give and take partitions; stop.

The numbers are those of the commit protocol in docs/architecture.md, which says for every step
why a crash there loses nothing and repeats nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from stream import log
from stream.config import Settings
from stream.errors import Aborted, BrokerUnavailable, OffsetOutOfRange
from stream.metrics import Metrics
from stream.pipeline import Outcome, Pipeline
from stream.ports import (
    BEGINNING,
    GroupConsumer,
    LogReader,
    PartitionStore,
    Record,
    Tail,
    TopicPartition,
    TransactionalProducer,
)
from stream.restore import Restore

_log = log.get("worker")

LAG_INTERVAL = 2.0
"""Seconds between two looks at the end offsets."""

ITEMS_A_TURN = 64
"""New items taken in between two batches: encoding them must not hold up the users."""

ITEMS_AT_START = 2_000
"""Items taken in at once before the first batch."""


@dataclass(frozen=True)
class Ports:
    """What a worker is connected to."""

    consumer: GroupConsumer
    producer: TransactionalProducer
    reader: LogReader
    items: Tail
    signals: Tail
    open_store: Callable[[int], PartitionStore]
    sweep: Callable[[Collection[int]], object] = lambda owned: None
    """Told now and then which partitions are owned, to let go of what others left behind."""


@dataclass
class Owned:
    """A partition that this worker serves or is about to serve."""

    events: TopicPartition
    store: PartitionStore
    restore: Restore | None
    resumed: bool = False
    position: int = -1
    timestamp: int = -1
    expected: int = -1  # the next offset, where it was no longer in the log


class Worker:
    """One member of the group. `run` owns it; others may call `stop` and the probes."""

    def __init__(
        self, settings: Settings, ports: Ports, pipeline: Pipeline, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._ports = ports
        self._pipeline = pipeline
        self._metrics = metrics
        self._owned: dict[int, Owned] = {}
        self._stop = threading.Event()
        self._joined = False
        self._limit = settings.batch.max_events
        self._failures = 0
        self._suspects: list[tuple[int, int]] = []
        self._turned = time.monotonic()
        self._lag_due = 0.0

    # -- the loop -----------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `stop`."""
        self.start()
        try:
            while not self._stop.is_set():
                self.turn()
        finally:
            self._close()

    def stop(self) -> None:
        """Ask the loop to end after the batch in hand; may be called from a signal handler."""
        self._stop.set()

    def turn(self) -> None:
        """One round: follow items and signals, restore a little, serve one batch."""
        self._turned = time.monotonic()
        self._follow()
        busy = self._restore_some()
        records = self._consume(0.0 if busy else self._linger)
        if records or self._pipeline.cold_due():
            self._serve(records)
        self._observe_lag()

    def _consume(self, timeout: float) -> list[Record]:
        try:
            return self._ports.consumer.consume(self._limit, timeout)
        except OffsetOutOfRange as missing:
            self._begin(TopicPartition(missing.topic, missing.partition))
            return []

    def _begin(self, tp: TopicPartition) -> None:
        """Go to the oldest record: nothing was read yet, or retention has overtaken the worker."""
        if tp.partition in self._owned:
            self._owned[tp.partition].expected = self._ports.consumer.committed([tp]).get(tp, -1)
            self._ports.consumer.seek({tp: BEGINNING})

    @property
    def _linger(self) -> float:
        return self._settings.batch.linger_ms / 1000

    # -- step 1: start ------------------------------------------------------------------------

    def start(self) -> None:
        """Fence what a dead twin left, then join the group."""
        self._ports.producer.init()
        self._ports.consumer.subscribe(self._settings.kafka.topic("events"), self)
        _log.info(
            "started",
            topic=self._settings.kafka.topic("events"),
            group=self._settings.kafka.group_id,
        )

    # -- steps 2 and 3: partitions come, are restored, and are served -------------------------

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Open each store and begin to restore it; the partition stays paused until then."""
        for tp in partitions:
            store = self._ports.open_store(tp.partition)
            changelogs = {
                role: TopicPartition(self._settings.kafka.topic(role), tp.partition)
                for role in ("state", "signals")
            }
            restore = Restore(self._ports.reader, store, changelogs)
            self._owned[tp.partition] = Owned(tp, store, restore)
        self._joined = True  # last, or else /readyz would find nothing that is not served yet
        self._count_partitions()
        _log.info("assigned", partitions=[tp.partition for tp in partitions])

    def _restore_some(self) -> bool:
        """Advance every restore by one batch; whether any is still under way."""
        waiting = [o for o in self._owned.values() if o.restore is not None]
        for owned in waiting:
            if owned.restore is not None and not owned.restore.step():
                self._restored(owned, owned.restore)
        self._resume_ready()
        self._count_partitions()
        return bool(waiting)

    def _restored(self, owned: Owned, restore: Restore) -> None:
        self._metrics.restored.inc(restore.records)
        _log.info(
            "restored",
            partition=owned.events.partition,
            records=restore.records,
            seconds=round(restore.seconds, 3),
        )
        owned.restore = None

    def _resume_ready(self) -> None:
        if not (self._ports.items.caught_up() and self._ports.signals.caught_up()):
            return
        ready = [o for o in self._owned.values() if o.restore is None and not o.resumed]
        for owned in ready:
            owned.resumed = True
            self._pipeline.serve(owned.events.partition, owned.store)
        if ready:
            self._ports.consumer.resume([o.events for o in ready])

    def _follow(self) -> None:
        """Take in what came on `items` and what other workers wrote to `signals`."""
        items, signals = self._ports.items, self._ports.signals
        self._pipeline.take_items(items.poll(ITEMS_A_TURN if items.caught_up() else ITEMS_AT_START))
        if items.caught_up():  # signals speak of items
            foreign = [r for r in signals.poll() if not self._serves(r.partition)]
            self._pipeline.take_signals(foreign)

    def _serves(self, partition: int) -> bool:
        owned = self._owned.get(partition)
        return owned is not None and owned.resumed

    # -- steps 4 to 9: a batch ----------------------------------------------------------------

    def _serve(self, records: list[Record]) -> None:
        records = [r for r in records if self._serves(r.partition)]
        self._count_gaps(records)
        started = time.perf_counter()
        outcome = self._pipeline.process(
            records, self._stores(), condemned=self._condemned(records)
        )
        try:
            written = self._commit(outcome)
        except Aborted as error:
            self._retreat(records, error)
            return
        self._apply(outcome, written)
        self._pipeline.committed(outcome, seconds=time.perf_counter() - started)
        self._failures = 0
        self._limit = min(self._settings.batch.max_events, 2 * self._limit)

    def _count_gaps(self, records: Sequence[Record]) -> None:
        """What retention deleted before it was read is lost: say how much."""
        for owned in [o for o in self._owned.values() if o.expected >= 0]:
            first = next((r.offset for r in records if r.partition == owned.events.partition), -1)
            if first >= 0:
                lost, owned.expected = first - owned.expected, -1
                self._metrics.gaps.inc(lost)
                if lost:
                    _log.error("events lost", partition=owned.events.partition, count=lost)

    def _commit(self, outcome: Outcome) -> dict[TopicPartition, int]:
        """Steps 6 to 8: changelog, lists, dead letters and offsets, all or nothing."""
        producer = self._ports.producer
        with self._pipeline.stage("produce"):
            producer.begin()
            producer.produce(outcome.messages)
        with self._pipeline.stage("commit"):
            positions = outcome.positions or self._positions()
            producer.send_offsets(positions, self._ports.consumer.group_metadata())
            return producer.commit()

    def _apply(self, outcome: Outcome, written: dict[TopicPartition, int]) -> None:
        """Step 9: the stores follow the committed changelog, one write batch a partition."""
        kafka = self._settings.kafka
        with self._pipeline.stage("apply"):
            for partition, puts in outcome.puts.items():
                offsets = {
                    role: written[TopicPartition(kafka.topic(role), partition)]
                    for role in ("state", "signals")
                    if TopicPartition(kafka.topic(role), partition) in written
                }
                self._owned[partition].store.apply(puts, offsets)
        for tp, position in outcome.positions.items():
            owned = self._owned[tp.partition]
            owned.position, owned.timestamp = position, outcome.timestamps[tp]

    def _retreat(self, records: Sequence[Record], error: Aborted) -> None:
        """Drop the overlay and read the batch again; a batch that keeps failing is halved."""
        self._ports.producer.abort()
        self._pipeline.aborted()
        first: dict[TopicPartition, int] = {}
        for record in reversed(records):
            first[TopicPartition(record.topic, record.partition)] = record.offset
        self._ports.consumer.seek(first)
        self._metrics.aborts.labels(error.reason).inc()
        if error.blames_batch:
            suspects = [(r.partition, r.offset) for r in records]
            self._failures = self._failures + 1 if suspects == self._suspects else 1
            self._suspects = suspects
        if self._failures >= 2 and len(records) > 1:
            self._limit = max(1, len(records) // 2)
        _log.warning("aborted", records=len(records), reason=error.reason, next_limit=self._limit)

    def _condemned(self, records: Sequence[Record]) -> bool:
        """Whether this one event made its transaction fail twice and goes to dead letters."""
        return (
            self._failures >= 2
            and len(records) == 1
            and self._suspects == [(r.partition, r.offset) for r in records]
        )

    def _positions(self) -> dict[TopicPartition, int]:
        """Unchanged offsets for a transaction that read nothing: they carry the fence."""
        known = {o.events: o.position for o in self._owned.values() if o.position >= 0}
        missing = [o.events for o in self._owned.values() if o.resumed and o.position < 0]
        if not missing:
            return known
        committed = self._ports.consumer.committed(missing)
        fresh = [tp for tp in missing if tp not in committed]
        return {**known, **committed, **self._ports.reader.start_offsets(fresh)}

    def _stores(self) -> dict[int, PartitionStore]:
        return {p: o.store for p, o in self._owned.items() if o.resumed}

    # -- step 10: partitions go ---------------------------------------------------------------

    def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """Nothing to flush: what was committed is in the changelog. Close and forget."""
        for tp in partitions:
            owned = self._owned.pop(tp.partition, None)
            if owned is not None:
                self._pipeline.closed(tp.partition)
                owned.store.close()
                self._metrics.forget_partition(tp.partition)
        self._count_partitions()
        _log.info("revoked", partitions=[tp.partition for tp in partitions], lost=lost)

    def _close(self) -> None:
        """Stop without leaving the group: a static member that comes back takes over at once."""
        self._ports.consumer.close()
        for owned in self._owned.values():
            owned.store.close()
        self._owned.clear()
        for tail in (self._ports.items, self._ports.signals):
            tail.close()
        _log.info("stopped")

    # -- watching -----------------------------------------------------------------------------

    def healthy(self) -> tuple[bool, dict[str, object]]:
        """Whether the loop turned within the last minute."""
        idle = time.monotonic() - self._turned
        return idle < 60, {"seconds_since_last_turn": round(idle, 3)}

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Whether every partition of this worker is served."""
        owned = dict(self._owned)  # in one go: the loop's thread changes it meanwhile
        served = sorted(p for p, o in owned.items() if o.resumed)
        restores = {p: o.restore for p, o in owned.items()}
        restoring = {p: r.progress() for p, r in restores.items() if r is not None}
        caught_up = self._ports.items.caught_up()
        details: dict[str, object] = {
            "joined": self._joined,
            "serving": served,
            "restoring": restoring,
            "items_read": caught_up,
            "items": self._pipeline.items(),
        }
        return self._joined and caught_up and len(served) == len(owned), details

    def _count_partitions(self) -> None:
        restoring = sum(o.restore is not None for o in self._owned.values())
        self._metrics.restoring.set(restoring)
        self._metrics.partitions.set(len(self._owned) - restoring)

    def _observe_lag(self) -> None:
        """Lag in messages, and in seconds: the age of the newest record handled, 0 at the end."""
        if time.monotonic() < self._lag_due:
            return
        self._lag_due = time.monotonic() + LAG_INTERVAL
        self._ports.sweep(self._owned.keys())
        served = [o for o in self._owned.values() if o.position >= 0]
        try:
            ends = self._ports.reader.end_offsets([o.events for o in served]) if served else {}
        except BrokerUnavailable as error:
            _log.warning("lag unknown", why=error.detail)
            return
        for owned in served:
            behind = max(0, ends.get(owned.events, owned.position) - owned.position)
            age = max(0.0, time.time() - owned.timestamp / 1000) if behind else 0.0
            label = str(owned.events.partition)
            self._metrics.lag_messages.labels(label).set(behind)
            self._metrics.lag_seconds.labels(label).set(age)
