"""Stores against their changelogs, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stream.errors import StateError
from stream.ports import Put, TopicPartition
from stream.restore import Restore
from stream.state_dir import lock_state_dir
from stream.store import Identity, SharedResources, open_store
from stream.testing import MemoryLog, MemoryReader
from stream.verifying import Place, Verified, lines, lock, verify

CHANGELOGS = {role: TopicPartition(role, 1) for role in ("state", "signals")}
IDENTITY = Identity(cluster="c", state_topic="s", signals_topic="g")


@pytest.fixture
def log() -> MemoryLog:
    """Users, one of them erased, and a counter."""
    made = MemoryLog()
    for role in CHANGELOGS:
        made.create(role, 2)
    for key, value in [(b"ann", b"old"), (b"bob", b"22"), (b"carl", b"3"), (b"ann", b"1")]:
        made.append("state", key, value, partition=1)
    made.append("state", b"carl", None, partition=1)
    made.append("signals", b"cfilm", b"counter", partition=1)
    made.append("state", b"other partition", b"!", partition=0)
    return made


@pytest.fixture
def shared() -> SharedResources:
    """Small caches."""
    return SharedResources(cache_mb=8, write_buffer_mb=8)


def worker_stopped(
    log: MemoryLog, folder: Path, shared: SharedResources, *puts: Put, identity: Identity = IDENTITY
) -> Path:
    """A worker's state folder whose store has followed the log, and then got `puts`."""
    store = open_store(folder, 1, identity, shared)
    restore = Restore(MemoryReader(log), store, CHANGELOGS)
    while restore.step():
        pass
    store.apply(puts, {})
    store.close()
    return folder


def verified(
    log: MemoryLog, scratch: Path, shared: SharedResources, *folders: Path, until: int | None = None
) -> Verified:
    """The verdict on the partition; `until` bounds what is looked at of `state`."""
    reader = MemoryReader(log)
    ends = reader.end_offsets(list(CHANGELOGS.values()))
    if until is not None:
        ends[CHANGELOGS["state"]] = until
    place = Place(scratch=scratch, state_dirs=folders, identity=IDENTITY, shared=shared)
    return verify(reader, 1, CHANGELOGS, place, ends)


def test_two_ways_to_read_a_changelog_agree(
    log: MemoryLog, tmp_path: Path, shared: SharedResources
) -> None:
    """Without any state folder a fresh store is compared with the log itself."""
    found = verified(log, tmp_path, shared)
    assert (found.records, found.differences) == (3, 0)
    assert found.bytes == len(b"uann1ubob22cfilmcounter")
    assert list(lines(found)) == ["partition 1: 3 records, 23 bytes; equal: restored"]


def test_a_store_that_fell_behind_is_brought_up_as_a_copy(
    log: MemoryLog, tmp_path: Path, shared: SharedResources
) -> None:
    """The worker's own store is left as it was."""
    folder = worker_stopped(log, tmp_path / "one", shared)
    log.append("state", b"dora", b"4", partition=1)
    found = verified(log, tmp_path / "scratch", shared, folder)
    assert (found.records, found.differences) == (4, 0)
    store = open_store(folder, 1, IDENTITY, shared)
    assert store.offset("state") == 4
    assert store.get_many([b"udora"]) == [None]
    store.close()


def test_every_difference_is_named(log: MemoryLog, tmp_path: Path, shared: SharedResources) -> None:
    """Changed, missing and additional keys of one store; the other stores are equal."""
    changes = [Put(b"ubob", b"2x"), Put(b"cfilm", None), Put(b"ueve", b"5")]
    good = worker_stopped(log, tmp_path / "one", shared)
    bad = worker_stopped(log, tmp_path / "two", shared, *changes)
    found = verified(log, tmp_path / "scratch", shared, good, bad)
    assert found.differences == 3
    assert list(lines(found)) == [
        f"partition 1: 3 records, 23 bytes; equal: restored, {good}",
        f"  {bad}: 3 keys differ",
        "    user bob: changelog 2 bytes, store 2 bytes, first difference at byte 1",
        "    user eve: not in the changelog",
        "    counter of film: not in the store",
    ]


def test_stores_that_a_worker_would_wipe_are_not_compared(
    log: MemoryLog, tmp_path: Path, shared: SharedResources
) -> None:
    """Of another cluster, ahead of its changelog, away for too long, or found corrupt."""
    other = replace(IDENTITY, cluster="another")
    foreign = worker_stopped(log, tmp_path / "foreign", shared, identity=other)
    ahead = worker_stopped(log, tmp_path / "ahead", shared)
    store = open_store(ahead, 1, IDENTITY, shared)
    store.apply([], {"state": 99})
    store.close()
    condemned = worker_stopped(log, tmp_path / "condemned", shared)
    (condemned / "partitions" / "1.condemned").touch()
    found = verified(log, tmp_path / "scratch", shared, foreign, ahead, condemned)
    assert found.differences == 0
    said = "\n".join(lines(found))
    for part in ("another", "offset 99 is not in state", "found corrupt"):
        assert part in said
    assert said.count("a worker would wipe it") == 3


def test_keys_written_to_meanwhile_are_left_out(
    log: MemoryLog, tmp_path: Path, shared: SharedResources
) -> None:
    """A store that already knows more than the moment that is looked at is not wrong for it."""
    folder = worker_stopped(log, tmp_path / "one", shared, Put(b"uann", b"tampered"))
    end = log.end(CHANGELOGS["state"])
    log.append("state", b"ann", b"6", partition=1)
    found = verified(log, tmp_path / "scratch", shared, folder, until=end)
    assert (found.moved, found.differences) == (1, 0)
    assert "1 keys written to meanwhile" in next(lines(found))


def test_a_folder_must_be_that_of_a_stopped_worker(tmp_path: Path) -> None:
    """A running worker is named with its process; a folder without stores is no state folder."""
    with pytest.raises(StateError, match="no stores"):
        lock(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "partitions").mkdir()
    held = lock_state_dir(tmp_path)
    with pytest.raises(StateError) as raised:
        lock(tmp_path)
    assert "Stop that worker" in str(raised.value)
    held.close()
    lock(tmp_path).close()
