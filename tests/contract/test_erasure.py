"""What was deleted can be erased: no file of a store holds its bytes afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from stream.ports import PartitionStore, Put
from stream.state_dir import partition_dir
from stream.store import Identity, SharedResources, Store, open_store
from stream.testing_store import MemoryStore

IDENTITY = Identity(cluster="c", state_topic="s", signals_topic="g")
SHARED = SharedResources(cache_mb=8, write_buffer_mb=8)
RANDOM = random.Random(5)


def rocks(folder: Path) -> Store:
    """The store of partition 3, which follows its changelogs."""
    store = open_store(folder, 3, IDENTITY, SHARED)
    store.restored()
    return store


def user(first: str = "") -> bytes:
    """A key that nothing else looks like; those that begin alike lie side by side."""
    return b"u" + first.encode() + RANDOM.randbytes(16).hex().encode()


def record() -> bytes:
    """A value that cannot be compressed."""
    return RANDOM.randbytes(1_500)


def holding(folder: Path, *secrets: bytes) -> list[str]:
    """The files that hold a long enough part of any secret, as bytes or as RocksDB's log has it."""
    parts = [secret[-24:] for secret in secrets]
    written = [form for part in parts for form in (part, part.hex().encode())]
    written += [part.hex().upper().encode() for part in parts]
    data = contents(partition_dir(folder, 3))
    return sorted(name for name, held in data.items() if any(form in held for form in written))


def contents(folder: Path) -> dict[str, bytes]:
    """All files as they are together; a compaction beside it may remove one that was listed."""
    while True:
        with suppress(FileNotFoundError):
            return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_log(store: Store) -> None:
    """What was written is in the write-ahead log and in memory."""


def in_tables(store: Store) -> None:
    """What was written is in a table of level 0."""
    store._db.flush()


def in_deep_tables(store: Store) -> None:
    """What was written is in a table of the last level."""
    store._db.flush()
    store._db.compact_range(None, None)


def reopened(store: Store) -> None:
    """The store was closed and opened since."""
    store.close()
    store._db = store._open()


@pytest.fixture(params=["rocksdb", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PartitionStore]:
    """An empty store of either kind."""
    made: PartitionStore = rocks(tmp_path) if request.param == "rocksdb" else MemoryStore()
    yield made
    made.close()


def test_erasing_changes_nothing_else(store: PartitionStore) -> None:
    """Other records and the offsets stay, a live record stays, and the store goes on."""
    store.apply([Put(b"u%d" % i, b"x%d" % i) for i in range(9)], {"state": 8, "signals": 3})
    store.apply([Put(b"u4", None), Put(b"u7", None)], {"state": 9})
    store.erase([b"u7", b"u4", b"u5", b"never there"])
    assert store.erase([]) == 0
    assert [key for key, _ in store.scan(b"")] == [b"u%d" % i for i in (0, 1, 2, 3, 5, 6, 8)]
    assert (store.offset("state"), store.offset("signals")) == (9, 3)
    store.apply([Put(b"u4", b"back")], {"state": 10})
    assert store.get_many([b"u4", b"u5"]) == [b"back", b"x5"]


def test_everything_deleted_is_erased_without_keys(store: PartitionStore) -> None:
    """Without keys all deletions go, which are counted; a second time there are none."""
    store.apply([Put(b"u%d" % i, b"x%d" % i) for i in range(9)], {"state": 8})
    store.apply([Put(b"u4", None), Put(b"u7", None)], {"state": 9})
    assert store.erase() == 2
    assert store.erase() == 0
    assert len(list(store.scan(b"u"))) == 7
    assert store.offset("state") == 9


def test_the_twin_tells_what_is_not_erased_yet() -> None:
    """A test can see that what was deleted was erased afterwards."""
    store = MemoryStore()
    store.apply([Put(b"ua", b"1"), Put(b"ub", b"2")], {})
    store.apply([Put(b"ua", None), Put(b"ub", None)], {})
    store.erase([b"ua"])
    assert store.deleted == {b"ub"}


def test_deleting_alone_leaves_the_bytes(tmp_path: Path) -> None:
    """A deleted record lies in the files until it is erased: the search below does find things."""
    store = rocks(tmp_path)
    key, value = user(), record()
    store.apply([Put(key, value)], {"state": 1})
    in_tables(store)
    store.apply([Put(key, None)], {"state": 2})
    in_tables(store)
    assert any(name.endswith(".sst") for name in holding(tmp_path, value))
    assert any(name.startswith("MANIFEST") for name in holding(tmp_path, key))
    store._db.compact_range(key, key + b"\0")
    assert "LOG" in holding(tmp_path, key)
    store.close()


@pytest.mark.parametrize("before", [in_log, in_tables, in_deep_tables, reopened])
@pytest.mark.parametrize("after", [in_log, in_tables, reopened])
@pytest.mark.parametrize("place", ["0", "7", "f", "alone"])
@pytest.mark.parametrize("named", [True, False])
def test_no_file_holds_what_was_erased(
    tmp_path: Path,
    before: Callable[[Store], None],
    after: Callable[[Store], None],
    place: str,
    named: bool,
) -> None:
    """Wherever a user's record and its deletion lie, neither value nor id is left in any file."""
    key, old, new = user(place), record(), record()
    others = [] if place == "alone" else [user() for _ in range(300)]
    store = rocks(tmp_path)
    store.apply([Put(other, record()) for other in others], {"state": 1})
    store.apply([Put(key, old)], {"state": 2})
    before(store)
    store.apply([Put(key, new)], {"state": 3})
    before(store)
    assert holding(tmp_path, key)
    assert holding(tmp_path, new)
    store.apply([Put(key, None)], {"state": 4})
    after(store)
    store.erase([key] if named else None)
    assert holding(tmp_path, key, old, new) == []
    store.close()
    assert holding(tmp_path, key, old, new) == []
    assert len(list(rocks(tmp_path).scan(b"u"))) == len(others)


def test_many_are_erased_at_once(tmp_path: Path) -> None:
    """Users all over a store of several levels are erased by one call; the others are there."""
    store = rocks(tmp_path)
    users, values = [user() for _ in range(4_000)], {}
    for at in range(0, len(users), 250):  # tables of level 0 pile up and are compacted meanwhile
        values |= {key: record() for key in users[at : at + 250]}
        store.apply([Put(key, values[key]) for key in users[at : at + 250]], {"state": at})
        in_tables(store)
    gone = RANDOM.sample(users, 40)
    store.apply([Put(key, None) for key in gone], {"state": 5_000})
    secrets = [*gone, *(values[key] for key in gone)]
    assert holding(tmp_path, *secrets)
    store.erase(gone)
    assert holding(tmp_path, *secrets) == []
    assert dict(store.scan(b"u")) == {k: v for k, v in values.items() if k not in set(gone)}
    store.close()


def test_a_store_that_restores_erases_too(tmp_path: Path) -> None:
    """Before it has caught up with its changelogs a store erases as well, and loses nothing."""
    store = open_store(tmp_path, 3, IDENTITY, SHARED)
    key, value = user(), record()
    store.apply([Put(key, value), Put(b"ustays", b"1")], {"state": 1})
    in_tables(store)
    assert holding(tmp_path, key)
    store.apply([Put(key, None)], {"state": 2})
    store.erase([key])
    assert holding(tmp_path, key, value) == []
    assert store.get_many([b"ustays"]) == [b"1"]
    assert store.offset("state") == 2
    store.close()
