"""Puts a worker together from its settings: broker, state folder, model, catalogue, endpoint."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from export.bundle import Bundle
from stream import bundles, checkpoints, log, topics
from stream.catalogue import CatalogueTable, dense_field
from stream.checkpoints import Checkpoint
from stream.config import Settings
from stream.errors import BrokerUnavailable, BundleError
from stream.http import Endpoint
from stream.item_encoder import ItemEncoder
from stream.kafka.admin import Admin
from stream.kafka.consumer import GroupConsumer
from stream.kafka.producer import TransactionalProducer
from stream.kafka.reader import LogReader, Tail
from stream.metrics import Metrics
from stream.pipeline import Pipeline
from stream.serving import Serving
from stream.store import Identity, Stores, VectorCache
from stream.worker import Ports, Worker

START_S = 60.0
"""How long a worker that starts waits for brokers that are away while others answer."""

T = TypeVar("T")

_log = log.get("worker")


@dataclass(frozen=True)
class Running:
    """A worker that is ready to run, and its endpoint."""

    worker: Worker
    endpoint: Endpoint
    worker_id: str


@contextmanager
def worker(settings: Settings, checkpoint: Checkpoint = checkpoints.ignore) -> Iterator[Running]:
    """A worker connected to everything; all of it is closed at the end.

    `checkpoint` is told the points of the commit protocol as they are reached. Raises
    `TopicError`, `BundleError`, `StateError`, `BrokerUnavailable` or `PortInUse`.
    """
    partitions = patiently(settings, lambda: topics.require(settings))
    bundle = load_bundle(settings)
    metrics = Metrics()
    with ExitStack() as stack:
        stores = stack.enter_context(open_stores(settings))
        served = serving(settings, bundle, stores.vectors(bundle.manifest.encoder.sha))
        metrics.model.labels(served.version).set(1)
        pipeline = Pipeline(
            settings,
            served,
            metrics,
            partitions=partitions,
            dead_letter_partitions=patiently(settings, lambda: _count(settings, "dead_letters")),
        )
        made = Worker(settings, _ports(settings, stores, checkpoint, stack), pipeline, metrics)
        endpoint = Endpoint(settings.http, metrics.registry, made.healthy, made.ready)
        stack.callback(endpoint.close)
        gc.collect()
        gc.freeze()  # torch and the model stay: looking through them stops a batch for 0.2 s
        stack.callback(gc.unfreeze)
        yield Running(made, endpoint, stores.worker_id)


def patiently(settings: Settings, call: Callable[[], T]) -> T:
    """Call until it works, while any broker answers: others may be away for a moment.

    A broker that dies keeps its partitions until its session is over. Raises `BrokerUnavailable`
    when no broker answers at all, or after `START_S` seconds.
    """
    deadline = time.monotonic() + START_S
    while True:
        try:
            return call()
        except BrokerUnavailable as error:
            if time.monotonic() > deadline or not _answered(settings):
                raise
            _log.warning("waiting for a broker", why=error.detail)


def _answered(settings: Settings) -> bool:
    with Admin(settings.kafka) as admin:
        try:
            return admin.cluster(timeout=1.0).brokers > 0
        except BrokerUnavailable:
            return False


def open_stores(settings: Settings) -> Stores:
    """The state folder of this worker, locked; stores of another cluster will be wiped."""
    return Stores(
        settings.state.dir,
        patiently(settings, lambda: store_identity(settings)),
        configured_id=settings.worker_id,
        cache_mb=settings.state.cache_mb,
        write_buffer_mb=settings.state.write_buffer_mb,
        max_idle_s=settings.state.forget_within_s,
    )


def store_identity(settings: Settings) -> Identity:
    """Whose state the stores of these topics hold."""
    kafka = settings.kafka
    state, signals = kafka.topic("state"), kafka.topic("signals")
    with Admin(kafka) as admin:
        cluster, ids = admin.cluster().id, admin.topic_ids([state, signals])
    return Identity(cluster=cluster, state_topic=ids[state], signals_topic=ids[signals])


def load_bundle(settings: Settings) -> Bundle:
    """The bundle that the settings name. Raises `BundleError`."""
    if settings.model.bundle is None:
        raise BundleError(
            "none is named",
            remedy="Train one with `innerloop train` and name it with --bundle FOLDER.",
        )
    return bundles.load(settings.model.bundle)


def serving(settings: Settings, bundle: Bundle, cache: VectorCache | None = None) -> Serving:
    """The model of a bundle with its catalogue, on the device that the settings name."""
    device = choose_device(settings.model.device)
    torch.set_num_threads(settings.model.threads or 1)  # more workers beat more threads
    model = settings.model
    encoder = bundles.encoder(bundle, device=model.device, threads=model.threads)
    variant = bundle.manifest.encoder.variant
    _log.info("encoder", variant=variant, provider=encoder.provider, ranking=device)
    items = ItemEncoder(encoder, cache, dense_field(bundle.items))
    table = CatalogueTable(bundle.meta, bundle.items, items, device=device)
    version = bundle.manifest.version
    return Serving(bundle.meta.to(device), version, table, bundle.items.prior)


def choose_device(wanted: str) -> str:
    """`cuda` or `cpu`; says so when a GPU was asked for and is not there."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BundleError(
            "model.device is cuda, but torch finds no GPU",
            remedy="Set model.device to auto or cpu, or run `innerloop doctor`.",
        )
    return wanted


def _count(settings: Settings, role: str) -> int:
    with Admin(settings.kafka) as admin:
        return len(admin.partitions(settings.kafka.topic(role)))


def _ports(settings: Settings, stores: Stores, checkpoint: Checkpoint, stack: ExitStack) -> Ports:
    """Connections to Kafka; each is closed when the worker ends."""
    kafka = settings.kafka
    producer = TransactionalProducer(settings, f"{kafka.group_id}-{stores.worker_id}")
    stack.callback(producer.close)
    reader = LogReader(kafka)
    stack.callback(reader.close)
    return Ports(
        consumer=GroupConsumer(kafka, stores.worker_id, auto_offset_reset="error"),
        producer=producer,
        reader=reader,
        items=patiently(settings, lambda: Tail(kafka, kafka.topic("items"))),
        signals=patiently(settings, lambda: Tail(kafka, kafka.topic("signals"))),
        open_store=stores.open,
        tidy=stores.unowned.sweep,
        checkpoint=checkpoint,
    )
