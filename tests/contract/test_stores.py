"""What every store of a partition keeps to, and what RocksDB's does beyond."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.errors import StateError
from stream.ports import PartitionStore, Put
from stream.state_dir import UnownedStores, lock_state_dir, partition_dir, worker_id
from stream.store import Identity, SharedResources, Store, Stores, VectorCache, open_store
from stream.store_errors import Corrupt
from stream.testing_store import MemoryStore

IDENTITY = Identity(cluster="c", state_topic="s", signals_topic="g")
SHARED = SharedResources(cache_mb=8, write_buffer_mb=8)


def rocks(folder: Path, **settings: object) -> Store:
    """The store of partition 3."""
    return open_store(folder, 3, IDENTITY, SHARED, **settings)  # type: ignore[arg-type]


@pytest.fixture(params=["rocksdb", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PartitionStore]:
    """An empty store of either kind."""
    made: PartitionStore = rocks(tmp_path) if request.param == "rocksdb" else MemoryStore()
    yield made
    made.close()


# -- every store -----------------------------------------------------------------------------


def test_empty_store_has_nothing(store: PartitionStore) -> None:
    """A new store has no records and stands before the first offset."""
    assert store.get_many([b"ua", b"ub"]) == [None, None]
    assert store.get_many([]) == []
    assert list(store.scan(b"")) == []
    assert store.offset("state") == -1


def test_values_come_in_the_order_of_the_keys(store: PartitionStore) -> None:
    """Many keys are read at once, repeated and unknown ones included."""
    store.apply([Put(b"ua", b"1"), Put(b"ub", b"2")], {"state": 4})
    assert store.get_many([b"ub", b"ux", b"ua", b"ub"]) == [b"2", None, b"1", b"2"]


def test_offsets_are_kept_by_changelog(store: PartitionStore) -> None:
    """Each changelog has an offset of its own, which moves with the records."""
    store.apply([Put(b"ua", b"1")], {"state": 4})
    store.apply([Put(b"ca", b"1")], {"signals": 9})
    assert (store.offset("state"), store.offset("signals")) == (4, 9)
    store.apply([], {"state": 5})
    assert (store.offset("state"), store.offset("signals")) == (5, 9)


def test_last_put_of_a_key_wins(store: PartitionStore) -> None:
    """Puts of one batch are applied in order, and None deletes."""
    store.apply([Put(b"ua", b"1"), Put(b"ua", b"2"), Put(b"ub", b"3"), Put(b"ub", None)], {})
    assert store.get_many([b"ua", b"ub"]) == [b"2", None]
    store.apply([Put(b"ua", None), Put(b"uz", None)], {})
    assert store.get_many([b"ua"]) == [None]


def test_scan_gives_a_prefix_in_key_order(store: PartitionStore) -> None:
    """A scan gives the records with its prefix only, sorted, and nothing of the store's own."""
    puts = [Put(b"u%d" % i, b"x") for i in (3, 1, 2)]
    store.apply([*puts, Put(b"ca", b"y"), Put(b"v", b"z"), Put(b"u\xff\xff", b"w")], {"state": 1})
    assert [key for key, _ in store.scan(b"u")] == [b"u1", b"u2", b"u3", b"u\xff\xff"]
    assert next(key for key, _ in store.scan(b"")) == b"ca"
    assert len(list(store.scan(b""))) == 6


def test_a_batch_is_all_or_nothing(store: PartitionStore) -> None:
    """When the puts fail half way, neither records nor offsets have moved."""

    def puts() -> Iterator[Put]:
        yield Put(b"ua", b"1")
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        store.apply(puts(), {"state": 1})
    assert store.get_many([b"ua"]) == [None]
    assert store.offset("state") == -1


def test_clear_leaves_an_empty_store(store: PartitionStore) -> None:
    """After clear there are neither records nor offsets, and the store can be used again."""
    store.apply([Put(b"ua", b"1")], {"state": 4})
    store.restored()
    store.clear()
    assert list(store.scan(b"")) == []
    assert store.offset("state") == -1
    store.apply([Put(b"ub", b"1")], {"state": 0})
    assert store.get_many([b"ub"]) == [b"1"]


def test_close_may_be_called_twice(store: PartitionStore) -> None:
    """Closing a closed store does nothing."""
    store.close()
    store.close()


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"u", b"c", b"n"]),
            st.binary(max_size=3),
            st.none() | st.binary(max_size=9),
        ),
        max_size=30,
    )
)
def test_both_kinds_agree(tmp_path: Path, changes: list[tuple[bytes, bytes, bytes | None]]) -> None:
    """Any sequence of puts and deletes leaves the same records in memory and in RocksDB."""
    real, twin = rocks(tmp_path), MemoryStore()
    real.clear()
    for place, (kind, name, value) in enumerate(changes):
        for one in (real, twin):
            one.apply([Put(kind + name, value)], {"state": place})
    assert list(real.scan(b"")) == list(twin.scan(b""))
    assert list(real.scan(b"u")) == list(twin.scan(b"u"))
    assert real.offset("state") == twin.offset("state")
    real.close()


# -- RocksDB ---------------------------------------------------------------------------------


def test_records_survive_a_restart(tmp_path: Path) -> None:
    """What was applied is there when the store is opened again."""
    with_data = rocks(tmp_path)
    with_data.apply([Put(b"ua", b"1")], {"state": 7})
    with_data.close()
    again = rocks(tmp_path)
    assert again.get_many([b"ua"]) == [b"1"]
    assert again.offset("state") == 7
    again.close()


@pytest.mark.parametrize("other", ["cluster", "state_topic", "signals_topic", "layout"])
def test_store_of_another_identity_is_wiped(tmp_path: Path, other: str) -> None:
    """A store of another cluster, topic or layout is emptied, not trusted."""
    old = rocks(tmp_path)
    old.apply([Put(b"ua", b"1")], {"state": 7})
    old.close()
    changed = {"cluster": "c", "state_topic": "s", "signals_topic": "g", "layout": 1}
    changed[other] = 2 if other == "layout" else "other"
    new = open_store(tmp_path, 3, Identity(**changed), SHARED)  # type: ignore[arg-type]
    assert new.get_many([b"ua"]) == [None]
    assert new.offset("state") == -1
    new.close()


def test_store_that_was_away_too_long_is_wiped(tmp_path: Path) -> None:
    """A store older than tombstones live is emptied: it could bring back a forgotten user."""
    now = [1_000.0]

    def opened(max_idle_s: float | None = 60.0) -> Store:
        return rocks(tmp_path, max_idle_s=max_idle_s, clock=lambda: now[0])

    store = opened()
    store.restored()
    now[0] += 50
    store.apply([Put(b"ua", b"1")], {"state": 7})
    store.close()
    now[0] += 59
    store = opened()
    assert store.offset("state") == 7
    store.close()  # not restored: it is as old as before
    now[0] += 2
    store = opened()
    assert store.offset("state") == -1
    store.close()


@pytest.mark.parametrize("damage", [b"nonsense\n", b"", None])
@pytest.mark.parametrize("files", ["CURRENT", "MANIFEST-*", "*.sst"])
def test_corrupt_store_is_wiped_at_the_start(
    tmp_path: Path, files: str, damage: bytes | None
) -> None:
    """A database with damaged, empty or missing files is replaced by an empty one."""
    store = rocks(tmp_path)
    store.apply([Put(b"ua", b"1")], {"state": 7})
    store._db.flush()
    store.close()
    for file in partition_dir(tmp_path, 3).glob(files):
        file.unlink() if damage is None else file.write_bytes(damage)
    store = rocks(tmp_path)
    assert store.offset("state") == -1
    store.close()


def test_a_closed_store_is_no_corrupt_one(tmp_path: Path) -> None:
    """Using a store after its end is a mistake of ours and costs no data."""
    store = rocks(tmp_path)
    store.apply([Put(b"ua", b"1")], {"state": 7})
    store.close()
    with pytest.raises(AttributeError):
        store.get_many([b"ua"])
    store = rocks(tmp_path)
    assert store.offset("state") == 7
    store.close()


def test_corruption_met_later_wipes_at_the_next_start(tmp_path: Path) -> None:
    """A block that turns out corrupt stops the worker; the store is wiped when it starts again."""
    store = rocks(tmp_path)
    random = np.random.default_rng(0)
    store.apply([Put(b"u%05d" % i, random.bytes(1_000)) for i in range(2_000)], {"state": 7})
    store._db.flush()
    store.close()
    for table in partition_dir(tmp_path, 3).glob("*.sst"):
        data = bytearray(table.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 2_000] = bytes(2_000)
        table.write_bytes(data)
    store = rocks(tmp_path)
    with pytest.raises(Corrupt, match="Start the worker again"):
        list(store.scan(b"u"))
    store.close()
    store = rocks(tmp_path)
    assert store.offset("state") == -1
    store.close()


def test_scan_given_up_half_way_locks_nothing(tmp_path: Path) -> None:
    """A scan that is still alive does not keep the store from closing and opening again."""
    store = rocks(tmp_path)
    store.apply([Put(b"u%05d" % i, b"x") for i in range(2_500)], {})
    scan = store.scan(b"u")
    assert next(scan) == (b"u00000", b"x")
    store.close()
    again = rocks(tmp_path)
    assert len(list(again.scan(b"u"))) == 2_500
    again.close()
    del scan
    gc.collect()


def test_store_that_is_open_elsewhere_is_refused(tmp_path: Path) -> None:
    """Two stores of one partition cannot be open at once; the first is not harmed."""
    store = rocks(tmp_path)
    store.apply([Put(b"ua", b"1")], {"state": 7})
    with pytest.raises(StateError, match="open elsewhere"):
        rocks(tmp_path)
    assert store.get_many([b"ua"]) == [b"1"]
    store.close()


def test_unusable_folder_is_explained(tmp_path: Path) -> None:
    """A state folder that is a file gives one clear error."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="--state-dir"):
        lock_state_dir(tmp_path / "file")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("IO error: No space left on device: While appending to file", "Free space"),
        ("IO error: Permission denied: /x/LOCK", "writable"),
        ("IO error: While open a file: Too many open files", "ulimit"),
    ],
)
def test_troubles_of_the_disk_name_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, said: str
) -> None:
    """Full disk, lost rights and too few descriptors are errors with a remedy, and wipe nothing."""
    store = rocks(tmp_path)

    class Broken:
        def write(self, batch: object, how: object) -> None:
            raise Exception(message)

    db, store._db = store._db, Broken()
    with pytest.raises(StateError, match=said):
        store.apply([Put(b"ua", b"1")], {})
    store._db = db
    store.close()
    assert not (tmp_path / "partitions" / "3.condemned").exists()


# -- the state folder ------------------------------------------------------------------------


def test_one_worker_a_folder(tmp_path: Path) -> None:
    """A second worker on a folder is told who has it; after the first has gone it may start."""
    first = Stores(tmp_path / "new" / "folder", IDENTITY)
    with pytest.raises(StateError, match=r"in use by another worker, process \d+"):
        Stores(tmp_path / "new" / "folder", IDENTITY)
    first.close()
    Stores(tmp_path / "new" / "folder", IDENTITY).close()


def test_worker_id_is_kept(tmp_path: Path) -> None:
    """The id made at the first start is used at every later one, unless one is configured."""
    first = worker_id(tmp_path)
    assert first.startswith("worker-")
    assert worker_id(tmp_path) == first
    assert worker_id(tmp_path, "mine") == "mine"


def test_stores_are_closed_with_the_folder(tmp_path: Path) -> None:
    """Leaving the folder closes its stores, so that the next process can open them."""
    for value in (b"1", b"2"):
        with Stores(tmp_path, IDENTITY) as stores:
            stores.open(0).apply([Put(b"ua", value)], {})
            stores.open(1)
            again = stores.open(0)  # came back after it was lost
            assert again.get_many([b"ua"]) == [value]


def test_folders_of_lost_partitions_go_after_ten_minutes(tmp_path: Path) -> None:
    """A partition that comes back within the time keeps its store; one that stays away does not."""
    now = [0.0]
    for partition in (0, 1, 2):
        open_store(tmp_path, partition, IDENTITY, SHARED).close()
    unowned = UnownedStores(tmp_path, clock=lambda: now[0])
    assert unowned.sweep({0}) == []
    now[0] = 599
    assert unowned.sweep({0, 1}) == []
    now[0] = 600
    assert unowned.sweep({0}) == [2]
    assert partition_dir(tmp_path, 1).exists()
    assert not partition_dir(tmp_path, 2).exists()
    now[0] = 1_200
    assert unowned.sweep({0}) == [1]


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Callable[[str], VectorCache]]:
    """Opens the vector cache of an encoder; one at a time."""
    opened: list[VectorCache] = []

    def make(encoder: str) -> VectorCache:
        while opened:
            opened.pop().close()
        opened.append(VectorCache(tmp_path, encoder, SHARED))
        return opened[-1]

    yield make
    while opened:
        opened.pop().close()


def test_vectors_are_kept_by_content_and_encoder(cache: Callable[[str], VectorCache]) -> None:
    """A vector comes back after a restart, for the encoder that made it only."""
    vectors = np.arange(6, dtype=np.float16).reshape(2, 3)
    hashes = np.array([2**64 - 1, 5], np.uint64)
    cache("sha-a").put_many(hashes, vectors)
    found = cache("sha-a").get_many(np.array([5, 7, 2**64 - 1], np.uint64))
    assert found[0] is not None
    assert found[0].tolist() == [3, 4, 5]
    assert found[1] is None
    assert cache("sha-b").get_many(hashes) == [None, None]
    assert cache("sha-b").get_many(np.zeros(0, np.uint64)) == []


def test_two_encoders_share_the_files_of_a_cache(cache: Callable[[str], VectorCache]) -> None:
    """While a model is changed both write, from two threads, and neither sees the other's."""
    one = cache("sha-a")
    two = one.of("sha-b")
    hashes = np.arange(500, dtype=np.uint64)

    def write(into: VectorCache, value: float) -> None:
        for at in range(0, 500, 50):
            into.put_many(hashes[at : at + 50], np.full((50, 3), value, np.float16))

    other = threading.Thread(target=write, args=(two, 2.0))
    other.start()
    write(one, 1.0)
    other.join()
    for found, value in ((one.get_many(hashes), 1.0), (two.get_many(hashes), 2.0)):
        assert all(v is not None and v.tolist() == [value] * 3 for v in found)


def test_vectors_of_encoders_that_serve_no_more_go(cache: Callable[[str], VectorCache]) -> None:
    """Those that are named stay, for all others the texts would be encoded anew."""
    hashes = np.array([0, 5, 2**64 - 1], np.uint64)
    one = cache("a1")
    for encoder in ("a0", "a1", "a2", "b" * 64):
        one.of(encoder).put_many(hashes, np.ones((3, 2), np.float16))
    one.keep(["a1", "b" * 64])
    for encoder, there in (("a0", False), ("a1", True), ("a2", False), ("b" * 64, True)):
        assert all((v is not None) == there for v in one.of(encoder).get_many(hashes))
    one.keep([])
    assert one.get_many(hashes) == [None] * 3
