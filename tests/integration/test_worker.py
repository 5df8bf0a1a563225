"""The worker as a process of its own, on a real broker and a real disk."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from stream import movietweetings, topics
from stream.config import Settings, load
from stream.message_types import Interaction
from stream.murmur2 import partition_of
from stream.testing_worker import NOW, click, item
from tests.integration.world import FILMS, Topics, Worker, eventually, innerloop


@dataclass(frozen=True)
class World:
    """Topics of one test with FILMS in them, and where its workers keep their state."""

    settings: Settings
    topics: Topics
    bundle: Path
    folder: Path

    def worker(self, name: str = "one") -> Worker:
        """A worker that has not been started."""
        return Worker(self.settings, self.bundle, self.folder / name)


def make_world(broker: str, name: str, bundle: Path, folder: Path, partitions: int) -> World:
    """New topics with FILMS in them."""
    changes = {
        "kafka.bootstrap_servers": broker,
        "kafka.prefix": f"{name}-{time.time_ns():x}.",
        "kafka.partitions": partitions,
        "kafka.session_timeout_ms": 3_000,
    }
    settings = load(None, changes)
    topics.create(settings)
    own = Topics(settings)
    own.send(*FILMS)
    return World(settings, own, bundle, folder)


@pytest.fixture(scope="module")
def served(
    broker: str, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[World, Worker]]:
    """A worker that serves four partitions; tests keep to users and items of their own."""
    world = make_world(broker, "served", bundle, tmp_path_factory.mktemp("served"), 4)
    with world.worker() as worker:
        worker.wait_until_ready()
        yield world, worker
    world.topics.close()


@pytest.fixture
def world(broker: str, bundle: Path, tmp_path: Path) -> Iterator[World]:
    """Topics with two partitions for one test alone."""
    made = make_world(broker, "own", bundle, tmp_path, 2)
    yield made
    made.topics.close()


def items_of(found: dict[str, Any]) -> list[str]:
    """Item ids of a list, best first."""
    return [entry["item"] for entry in found["items"]]


# -- one worker that serves ---------------------------------------------------------------------


def test_lists_come_out_committed_and_once(served: tuple[World, Worker]) -> None:
    """A reader of committed records sees one list for an event, with its cause and without it."""
    world, _ = served
    for count, name in enumerate(("h1", "h2", "c3"), 1):
        event = click("ann", name, NOW + count)
        world.topics.send(event)
        found = world.topics.list_after(event.id, "ann")
        assert found["shots"] == count
        assert found["state_version"] == found["caused_by"]["offset"] + 1
        assert name not in items_of(found)
        assert len(items_of(found)) == 20
    world.topics.records("recommendations", settle=0.5)
    assert len(world.topics.lists("ann")) == 3
    cold = {r.partition for r in world.topics.records("recommendations") if r.key == b"_cold"}
    assert cold == {0, 1, 2, 3}


def test_a_new_item_is_ranked_within_a_second(served: tuple[World, Worker]) -> None:
    """A film that no model has seen can be in a list one second after its record came in."""
    world, worker = served
    before = worker.ready()["items"]
    world.topics.send(item("fresh", "Night of the Haunted House 99", category=["Horror"]))
    arrived = time.monotonic()
    eventually(lambda: worker.ready()["items"] > before)
    assert time.monotonic() - arrived < 1.0
    seen = [click("newton", f"h{i}", NOW + i) for i in range(9)]
    seen += [click("newton", f"{kind}{i}", NOW + i) for kind in "cs" for i in range(6)]
    world.topics.send(*seen)  # 15 of 36 films are left, so that all of them fit into the list
    found = world.topics.list_after(seen[-1].id, "newton")
    assert "fresh" in items_of(found)


def test_a_deleted_item_leaves_new_lists_and_cold(served: tuple[World, Worker]) -> None:
    """A null on `items` takes the film out of the next list of a user and of `_cold`."""
    world, worker = served
    world.topics.send(click("dora", "h1", NOW))
    gone = items_of(world.topics.list_after(f"dora-h1-{NOW}-click", "dora"))[0]
    before, colds = worker.ready()["items"], len(world.topics.lists("_cold"))
    world.topics.delete_item(gone)
    eventually(lambda: worker.ready()["items"] < before)
    event = click("dora", "c2" if gone != "c2" else "c3", NOW + 60)
    world.topics.send(event)
    assert gone not in items_of(world.topics.list_after(event.id, "dora"))
    eventually(lambda: len(world.topics.lists("_cold")) >= colds + 4)
    assert all(gone not in items_of(x) for x in world.topics.lists("_cold")[colds:])


def test_events_of_2013_are_loaded_learned_and_kept(served: tuple[World, Worker]) -> None:
    """Event time in the past is no reason to refuse an event or to delete its record."""
    world, _ = served
    old = [event for _, event in zip(range(300), movietweetings.events(), strict=False)]
    assert {time.gmtime(e.timestamp / 1000).tm_year for e in old} == {2013}
    world.topics.send(*old)
    world.topics.learned(*{event.user: event for event in old}.values())
    keys = {event.user.encode() for event in old}
    kept = [r for r in world.topics.records("events", settle=0.5) if r.key in keys]
    assert len(kept) == 300
    assert min(r.timestamp for r in kept) / 1000 > time.time() - 3_600


def test_metrics_and_probes_answer(served: tuple[World, Worker]) -> None:
    """Prometheus finds freshness, stages and lag; both probes say that all is well."""
    world, worker = served
    event = click("mona", "s1", NOW)
    world.topics.send(event)
    partition = world.topics.list_after(event.id, "mona")["caused_by"]["partition"]
    lag = f'innerloop_lag_messages{{partition="{partition}"}} 0.0'
    eventually(lambda: lag in worker.get("/metrics")[1])
    page = worker.get("/metrics")[1]
    assert 'innerloop_freshness_seconds_bucket{le="+Inf"}' in page
    assert "innerloop_lag_seconds{" in page
    for stage in ("decode", "step", "rank", "commit"):
        assert f'innerloop_stage_seconds_count{{stage="{stage}"}}' in page
    assert worker.get("/healthz")[0] == 200
    assert worker.get("/readyz")[0] == 200
    assert worker.get("/elsewhere")[0] == 404
    assert worker.ready()["serving"] == [0, 1, 2, 3]
    batch = next(x for x in worker.log().splitlines() if '"event":"batch"' in x.replace(": ", ":"))
    assert {"events", "lists", "steps", "ms", "fresh_ms_p50"} <= orjson.loads(batch).keys()


def test_a_state_folder_serves_one_worker(served: tuple[World, Worker]) -> None:
    """A second worker on the same folder is refused with the remedy."""
    _, worker = served
    config = str(worker.state.with_suffix(".yaml"))
    result = innerloop("worker", "--config", config)
    assert result.returncode == 6
    assert "in use by another worker" in result.stderr
    assert "--state-dir" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# -- workers that die ---------------------------------------------------------------------------


class Traffic(threading.Thread):
    """Users who click until told to stop; every tenth event is sent twice."""

    def __init__(self, world: World, users: int = 12) -> None:
        super().__init__(daemon=True)
        self.accepted: Counter[str] = Counter()
        self.last: dict[str, Interaction] = {}
        self._topics = Topics(world.settings)
        self._users = users
        self._enough = threading.Event()

    def run(self) -> None:
        """Send a few events every 10 ms."""
        sent = 0
        while not self._enough.wait(0.01):
            events = [self._event(sent + i) for i in range(3)]
            twice = events[:1] if sent % 30 == 0 else []
            self._topics.send(*events, *twice)
            sent += 3

    def stop(self) -> None:
        """Return when all events are in the log."""
        self._enough.set()
        self.join()
        self._topics.close()

    def _event(self, number: int) -> Interaction:
        user = f"user-{number * 7 % self._users}"
        event = click(user, FILMS[number * 5 % len(FILMS)].item, NOW + number)
        self.accepted[user] += 1
        self.last[user] = event
        return event


def check_lists(world: World, user: str, shots: int) -> None:
    """One list a batch, each with more shots and a higher version, the last with all events."""
    found = world.topics.lists(user)
    counts = [x["shots"] for x in found]
    versions = [x["state_version"] for x in found]
    offsets = [x["caused_by"]["offset"] for x in found]
    assert counts[-1] == shots
    for column in (counts, versions, offsets):
        assert column == sorted(set(column))


def test_killed_workers_and_lost_disks_lose_and_repeat_nothing(world: World) -> None:
    """kill -9 in traffic, then again with the disk gone: counts are the events accepted."""
    traffic = Traffic(world)
    with world.worker() as worker:
        worker.wait_until_ready()
        traffic.start()
        for lost_disk in (False, True):
            before = len(world.topics.records("recommendations"))
            eventually(lambda n=before: len(world.topics.records("recommendations")) > n + 40)
            worker.kill()
            if lost_disk:
                shutil.rmtree(worker.state)
            worker.start()
            worker.wait_until_ready()
        restored = [x for x in worker.log().splitlines() if '"restored"' in x]
        traffic.stop()
        world.topics.learned(*traffic.last.values())
        for user, shots in traffic.accepted.items():
            check_lists(world, user, shots)
        code, seconds = worker.terminate()
    assert sum(orjson.loads(line)["records"] for line in restored) > 40
    assert (code, seconds < 5.0) == (0, True)


def test_two_workers_share_partitions_and_what_users_do(world: World) -> None:
    """Each serves a partition; what users of one like is popular with the other; one may leave."""
    with world.worker("one") as one, world.worker("two") as two:
        for worker in (one, two):
            worker.wait_until_ready()
        eventually(lambda: [len(w.ready()["serving"]) for w in (one, two)] == [1, 1])
        users = {
            p: [f"u{i}" for i in range(200) if partition_of(f"u{i}".encode(), 2) == p]
            for p in (0, 1)
        }
        fans = [click(user, "s5", NOW + i) for i, user in enumerate(users[0][:30])]
        world.topics.send(*fans)
        world.topics.list_after(fans[-1].id, fans[-1].user)
        others = iter(users[1])
        soon, later = NOW + 60, NOW + 7_200  # in the fans' hour, and when it is over
        assert place_of("s5", world, click(next(others), "h1", soon)) > 5
        eventually(lambda: place_of("s5", world, click(next(others), "h1", later)) == 0)
        code, seconds = two.terminate()
        assert (code, seconds < 5.0) == (0, True)
        eventually(lambda: one.ready()["serving"] == [0, 1])


def place_of(film: str, world: World, event: Interaction) -> int:
    """The place of a film in the list that this event causes, 0 = first, 99 = none."""
    world.topics.send(event)
    ranked = items_of(world.topics.list_after(event.id, event.user))
    return ranked.index(film) if film in ranked else 99


# -- topics that are wrong ----------------------------------------------------------------------


def test_wrong_topics_are_refused_with_the_remedy(broker: str, bundle: Path) -> None:
    """A worker does not start where topics are missing, and says which command makes them."""
    where = ["-b", broker, "--prefix", f"none-{time.time_ns():x}.", "--bundle", str(bundle)]
    result = innerloop("worker", *where, "--http-port", "0")
    assert result.returncode == 3
    assert "innerloop topics create" in result.stderr
    assert len(result.stderr.splitlines()) == 1
