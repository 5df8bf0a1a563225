"""More events than can be handled, one user with half of them, and one event at fault."""

from __future__ import annotations

import re
import secrets
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stream.kafka.admin import Admin
from stream.kafka.producer import BulkProducer
from stream.message_encoding import encode
from stream.testing_worker import NOW, click
from tests.chaos.process import WorkerProcess
from tests.integration.faults import Site, site
from tests.integration.world import FILMS, eventually

PARTITIONS, LIMIT, FLOOD = 4, 200, 10_000


@pytest.fixture
def place(broker: str, bundle: Path, tmp_path: Path) -> Iterator[Site]:
    """Four partitions, batches of at most 200 events."""
    limits = {
        "kafka__partitions": PARTITIONS,
        "kafka__session_timeout_ms": 30_000,  # a worker that is stopped for a moment stays a member
        "batch__max_events": LIMIT,
    }
    with site(broker, bundle, tmp_path, **limits) as made:
        yield made


@pytest.fixture
def worker(place: Site) -> Iterator[WorkerProcess]:
    """A worker that serves."""
    with place.worker() as started:
        started.start()
        eventually(started.ready, started.text)
        yield started


def end(place: Site, worker: WorkerProcess) -> None:
    """A clean end and the check."""
    place.settle(worker)
    assert worker.terminate() == 0, worker.text()
    place.check(owner=worker)


def lags(worker: WorkerProcess) -> dict[int, float]:
    """The lag in seconds of every partition that has some."""
    _, page = worker.page("/metrics") or (0, "")
    found = re.findall(r'^innerloop_lag_seconds{partition="(\d+)"} (\S+)$', page, re.MULTILINE)
    return {int(partition): float(value) for partition, value in found if float(value)}


def finished(place: Site) -> dict[bytes, float]:
    """Unix seconds of the last list of every user."""
    last: dict[bytes, float] = {}
    for record in place.topics.records("recommendations"):
        last[record.key or b""] = record.timestamp / 1000
    last.pop(b"_cold", None)
    return last


# -- a flood ------------------------------------------------------------------------------------


def flood(place: Site) -> None:
    """Twenty megabytes at once; what the events say besides is not read by anybody."""
    producer, topic = BulkProducer(place.settings), place.settings.kafka.topic("events")
    for i in range(FLOOD):
        event = click(f"user-{i % 400}", FILMS[i % len(FILMS)].item, NOW + i)
        note = b',"note":"%s"}' % secrets.token_hex(1_000).encode()
        producer.produce(topic, event.user.encode(), encode(event)[:-1] + note)
        producer.poll()
    producer.flush()
    producer.close()


def test_a_flood_is_worked_off_in_full_batches_and_evenly(
    place: Site, worker: WorkerProcess
) -> None:
    """Batches grow to their limit, memory does not, and partitions are late together.

    Lag in seconds is told as it is while the flood lasts, and falls to zero after it. The worker
    is held until all of it is there: a fast machine would never be late.
    """
    memory, began = psutil.Process(worker.pid).memory_info().rss, time.time()
    place.act(100)
    place.settle(worker)
    worker.signal(signal.SIGSTOP)
    flood(place)
    freed = time.time()
    worker.signal(signal.SIGCONT)
    told = eventually(lambda: lags(worker), worker.text)
    assert max(told.values()) <= time.time() - began
    place.settle(worker)
    grown = psutil.Process(worker.pid).memory_info().rss - memory
    eventually(lambda: not lags(worker), worker.text)
    sizes = [line["events"] for line in worker.lines("batch")]
    assert max(sizes) == LIMIT
    assert sizes.count(LIMIT) > FLOOD / LIMIT / 2
    assert grown < 200 << 20
    ends = defaultdict[int, float](float)
    for record in place.topics.records("recommendations"):
        ends[record.partition] = record.timestamp / 1000 - freed
    assert min(ends.values()) > 0.5 * max(ends.values()), ends
    end(place, worker)


# -- a hot user ---------------------------------------------------------------------------------


def test_a_hot_user_does_not_stop_the_others(place: Site, worker: WorkerProcess) -> None:
    """Half of all events are of one user: all are learned, and the others wait no longer for it."""
    others = [f"user-{i}" for i in range(100)]
    events = [
        click("hot" if i % 2 else others[i // 2 % 100], FILMS[i % len(FILMS)].item, NOW + i)
        for i in range(1_600)
    ]
    place.topics.send(*events)
    place.settle(worker)
    last = finished(place)
    crowd = sorted(last[user.encode()] for user in others)
    assert crowd[-1] <= last[b"hot"] + 1
    assert place.topics.lists("hot")[-1]["shots"] == 800
    end(place, worker)


# -- an event at fault --------------------------------------------------------------------------


def test_a_record_that_is_too_large_costs_one_dead_letter(
    broker: str, bundle: Path, tmp_path: Path
) -> None:
    """The broker refuses one list: its event is found in the batch, all others come out."""
    with site(broker, bundle, tmp_path, ranking__top_k=1) as place, place.worker() as worker:
        lists = place.settings.kafka.topic("recommendations")
        worker.start()
        eventually(worker.ready, worker.text)
        with Admin(place.settings.kafka) as admin:
            admin.alter({lists: {"max.message.bytes": "600"}})
        verbose, others = secrets.token_hex(115), [f"user-{i}" for i in range(6)]
        events = [click(user, "h1", NOW) for user in (*others[:3], verbose, *others[3:])]
        place.topics.send(*events)
        place.settle(worker)
        assert worker.terminate() == 0, worker.text()
        dead = place.topics.records("dead_letters")
        assert [record.key for record in dead] == [verbose.encode()]
        assert dict(dead[0].headers)["reason"] == b"unprocessable"
        assert {place.topics.lists(user)[-1]["shots"] for user in others} == {1}
