"""The worker: poll, compute, commit, apply; wait for the broker; stop.

The numbers are those of the commit protocol in docs/architecture.md, which says for every step
why a crash there loses nothing and repeats nothing. `stream.partitions` has steps 2, 3 and 10.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from stream import checkpoints, log
from stream.checkpoints import Checkpoint
from stream.config import Settings
from stream.erasing import Eraser
from stream.errors import Aborted, BrokerUnavailable, OffsetOutOfRange, ProducerFenced
from stream.lag import LagWatch
from stream.metrics import Metrics
from stream.models import Models
from stream.outcome import Outcome
from stream.partitions import CHANGELOGS, Partitions
from stream.pipeline import Pipeline
from stream.ports import (
    GroupConsumer,
    LogReader,
    PartitionStore,
    Record,
    Tail,
    TopicPartition,
    TransactionalProducer,
)
from stream.store_errors import Corrupt
from stream.suspects import Batch, Suspects

_log = log.get("worker")

HOUSEKEEPING_S = 2.0
"""Seconds between two looks at the end offsets and at stores that are no longer owned."""

HANGS_S = 60.0
"""A loop that has not turned for so long, and for what brokers may take twice, hangs."""

BROKER_WAIT_S = 1.0
"""Seconds between two attempts while no broker answers."""

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
    tidy: Callable[[Collection[int]], object] = lambda owned: None
    """Told now and then which partitions are owned, to let go of what others left behind."""
    checkpoint: Checkpoint = checkpoints.ignore


class Worker:
    """One member of the group. `run` owns it; others may call `stop` and the probes."""

    def __init__(
        self,
        settings: Settings,
        ports: Ports,
        pipeline: Pipeline,
        metrics: Metrics,
        models: Models | None = None,
    ) -> None:
        """Without `models` what the pipeline serves stays."""
        self._settings = settings
        self._ports = ports
        self._pipeline = pipeline
        self._metrics = metrics
        self._models = models
        self._partitions = Partitions(
            settings.kafka,
            ports.consumer,
            ports.reader,
            ports.open_store,
            pipeline,
            metrics,
            ports.checkpoint,
        )
        self._lag = LagWatch(ports.reader, metrics)
        self._suspects = Suspects()
        self._eraser = Eraser(settings.state.forget_within_s)
        self._stop = threading.Event()
        self._hangs_after = HANGS_S + 2 * settings.kafka.patience_s
        self._in_doubt = False  # the broker may have more, or less, than the stores
        self._turned = time.monotonic()
        self._housekeeping_due = 0.0

    # -- the loop -----------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `stop`, through outages of the brokers."""
        self.start()
        try:
            while not self._stop.is_set():
                self.patient_turn()
        finally:
            self._close()

    def stop(self) -> None:
        """Ask the loop to end after the batch in hand; may be called from a signal handler."""
        self._stop.set()
        self._ports.producer.hurry()
        self._ports.consumer.hurry()

    def patient_turn(self) -> None:
        """A turn; what the broker or a store could not do is tried again in the next one."""
        try:
            self.turn()
        except BrokerUnavailable as error:
            _log.warning("waiting for the broker", why=error.detail)
            self._stop.wait(BROKER_WAIT_S)
        except ProducerFenced as error:
            _log.warning("transaction given up", why=error.detail)
        except Corrupt as error:
            _log.error("a store broke", why=error.detail)
            self._in_doubt = True

    def turn(self) -> None:
        """One round: follow items and signals, restore a little, serve one batch."""
        self._turned = time.monotonic()
        if self._in_doubt:
            self._start_over()
        self._follow()
        busy = self._partitions.restore_some()
        if self._ports.items.caught_up() and self._ports.signals.caught_up():
            self._partitions.resume_ready()
        batch = self._next_batch(0.0 if busy else self._settings.batch.linger_ms / 1000)
        if batch.records or self._pipeline.cold_due():
            self._serve(batch)
        self._sweep(busy=len(batch.records) >= self._settings.batch.max_events)
        self._keep_house()

    def _next_batch(self, timeout: float) -> Batch:
        if self._suspects:
            return self._suspects.next()
        try:
            return Batch(self._consume(timeout))
        except (BrokerUnavailable, ProducerFenced):
            self._in_doubt = True  # a read that breaks off may have moved on: read again
            raise

    def _consume(self, timeout: float) -> list[Record]:
        try:
            return self._ports.consumer.consume(self._settings.batch.max_events, timeout)
        except OffsetOutOfRange as missing:
            self._begin(TopicPartition(missing.topic, missing.partition))
            return []

    def _begin(self, tp: TopicPartition) -> None:
        """Go to the oldest record: nothing was read yet, or retention has overtaken the worker."""
        if tp.partition in self._partitions.numbers():
            committed = self._ports.consumer.committed([tp]).get(tp, -1)
            self._partitions.expect(tp.partition, committed)
            self._ports.consumer.seek(self._ports.reader.start_offsets([tp]))

    def _follow(self) -> None:
        """Take in what came on `items` and `models`, and what other workers wrote to `signals`."""
        items, signals = self._ports.items, self._ports.signals
        limit = ITEMS_A_TURN if items.caught_up() else ITEMS_AT_START
        came = self._pipeline.take_items(items.poll(limit))
        if self._models is not None and (roles := self._models.step(came)) is not None:
            self._pipeline.serve_with(roles)
            self._ports.checkpoint(checkpoints.SWAPPED)
        if items.caught_up():  # signals speak of items
            mine = self._partitions.served()
            self._pipeline.take_signals([r for r in signals.poll() if r.partition not in mine])

    # -- step 1: start; step 2 and 10 come from the consumer ----------------------------------

    def start(self) -> None:
        """Fence what a dead twin left, then join the group."""
        kafka = self._settings.kafka
        self._ports.producer.init()
        self._ports.consumer.subscribe(kafka.topic("events"), self)
        _log.info("started", topic=kafka.topic("events"), group=kafka.group_id)

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """These partitions came in addition."""
        self._partitions.assigned(partitions)

    def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """These partitions go away."""
        self._partitions.revoked(partitions, lost=lost)
        for tp in partitions:
            self._lag.forget(tp)

    # -- steps 4 to 9: a batch ----------------------------------------------------------------

    def _serve(self, batch: Batch) -> None:
        records = self._partitions.take(batch.records)
        batch = replace(batch, records=records)
        if records:
            self._ports.checkpoint(checkpoints.CONSUMED)
            self._count_gaps(records)
        began, stores = time.perf_counter(), self._partitions.stores()
        outcome = self._pipeline.process(
            records, stores, condemned=batch.condemned, bare=batch.bare
        )
        self._transact(outcome, batch, began)

    def _sweep(self, *, busy: bool) -> None:
        """A transaction that follows from no record; `busy` says that the last batch was full."""
        began, settled = time.perf_counter(), self._models is None or self._models.settled()
        stores = self._partitions.stores()
        outcome = self._pipeline.sweep(stores, busy=busy, settled=settled)
        if outcome.messages:
            self._transact(outcome, Batch(), began)

    def _transact(self, outcome: Outcome, batch: Batch, began: float) -> None:
        """Steps 6 to 9 of a batch or a sweep that began then."""
        self._passing(outcome)(checkpoints.COMPUTED)
        try:
            written = self._commit(outcome)
        except Aborted as error:
            self._retreat(batch, error)
            return
        except (ProducerFenced, BrokerUnavailable):
            self._in_doubt = True  # committed or not: only the broker knows
            raise
        self._apply(outcome, written)
        self._pipeline.committed(outcome, seconds=time.perf_counter() - began)

    def _count_gaps(self, records: Sequence[Record]) -> None:
        """What retention deleted before it was read is lost: say how much."""
        first = {r.partition: r.offset for r in reversed(records)}
        for partition, offset in first.items():
            if lost := self._partitions.gap_before(partition, offset):
                self._metrics.gaps.inc(lost)
                _log.error("events lost", partition=partition, count=lost)

    def _commit(self, outcome: Outcome) -> dict[TopicPartition, int]:
        """Steps 6 to 8: changelog, lists, dead letters and offsets, all or nothing."""
        producer, passed = self._ports.producer, self._passing(outcome)
        with self._pipeline.stage("produce"):
            producer.begin()
            passed(checkpoints.BEGUN)
            producer.produce(outcome.messages)
            passed(checkpoints.PRODUCED)
        with self._pipeline.stage("commit"):
            positions = outcome.positions or self._partitions.positions()
            producer.send_offsets(positions, self._ports.consumer.group_metadata())
            passed(checkpoints.OFFSETS_SENT)
            passed(checkpoints.COMMITTING)
            written = producer.commit()
        passed(checkpoints.COMMITTED)
        return written

    def _passing(self, outcome: Outcome) -> Checkpoint:
        """Tells checkpoints, with another name where no records were read."""
        tell = self._ports.checkpoint
        return tell if outcome.positions else lambda point: tell(checkpoints.SWEEP + point)

    def _apply(self, outcome: Outcome, written: dict[TopicPartition, int]) -> None:
        """Step 9: the stores follow the committed changelog, one write batch a partition."""
        kafka, passed = self._settings.kafka, self._passing(outcome)
        stores = self._partitions.stores()
        with self._pipeline.stage("apply"):
            for partition, puts in outcome.puts.items():
                topics = {role: TopicPartition(kafka.topic(role), partition) for role in CHANGELOGS}
                offsets = {role: written[tp] for role, tp in topics.items() if tp in written}
                stores[partition].apply(puts, offsets)
                passed(checkpoints.APPLYING)
        self._partitions.handled(outcome.positions)
        self._lag.handled(outcome.positions, outcome.timestamps)
        passed(checkpoints.APPLIED)

    def _retreat(self, batch: Batch, error: Aborted) -> None:
        """Drop the overlay; read the records again, or keep them to find the one at fault."""
        self._metrics.aborts.labels(error.reason).inc()
        try:
            self._ports.producer.abort()
        except (ProducerFenced, BrokerUnavailable):
            self._in_doubt = True
            raise
        self._pipeline.aborted()
        if error.blames_batch and batch.records:
            self._suspects.failed(batch)
        else:
            again = [*batch.records, *self._suspects.clear()]
            first = {TopicPartition(r.topic, r.partition): r.offset for r in reversed(again)}
            self._ports.consumer.seek(first)
        _log.warning(
            "aborted",
            records=len(batch.records),
            reason=error.reason,
            why=error.detail,
            suspects=len(self._suspects),
        )

    def _start_over(self) -> None:
        """Steps 1 to 3 without leaving the group: the broker's word alone counts."""
        _log.warning("starting over", why="what became of the last transaction is not known")
        self._metrics.restarts.inc()
        self._ports.producer.renew()
        self._partitions.start_over()
        self._suspects.clear()
        self._in_doubt = False

    def _close(self) -> None:
        """Stop without leaving the group: a static member that comes back takes over at once."""
        self._ports.consumer.close()
        self._partitions.close()
        for tail in (self._ports.items, self._ports.signals):
            tail.close()
        _log.info("stopped")

    # -- watching -----------------------------------------------------------------------------

    def healthy(self) -> tuple[bool, dict[str, object]]:
        """Whether the loop turned lately; waiting for brokers that are away is no hanging."""
        idle = time.monotonic() - self._turned
        return idle < self._hangs_after, {"seconds_since_last_turn": round(idle, 3)}

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Whether every partition of this worker is served."""
        ready, details = self._partitions.ready()
        caught_up = self._ports.items.caught_up()
        details |= {"items_read": caught_up, "items": self._pipeline.items()}
        if self._models is not None:
            details["models"] = self._models.status()
        return ready and caught_up, details

    def _keep_house(self) -> None:
        """Now and then: look at the lag, let go of stores of others, erase what was forgotten."""
        if time.monotonic() < self._housekeeping_due:
            return
        self._housekeeping_due = time.monotonic() + HOUSEKEEPING_S
        self._eraser.step(self._partitions.stores())
        self._ports.tidy(self._partitions.numbers())
        try:
            self._look_at_lag()
        except BrokerUnavailable as error:
            _log.warning("lag unknown", why=error.detail)

    def _look_at_lag(self) -> None:
        """Set the gauges; what stands still though there is more is read anew."""
        served = self._partitions.served().values()
        if self._lag.unknown(served):
            self._lag.found(self._partitions.positions())
        standing = self._lag.observe(served)
        if standing and not self._suspects:
            _log.warning(
                "reading anew",
                partitions=[tp.partition for tp in standing],
                why="nothing came, though there is more: or a producer has a transaction open",
            )
            self._metrics.stalls.inc(len(standing))
            positions = self._partitions.positions()
            self._ports.consumer.restart({tp: positions[tp] for tp in standing})
