"""Stores that cannot be trusted or written are wiped and rebuilt, or the worker says why not."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition as NativePartition
from confluent_kafka.admin import AdminClient

from stream import assembly, topics
from stream.kafka.admin import Admin
from stream.partitions import CHANGELOGS
from stream.store import Identity, SharedResources, Store, open_store
from tests.chaos.process import Plan, WorkerProcess
from tests.integration.faults import DAY, Site, committed, disagreements, site
from tests.integration.world import eventually


@pytest.fixture(scope="module")
def place(broker: str, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two partitions that all of these tests share; each leaves them in order."""
    with site(broker, bundle, tmp_path_factory.mktemp("stores")) as made:
        yield made


@pytest.fixture
def own(broker: str, bundle: Path, tmp_path: Path) -> Iterator[Site]:
    """Topics of one test alone, which does to them what cannot be undone."""
    with site(broker, bundle, tmp_path) as made:
        yield made


def filled(place: Site, worker: WorkerProcess) -> None:
    """Let a worker handle some traffic and stop it: its stores hold users."""
    worker.start()
    for _ in range(5):
        place.act()
    place.settle(worker)
    assert worker.terminate() == 0, worker.text()


def rebuilt(place: Site, worker: WorkerProcess, why: str) -> None:
    """Start the worker again: it says why it wipes the store, serves, and has everything."""
    worker.start()
    place.act()
    place.settle(worker)
    assert any(why in line["why"] for line in worker.lines("wiped")), worker.text()
    assert worker.terminate() == 0, worker.text()


def tables(worker: WorkerProcess) -> list[Path]:
    """Files of sorted records in all stores of a worker."""
    return sorted(worker.state.glob("partitions/*/*.sst"))


# -- corrupt ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MANIFEST-*", "CURRENT"])
def test_a_store_that_does_not_open_is_rebuilt(place: Site, name: str) -> None:
    """A damaged or missing file of the database costs a restore and nothing else."""
    with place.worker() as worker:
        filled(place, worker)
        for path in worker.state.glob(f"partitions/0/{name}"):
            path.write_bytes(b"what a broken disk leaves behind")
        rebuilt(place, worker, "")
    place.check(owner=worker)


def test_a_block_that_breaks_under_way_is_rebuilt_without_a_restart(place: Site) -> None:
    """Records that cannot be read any more send the worker back to the changelogs, by itself."""
    with place.worker() as worker:
        shutil.rmtree(worker.state, ignore_errors=True)
        filled(place, worker)  # restores first, which leaves tables behind
        for path in tables(worker):
            size = path.stat().st_size
            with path.open("r+b") as table:
                table.write(b"\xa5" * (size // 2))
        worker.start()
        place.act()
        place.settle(worker)
        assert worker.lines("a store broke") or worker.lines("wiped"), worker.text()
        assert worker.terminate() == 0, worker.text()
    place.check(owner=worker)


# -- alien --------------------------------------------------------------------------------------


def test_a_store_of_topics_made_anew_is_wiped(own: Site) -> None:
    """Topics of the same names with other ids: nothing of the old state is met in the new one."""
    roles = ("events", "state", "signals", "recommendations")
    with own.worker() as worker:
        filled(own, worker)
        with Admin(own.settings.kafka) as admin:
            admin.delete([own.settings.kafka.topic(role) for role in roles])
            eventually(lambda: not missing(admin, own, roles))
        topics.create(own.settings)
        rebuilt(own, worker, "it holds")
    own.check(owner=worker)


def missing(admin: Admin, own: Site, roles: tuple[str, ...]) -> set[str]:
    """Topics of these roles that are still there."""
    return {own.settings.kafka.topic(role) for role in roles} & admin.cluster().partitions.keys()


# -- off their changelogs -----------------------------------------------------------------------


def test_a_changelog_cut_above_the_store_is_restored_from_its_beginning(own: Site) -> None:
    """The records after the store's offset are gone from the log: what is left of it counts."""
    state = own.settings.kafka.topic("state")
    with own.worker("one") as one, own.worker("two") as two:
        filled(own, one)
        filled(own, two)
        with Admin(own.settings.kafka) as admin:
            admin.alter({state: {"cleanup.policy": "compact,delete"}})
            for partition in range(2):
                newest = committed(own.settings, "state", partition)[-1].offset
                cut(own, state, partition, newest)
            admin.alter({state: {"cleanup.policy": "compact"}})
        rebuilt(own, one, "its offset is not in")
    assert disagreements(one, range(2)) == []


def cut(own: Site, topic: str, partition: int, offset: int) -> None:
    """Delete the records of a partition that come before `offset`."""
    admin = AdminClient({"bootstrap.servers": own.settings.kafka.bootstrap_servers})
    asked = admin.delete_records([NativePartition(topic, partition, offset)])
    for future in asked.values():
        future.result()


def test_a_store_ahead_of_its_changelog_is_wiped(place: Site) -> None:
    """An offset beyond the end of the log is of another past: the log alone counts."""
    with place.worker() as worker:
        filled(place, worker)
        with closing(opened(worker, 0)) as store:
            store.apply((), dict.fromkeys(CHANGELOGS, 10**9))
        rebuilt(place, worker, "its offset is not in")
    place.check(owner=worker)


def test_a_store_older_than_the_tombstones_is_wiped(place: Site) -> None:
    """It was away for longer than nulls stay in the log, and might bring back who was forgotten."""
    with place.worker() as worker:
        filled(place, worker)
        with closing(opened(worker, 1, age_s=2 * DAY)) as store:
            store.restored()
        rebuilt(place, worker, "it was away for")
    place.check(owner=worker)


def opened(worker: WorkerProcess, partition: int, age_s: float = 0.0) -> Store:
    """The store of a stopped worker, as a process would have written it `age_s` ago."""
    with assembly.open_stores(worker.settings) as stores:
        identity: Identity = stores._identity
    past = time.time() - age_s
    return open_store(worker.state, partition, identity, SharedResources(), clock=lambda: past)


# -- full ---------------------------------------------------------------------------------------


def test_a_write_that_the_disk_refuses_ends_the_worker(place: Site) -> None:
    """Exit code 6 and one line; with room again it goes on as if nothing had been."""
    with place.worker() as worker:
        worker.start(Plan(file_limit=100_000))
        place.act_until(worker)
        assert worker.join() == 6, worker.text()
        worker.start()
        place.settle(worker)
        assert worker.terminate() == 0
    place.check(owner=worker)


def test_a_full_disk_ends_the_worker_with_the_remedy(place: Site) -> None:
    """No space is left: the line says so and what to do; another disk is all that it takes."""
    with place.worker("small") as worker, mounted(worker.state, "4m"):
        worker.start()
        eventually(worker.ready, worker.text)
        with suppress(OSError):
            (worker.state / "what others leave").write_bytes(bytes(4 << 20))
        place.act_until(worker)
        assert worker.join() == 6, worker.text()
        assert "no space left" in worker.text()
        assert "--state-dir" in worker.text()
    with worker:
        worker.start()
        place.settle(worker)
        assert worker.terminate() == 0
    place.check(owner=worker)


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A disk of this size; skips where a test must not mount one."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
