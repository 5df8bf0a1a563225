"""Puts a worker together from its settings: broker, state folder, model, catalogue, endpoint."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from export.bundle import Bundle
from stream import checkpoints, first_model, log, preparing, topics
from stream.checkpoints import Checkpoint
from stream.config import Settings
from stream.errors import BrokerUnavailable
from stream.http import Endpoint
from stream.kafka.admin import Admin
from stream.kafka.consumer import GroupConsumer
from stream.kafka.producer import TransactionalProducer
from stream.kafka.reader import LogReader, Tail
from stream.metrics import Metrics
from stream.model_source import ModelSource
from stream.models import Models, tell
from stream.pipeline import Pipeline
from stream.preparing import OpenModel
from stream.roles import Roles, ServedModel
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
    metrics = Metrics()
    with ExitStack() as stack:
        stores = stack.enter_context(open_stores(settings))
        model, roles, models = _models(settings, stores, metrics, checkpoint, stack)
        pipeline = Pipeline(
            settings,
            roles,
            metrics,
            partitions=partitions,
            dead_letter_partitions=patiently(settings, lambda: _count(settings, "dead_letters")),
        )
        ports = _ports(settings, stores, checkpoint, stack)
        made = Worker(settings, ports, pipeline, metrics, models)
        endpoint = Endpoint(settings.http, metrics.registry, made.healthy, made.ready)
        stack.callback(endpoint.close)
        gc.collect()
        gc.freeze()  # torch and the model stay: looking through them stops a batch for 0.2 s
        stack.callback(gc.unfreeze)
        model.say()
        yield Running(made, endpoint, stores.worker_id)


def _models(
    settings: Settings,
    stores: Stores,
    metrics: Metrics,
    checkpoint: Checkpoint,
    stack: ExitStack,
) -> tuple[OpenModel, Roles, Models | None]:
    """The model to begin with, and who follows `models`; None with `model.follow` off."""
    source = ModelSource(settings, stores, checkpoint)
    model, refusal = patiently(settings, source.first)
    roles = Roles(ServedModel(settings, _serving(settings, model), time.time))
    if not settings.model.follow:
        tell(metrics, roles)
        return model, roles, None
    models = Models(
        settings,
        roles,
        tail=patiently(settings, lambda: Tail(settings.kafka, settings.kafka.topic("models"))),
        preparer=source.preparer(),
        executor=ThreadPoolExecutor(1, "model"),
        metrics=metrics,
        cache=source.cache,
        tidy=source.tidy,
        refused=refusal,
    )
    stack.callback(models.close)
    return model, roles, models


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


def load_bundle(settings: Settings, user: str | None = None) -> Bundle:
    """The bundle that workers with these settings serve a user with. Raises `BundleError`."""
    return patiently(settings, lambda: first_model.bundle(settings, user))


def serving(settings: Settings, bundle: Bundle, cache: VectorCache | None = None) -> Serving:
    """The model of a bundle with its catalogue, on the device that the settings name."""
    return _serving(settings, preparing.opened(settings, bundle, cache))


def _serving(settings: Settings, model: OpenModel) -> Serving:
    torch.set_num_threads(settings.model.threads or 1)  # more workers beat more threads
    return Serving(model.meta, model.version, model.table(), model.items.prior)


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
