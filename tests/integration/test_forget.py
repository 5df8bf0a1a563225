"""A forgotten user is gone from the disks: the worker's stores, and the segments of the log."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream import topics
from stream.config import Settings, load
from stream.embedded_kafka import EmbeddedKafka
from stream.message_types import Forget
from stream.testing_worker import NOW, click
from tests.chaos.process import WorkerProcess
from tests.integration.world import FILMS, Topics, eventually

WITHIN_S = 6.0
QUICK_CLEANER = {
    "log.cleaner.backoff.ms": "200",
    "log.cleaner.threads": "1",
    "log.retention.check.interval.ms": "500",
    "log.segment.delete.delay.ms": "100",
}


@pytest.fixture(scope="module")
def quick_kafka() -> Iterator[EmbeddedKafka]:
    """A broker that looks for work to clean several times a second."""
    with EmbeddedKafka(properties=QUICK_CLEANER) as kafka:
        yield kafka


@pytest.fixture
def settings(quick_kafka: EmbeddedKafka) -> Settings:
    """Topics with one partition, in which users have to be gone within seconds."""
    made = load(
        None,
        {
            "kafka.bootstrap_servers": quick_kafka.bootstrap_servers,
            "kafka.prefix": f"f{time.time_ns():x}.",
            "kafka.partitions": 1,
            "state.forget_within_hours": WITHIN_S / 3_600,
        },
    )
    topics.create(made)
    return made


def files_with(name: bytes, folder: Path, pattern: str = "*") -> list[str]:
    """Files below the folders that match, with these bytes anywhere in them."""
    found = []
    for path in (p for top in folder.glob(pattern) for p in [top, *top.rglob("*")]):
        try:
            if path.is_file() and name in path.read_bytes():
                found.append(os.fspath(path.relative_to(folder)))
        except FileNotFoundError:
            continue  # compacted away meanwhile
    return found


def test_no_byte_of_a_forgotten_user_stays(
    quick_kafka: EmbeddedKafka, settings: Settings, bundle: Path, tmp_path: Path
) -> None:
    """The id stands in the store, in `state` and in `recommendations`; later in none of them."""
    user, world = f"user-{uuid.uuid4().hex}", Topics(settings)
    name, data, kafka = user.encode(), quick_kafka.nodes[0].data, settings.kafka
    logs = {role: f"{kafka.topic(role)}-0" for role in ("state", "recommendations")}
    world.send(*FILMS)
    with WorkerProcess(settings, bundle, tmp_path, "one") as worker:
        worker.start()
        event = click(user, "h1", NOW)
        world.send(event)
        world.list_after(event.id, user)
        for folder in logs.values():
            eventually(lambda folder=folder: files_with(name, data, folder))
        eventually(lambda: files_with(name, worker.state))
        world.send(Forget(id="bye", timestamp=int(NOW * 1000) + 1, user=user))
        eventually(lambda: not files_with(name, worker.state), worker.text)
        for folder in logs.values():
            eventually(lambda folder=folder: not files_with(name, data, folder), worker.text)
        assert worker.alive
    world.close()
