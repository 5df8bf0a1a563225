"""Brokers that die: the worker waits, tries again and goes on without help."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from stream.embedded_kafka import EmbeddedKafka
from tests.chaos.process import WorkerProcess
from tests.integration.faults import Site, site
from tests.integration.world import eventually

SOON = {"broker.session.timeout.ms": "7000", "broker.heartbeat.interval.ms": "500"}
"""A cluster that notices after seven seconds that a broker is gone: requests end before."""


WAITING = ("waiting for the broker", "lag unknown")
"""What a worker says that misses the broker, within a batch or between two."""


@pytest.fixture
def cluster() -> Iterator[EmbeddedKafka]:
    """Three brokers."""
    with EmbeddedKafka(brokers=3, heap_mb=384, properties=SOON) as kafka:
        yield kafka


@pytest.fixture(scope="module")
def alone() -> Iterator[EmbeddedKafka]:
    """The only broker of a cluster; each test that kills it restarts it."""
    with EmbeddedKafka() as kafka:
        yield kafka


def test_a_leader_and_coordinator_may_die_under_load(
    cluster: EmbeddedKafka, bundle: Path, tmp_path: Path
) -> None:
    """Batches are committed again while the broker is still away, and none is lost or doubled.

    A worker that is started while nobody knows yet that the broker is gone waits, too.
    """
    copies = {"kafka__replication": 3, "kafka__min_insync_replicas": 2, "kafka__partitions": 3}
    servers = cluster.bootstrap_servers
    with (
        site(servers, bundle, tmp_path, **copies) as place,
        place.worker() as worker,
        place.worker("two") as late,
    ):
        worker.start()
        with traffic(place):
            more_batches(worker)
            cluster.kill(coordinator(place))
            late.start()
            eventually(late.ready, late.text)
            more_batches(worker, late)
        place.settle(worker, late)
        assert late.terminate() == 0, late.text()
        assert worker.terminate() == 0, worker.text()
        place.check(worker, late)


def test_a_worker_outlives_the_only_broker(
    alone: EmbeddedKafka, bundle: Path, tmp_path: Path
) -> None:
    """It waits for as long as no broker answers, and serves again when one does."""
    with site(alone.bootstrap_servers, bundle, tmp_path) as place:
        with place.worker() as worker:
            worker.start()
            place.act()
            place.settle(worker)
            alone.kill(1)
            eventually(lambda: worker.lines("lag unknown"), worker.text)
            alone.restart(1)
            place.act()
            place.settle(worker)
            assert worker.terminate() == 0, worker.text()
        place.check(owner=worker)


def test_a_worker_that_waits_for_a_broker_ends_when_asked_to(
    alone: EmbeddedKafka, bundle: Path, tmp_path: Path
) -> None:
    """SIGTERM ends it, with a batch in hand or not, and its next start goes on."""
    with site(alone.bootstrap_servers, bundle, tmp_path) as place:
        with place.worker() as worker:
            worker.start()
            eventually(worker.ready, worker.text)
            for _ in range(50):
                place.act()
            eventually(lambda: worker.lines("batch"), worker.text)
            alone.kill(1)
            eventually(lambda: any(map(worker.lines, WAITING)), worker.text)
            assert worker.terminate() == 0, worker.text()
            alone.restart(1)
            worker.start()
            place.act()
            place.settle(worker)
            assert worker.terminate() == 0, worker.text()
        place.check(owner=worker)


@contextmanager
def traffic(place: Site) -> Iterator[None]:
    """Users go on acting, and someone on asking for the lag, whatever happens to the brokers."""
    enough = threading.Event()

    def act() -> None:
        while not enough.wait(0.05):
            place.act()
            place.behind()

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def more_batches(*workers: WorkerProcess) -> None:
    """Return when these workers together have committed five more batches."""

    def batches() -> int:
        return sum(len(worker.lines("batch")) for worker in workers)

    def more() -> bool:
        assert all(worker.alive for worker in workers), workers[-1].text()
        return batches() > before + 5

    before = batches()
    eventually(more, workers[0].text)


def coordinator(place: Site) -> int:
    """The broker that coordinates the workers' group; of each topic it leads one partition."""
    kafka = place.settings.kafka
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    found = admin.describe_consumer_groups([kafka.group_id])[kafka.group_id].result()
    leaders = admin.list_topics(kafka.topic("state"), timeout=10).topics[kafka.topic("state")]
    assert found.coordinator.id in {p.leader for p in leaders.partitions.values()}
    return int(found.coordinator.id)
