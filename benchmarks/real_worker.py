"""The worker of `innerloop worker` on a real broker and real stores, driven turn by turn."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager

from adapters.types import ModelConfig
from benchmarks import made_up
from benchmarks.feeding import Feeder, reading, send_items
from benchmarks.made_up import Size
from benchmarks.measure import Batch, Run
from benchmarks.taps import TappedConsumer, TappedProducer
from stream import assembly
from stream.catalogue import CatalogueTable
from stream.config import Settings
from stream.item_encoder import ItemEncoder
from stream.kafka.consumer import GroupConsumer
from stream.kafka.producer import TransactionalProducer
from stream.kafka.reader import LogReader, Tail
from stream.message_types import Event
from stream.metrics import Metrics
from stream.pipeline import Pipeline
from stream.ports import Message
from stream.roles import Roles, ServedModel
from stream.serving import Serving
from stream.store import Stores
from stream.worker import Ports, Worker

PATIENCE = 120.0
"""Seconds after which a worker that does not serve has failed."""

SHORT = 0.1
"""Seconds that a batch is waited for which need not be full."""


class Bench:
    """A worker that serves, and the means to feed it and to look at what it does."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        worker: Worker,
        consumer: TappedConsumer,
        producer: TappedProducer,
        feeder: Feeder,
    ) -> None:
        self.written: list[Message] = []  # messages of the last full batch
        self._lists = settings.kafka.topic("recommendations")
        self._metrics = metrics
        self._worker = worker
        self._consumer = consumer
        self._producer = producer
        self._feeder = feeder

    def start(self) -> None:
        """Join, read the items, and serve every partition."""
        self._worker.start()
        self._until(lambda: self._worker.ready()[0])

    def run(self, events: Iterable[Event], size: int, *, full: bool = True) -> Run:
        """Let the worker take `events` in batches of `size`; it fetches nothing before that.

        Batches that need not be full do not wait for partitions that are found to be new.
        """
        self._consumer.hold()
        waiting = self._feeder.send(events)
        self._consumer.patience = PATIENCE if full else SHORT
        batches: list[Batch] = []
        totals: Counter[str] = Counter()
        cpu = time.process_time()
        self._consumer.release()
        while waiting:
            self._consumer.limit = min(size, waiting)
            batch = self._turn()
            if batch.events:
                waiting -= batch.events
                batches.append(batch)
                totals.update(self._look(batch.events == size))
        cpu = time.process_time() - cpu
        return Run(batches=batches, cpu=cpu, **totals)

    def _turn(self) -> Batch:
        before, self._consumer.seconds = self._consumer.delivered, 0.0
        spent, started = self._spent(), time.perf_counter()
        self._worker.turn()
        seconds = time.perf_counter() - started
        events = self._consumer.delivered - before
        stages = {name: total - spent.get(name, 0.0) for name, total in self._spent().items()}
        stages["consume"] = self._consumer.seconds
        return Batch(events=events, seconds=seconds, stages=stages if events else {})

    def _spent(self) -> dict[str, float]:
        """Seconds of all batches so far by stage, as the worker's metrics have them."""
        samples = [sample for found in self._metrics.stage.collect() for sample in found.samples]
        return {s.labels["stage"]: s.value for s in samples if s.name.endswith("_sum")}

    def _look(self, full: bool) -> dict[str, int]:
        """Lists, messages and bytes that the batch wrote; the messages of full ones are kept."""
        messages = self._producer.messages
        if full:
            self.written = messages
        return {
            "lists": sum(m.topic == self._lists for m in messages),
            "messages": len(messages),
            "message_bytes": sum(len(m.key or b"") + len(m.value or b"") for m in messages),
        }

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the worker does not serve after {PATIENCE:.0f} s")
            self._worker.turn()


@contextmanager
def serving_worker(settings: Settings, size: Size, interests: int) -> Iterator[Bench]:
    """A worker that has read the items and serves every partition."""
    known = made_up.items(size)
    send_items(settings, known)
    config = ModelConfig(actions=tuple(settings.messages.actions), interests=interests)
    meta, bundled = made_up.model(known, config, size.seed)
    table = CatalogueTable(meta, bundled, ItemEncoder(made_up.WordEncoder()))
    metrics = Metrics()
    with ExitStack() as stack:
        stores = stack.enter_context(assembly.open_stores(settings))
        served = Serving(meta, "made-up", table, bundled.prior)
        pipeline = Pipeline(
            settings,
            Roles(ServedModel(settings, served, time.time)),
            metrics,
            partitions=settings.kafka.partitions,
            dead_letter_partitions=1,
        )
        taps = _taps(settings, stores, stack)
        worker = Worker(settings, _ports(settings, stores, taps, stack), pipeline, metrics)
        feeder = stack.enter_context(closing(Feeder(settings)))
        bench = Bench(settings, metrics, worker, *taps, feeder)
        bench.start()
        yield bench


def _taps(
    settings: Settings, stores: Stores, stack: ExitStack
) -> tuple[TappedConsumer, TappedProducer]:
    """The two connections that are looked at."""
    kafka, name = settings.kafka, stores.worker_id
    consumer = GroupConsumer(reading(settings), name, auto_offset_reset="error")
    producer = TransactionalProducer(settings, f"{kafka.group_id}-{name}")
    stack.enter_context(closing(producer))
    stack.enter_context(closing(consumer))
    return TappedConsumer(consumer), TappedProducer(producer)


def _ports(
    settings: Settings,
    stores: Stores,
    taps: tuple[TappedConsumer, TappedProducer],
    stack: ExitStack,
) -> Ports:
    """All connections of a worker."""
    kafka = settings.kafka
    consumer, producer = taps
    return Ports(
        consumer=consumer,
        producer=producer,
        reader=stack.enter_context(closing(LogReader(kafka))),
        items=stack.enter_context(closing(Tail(kafka, kafka.topic("items")))),
        signals=stack.enter_context(closing(Tail(kafka, kafka.topic("signals")))),
        open_store=stores.open,
    )
