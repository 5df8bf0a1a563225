"""What tests share: one real broker a session, and topic names of their own."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream.config import Settings, load
from tests import exports

# Three files are tested at a time, and many small products gain nothing from more threads: with two
# each, the learning's tests took six times as long. Torch and the processes of tests read this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Folders whose tests wait for brokers and processes for half of their time.
WAITING = {"chaos", "integration"}


def pytest_configure(config: pytest.Config) -> None:
    """What is exported once serves all tests."""
    if exports.begin():
        config.add_cleanup(exports.end)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that needs the broker; files that wait run beside files that compute."""
    for item in items:
        if "broker" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.kafka)
    places = spread(list(dict.fromkeys(item.path for item in items)))
    items.sort(key=lambda item: places[item.path])


def spread(files: list[Path]) -> dict[Path, float]:
    """Where in the run each file comes, 0 to 1: those that mostly wait spread over what computes.

    They end at three quarters, and what computes goes backwards, from the trainings of `unit` to
    short files, because the last file of all runs alone.
    """
    waiting = [file for file in files if WAITING & set(file.parts)]
    computing = [file for file in reversed(files) if not WAITING & set(file.parts)]
    return {
        **{file: 0.75 * index / len(waiting) for index, file in enumerate(waiting)},
        **{file: index / len(computing) for index, file in enumerate(computing)},
    }


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """Bootstrap servers of a real Kafka: the one of KAFKA_BOOTSTRAP_SERVERS, else one started."""
    servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if servers:
        yield servers
        return
    from stream.embedded_kafka import EmbeddedKafka

    with EmbeddedKafka() as kafka:
        yield kafka.bootstrap_servers


@pytest.fixture
def prefix() -> str:
    """Put before the topics and groups of one test, which so shares them with no other."""
    return f"t{uuid.uuid4().hex[:10]}."


@pytest.fixture
def kafka_settings(broker: str, prefix: str) -> Settings:
    """Settings with the real broker, 4 partitions and short timeouts; topics are not made yet."""
    return load(
        None,
        {
            "kafka.bootstrap_servers": broker,
            "kafka.prefix": prefix,
            "kafka.partitions": 4,
            "kafka.session_timeout_ms": 3_000,
        },
    )


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that knows the films of `integration.world`; leave it as it is."""
    from tests.integration.world import save_bundle

    folder = tmp_path_factory.mktemp("model")
    save_bundle(folder, Settings())
    return folder / "bundle"
