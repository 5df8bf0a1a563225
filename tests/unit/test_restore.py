"""Restore: a store follows its two changelogs to where they end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.ports import LogReader, Message, PartitionStore, Positions, Record, TopicPartition
from stream.restore import Restore
from stream.store import Identity, SharedResources, open_store
from stream.testing import MemoryLog, MemoryProducer, MemoryReader
from stream.testing_store import MemoryStore

STATE, SIGNALS = TopicPartition("state", 1), TopicPartition("signals", 1)
CHANGELOGS = {"state": STATE, "signals": SIGNALS}


class SmallBatches:
    """A reader that gives few records at a time, as a broker under load does."""

    def __init__(self, log: MemoryLog, limit: int) -> None:
        self._reader, self._limit = MemoryReader(log), limit

    def start_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """As the reader below."""
        return self._reader.start_offsets(partitions)

    def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """As the reader below."""
        return self._reader.end_offsets(partitions)

    def read(
        self, positions: Positions, targets: Positions, limit: int = 10_000
    ) -> Iterator[list[Record]]:
        """As the reader below, with its limit."""
        return self._reader.read(positions, targets, self._limit)


@pytest.fixture
def log() -> MemoryLog:
    """Both changelogs, empty, with two partitions each."""
    made = MemoryLog()
    made.create("state", 2)
    made.create("signals", 2)
    return made


def write(log: MemoryLog, *puts: tuple[TopicPartition, bytes, bytes | None]) -> None:
    """One committed transaction."""
    producer = MemoryProducer(log)
    producer.init()
    producer.begin()
    producer.produce([Message(tp.topic, tp.partition, key, value) for tp, key, value in puts])
    producer.commit()


def restored(log: MemoryLog, store: PartitionStore, limit: int = 10_000) -> Restore:
    """A restore that has run to its end."""
    reader: LogReader = SmallBatches(log, limit)
    restore = Restore(reader, store, CHANGELOGS)
    while restore.step():
        pass
    return restore


def test_records_of_both_changelogs_come_back(log: MemoryLog) -> None:
    """Users get their type byte, signals keep theirs; other partitions and aborts do not count."""
    write(log, (STATE, b"ann", b"1"), (SIGNALS, b"cfilm", b"2"), (SIGNALS, b"nfilm", b"3"))
    write(log, (TopicPartition("state", 0), b"bob", b"4"))
    producer = MemoryProducer(log)
    producer.init()
    producer.begin()
    producer.produce([Message("state", 1, b"ann", b"aborted")])
    producer.abort()
    store = MemoryStore()
    restore = restored(log, store)
    assert store.records == {b"uann": b"1", b"cfilm": b"2", b"nfilm": b"3"}
    assert restore.records == 3
    assert restore.progress() == 1.0
    assert store.is_restored


def test_tombstones_delete(log: MemoryLog) -> None:
    """A user who was forgotten does not come back."""
    write(log, (STATE, b"ann", b"1"), (STATE, b"bob", b"2"))
    write(log, (STATE, b"ann", None))
    store = MemoryStore()
    restored(log, store)
    assert store.records == {b"ubob": b"2"}


def test_restore_goes_on_from_the_stores_offset(log: MemoryLog) -> None:
    """Only what the store lacks is read, and a store that lacks nothing reads nothing."""
    write(log, (STATE, b"ann", b"1"), (SIGNALS, b"cfilm", b"1"))
    store = MemoryStore()
    restored(log, store)
    write(log, (STATE, b"ann", b"2"))
    assert restored(log, store).records == 1
    assert store.records[b"uann"] == b"2"
    assert restored(log, store).records == 0


def test_every_batch_is_a_step(log: MemoryLog) -> None:
    """Restore returns after each batch, so that polling goes on, and tells how far it is."""
    for i in range(10):
        log.append("state", b"user%d" % i, b"x", partition=1)
    store = MemoryStore()
    restore = Restore(SmallBatches(log, 4), store, CHANGELOGS)
    seen = []
    while restore.step():
        seen.append((restore.records, restore.progress()))
    assert [records for records, _ in seen] == [4, 8, 10]
    assert [round(progress, 1) for _, progress in seen] == [0.4, 0.8, 1.0]
    assert not restore.step()
    assert restore.seconds >= 0


def test_store_ahead_of_its_changelog_starts_over(log: MemoryLog) -> None:
    """A store that knows of records the log never had is emptied and restored from the log."""
    write(log, (STATE, b"ann", b"1"))
    store = MemoryStore()
    store.apply([], {"state": 50})
    store.records[b"uold"] = b"?"
    restored(log, store)
    assert store.records == {b"uann": b"1"}


def test_store_behind_retention_starts_over(log: MemoryLog) -> None:
    """A store whose next record is no longer in the log is emptied and takes what the log has."""
    for i in range(10):
        log.append("signals", b"cfilm%d" % i, b"x", partition=1)
    store = MemoryStore()
    store.apply([], {"signals": 2})
    store.records[b"cold"] = b"?"
    log.delete_before(SIGNALS, 5)
    restored(log, store)
    assert store.records == {b"cfilm%d" % i: b"x" for i in range(5, 10)}


CHANGES = st.lists(
    st.tuples(
        st.sampled_from([STATE, SIGNALS]),
        st.sampled_from([b"a", b"b", b"cfilm", b"nfilm"]),
        st.none() | st.binary(min_size=1, max_size=9),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(CHANGES, st.integers(1, 5), st.integers(0, 25))
def test_restored_store_is_the_same_to_the_byte(
    changes: list[tuple[TopicPartition, bytes, bytes | None]], limit: int, crash: int
) -> None:
    """However often it is interrupted, a restore ends with the very records of the changelog."""
    log = MemoryLog()
    log.create("state", 2)
    log.create("signals", 2)
    followed, interrupted = MemoryStore(), MemoryStore()
    for change in changes:
        write(log, change)
        restored(log, followed)
    half = Restore(SmallBatches(log, limit), interrupted, CHANGELOGS)
    for _ in range(crash):
        half.step()
    restored(log, interrupted, limit)
    assert interrupted.records == followed.records
    assert interrupted.offsets == followed.offsets


def test_rocksdb_is_restored_like_memory(log: MemoryLog, tmp_path: Path) -> None:
    """The real store holds what the one in memory holds, and goes on from there when reopened."""
    identity = Identity(cluster="c", state_topic="s", signals_topic="g")
    shared = SharedResources(cache_mb=8, write_buffer_mb=8)
    twin = MemoryStore()
    for round_ in range(2):
        write(log, (STATE, b"ann", b"%d" % round_), (SIGNALS, b"cfilm", b"%d" % round_))
        store = open_store(tmp_path, 1, identity, shared)
        assert restored(log, store).records == 2
        restored(log, twin)
        assert dict(store.scan(b"")) == twin.records
        store.close()
