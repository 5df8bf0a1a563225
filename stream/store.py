"""The store of a partition: RocksDB. No other module imports rocksdict.

One database a partition, one column family, the write-ahead log on, sync off: what the operating
system loses, the changelog brings back. Keys start with a type byte; those that start with zero
are the store's own. All stores of a process share a block cache and a budget for write buffers.

Until a store has caught up with its changelogs, the log is left out and compaction waits: records
and the offsets they stand for share a memtable, so that what a crash takes is read again.

A store that cannot be trusted is wiped, with one log line: it belongs to another cluster, topic or
layout; it is corrupt; or it was away for longer than tombstones live in the changelog, so that it
could bring back a user who was forgotten.
"""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import rocksdict

from stream import log
from stream.errors import StateError, StoreMismatch
from stream.ports import Put
from stream.state_dir import (
    StateLock,
    UnownedStores,
    explained,
    lock_state_dir,
    partition_dir,
    worker_id,
)
from stream.store_errors import Corrupt, is_condemned, remove, translated, wipe
from stream.vector_cache import VectorCache

__all__ = ["Identity", "SharedResources", "Store", "Stores", "VectorCache", "open_store"]

_log = log.get("store")

LAYOUT_VERSION = 1
"""Of keys and values in a store; another one wipes it."""

_IDENTITY = b"\0identity"
_CURRENT = b"\0current"
_OFFSET = b"\0offset:"
_SCAN = 1_000  # records a live iterator reads before it is let go
_OPEN_FILES = 32
_ARENA = 256 << 10
_SERVING = {"write_buffer_size": 4 << 20, "level0_file_num_compaction_trigger": 4}
_RESTORING = {"write_buffer_size": 8 << 20, "level0_file_num_compaction_trigger": 32}
_LEVELS = 7
_SLOW_DOWN, _STOP = 64, 96  # files of level 0: above what a restore leaves to be compacted
_DOUBLE = struct.Struct("<d")
_LONG = struct.Struct("<q")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whose state a store holds. A cluster that was made anew has other ids."""

    cluster: str
    state_topic: str
    signals_topic: str
    layout: int = LAYOUT_VERSION


class SharedResources:
    """What all stores of a process share: the block cache and the budget for write buffers."""

    def __init__(self, cache_mb: int = 64, write_buffer_mb: int = 64) -> None:
        cache = rocksdict.Cache(cache_mb << 20)
        self._table = rocksdict.BlockBasedOptions()
        self._table.set_block_cache(cache)
        self._table.set_bloom_filter(10, False)
        self._table.set_cache_index_and_filter_blocks(True)
        self._table.set_pin_l0_filter_and_index_blocks_in_cache(True)
        self._buffers = rocksdict.WriteBufferManager(write_buffer_mb << 20, False)

    def options(self) -> rocksdict.Options:
        """Options of one store: small memtables, bounded open files, values as they are."""
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_block_based_table_factory(self._table)
        options.set_write_buffer_manager(self._buffers)
        options.set_write_buffer_size(_RESTORING["write_buffer_size"])
        options.set_level_zero_file_num_compaction_trigger(
            _RESTORING["level0_file_num_compaction_trigger"]
        )
        options.set_level_zero_slowdown_writes_trigger(_SLOW_DOWN)
        options.set_level_zero_stop_writes_trigger(_STOP)
        options.set_arena_block_size(_ARENA)
        options.set_max_open_files(_OPEN_FILES)
        kind = rocksdict.DBCompressionType
        options.set_compression_per_level([kind.none()] + (_LEVELS - 1) * [kind.lz4()])
        options.set_bytes_per_sync(1 << 20)
        options.set_max_write_buffer_number(4)
        options.set_keep_log_file_num(2)
        options.set_max_log_file_size(1 << 20)
        options.set_stats_dump_period_sec(0)
        return options

    def open(self, path: Path) -> Any:
        """The database at `path`, made if it is not there. Raises bare `Exception`."""
        return rocksdict.Rdict(str(path), self.options())

    def batch(self) -> Any:
        """An empty write batch."""
        return rocksdict.WriteBatch(raw_mode=True)


class Store:
    """`stream.ports.PartitionStore` on RocksDB."""

    def __init__(
        self, path: Path, identity: Identity, shared: SharedResources, clock: Callable[[], float]
    ) -> None:
        self.path = path
        self._identity = msgspec.json.encode(asdict(identity))
        self._shared = shared
        self._clock = clock
        self._current = False
        self._db = self._open()

    # -- reading ------------------------------------------------------------------------------

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of `keys`, in their order."""
        if not keys:
            return []
        with translated(self.path):
            found: list[bytes | None] = self._db.get(list(keys))
        return found

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All records whose key starts with `prefix`, in key order.

        No iterator of RocksDB stays open between two records: one that is given up half way would
        keep the folder locked. Records that change meanwhile may show either value.
        """
        start = prefix or b"\x01"
        while chunk := self._chunk(start, prefix):
            yield from chunk
            start = chunk[-1][0] + b"\0"

    def offset(self, changelog: str) -> int:
        """Offset of the last record applied from this changelog, -1 at first."""
        stored = self._own(_OFFSET + changelog.encode())
        return -1 if stored is None else int(_LONG.unpack(stored)[0])

    def current_at(self) -> float:
        """Unix seconds when the store was last known to have all of its changelogs."""
        stored = self._own(_CURRENT)
        return -math.inf if stored is None else float(_DOUBLE.unpack(stored)[0])

    # -- writing ------------------------------------------------------------------------------

    def apply(self, puts: Iterable[Put], offsets: Mapping[str, int]) -> None:
        """All puts and offsets in one atomic batch. Raises `StateError` when the disk is full."""
        batch = self._shared.batch()
        for key, value in puts:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        for changelog, offset in offsets.items():
            batch.put(_OFFSET + changelog.encode(), _LONG.pack(offset))
        if self._current:
            batch.put(_CURRENT, _DOUBLE.pack(self._clock()))
        self._write(batch)

    def erase(self, keys: Collection[bytes] | None = None) -> int:
        """What was deleted under these keys, or at all, is gone from the files, keys included.

        Writes everything between the first and the last key anew, about 0.5 s for 100 MB, during
        which other threads run. The database is opened again: MANIFEST and LOG name keys too.
        Returns how many deletions went. Without keys and deletions the tables stay as they are.
        """
        if keys is not None and not keys:
            return 0
        with translated(self.path):
            self._db.flush()
            before = self._deletions()
            if keys is not None:
                self._db.compact_range(min(keys), max(keys) + b"\0", _rewriting())
            elif before:
                self._db.compact_range(None, None, _rewriting())
            erased = before - self._deletions()
        self._begin_anew()
        return erased

    def restored(self) -> None:
        """The store has everything its changelogs hold, and follows them from now on."""
        with translated(self.path):
            self._db.flush()  # before the log goes on, or a crash could leave a hole
            _tune(self._db, _SERVING)
        self._current = True
        self.apply((), {})

    def clear(self) -> None:
        """Delete all records and offsets."""
        self.close()
        remove(self.path)
        self._current = False
        self._db = self._open()

    def close(self) -> None:
        """Let go of the files. May be called twice."""
        if self._db is None:
            return
        try:
            if self._current:
                self.apply((), {})
            with translated(self.path):
                self._db.close()
        finally:
            self._db = None  # a full disk refuses both; there is no second try

    # -- inside -------------------------------------------------------------------------------

    def check(self, max_idle_s: float | None) -> None:
        """Raises `StoreMismatch` when the store must not be trusted."""
        stored, wanted = self._own(_IDENTITY), self._identity
        if stored != wanted:
            raise StoreMismatch(f"it holds {(stored or b'nothing').decode()}")
        away = self._clock() - self.current_at()
        if max_idle_s is not None and away > max_idle_s:
            raise StoreMismatch(f"it was away for {away:.0f} s")

    def _open(self) -> Any:
        with translated(self.path):
            fresh = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            db = self._shared.open(self.path)
            if fresh:
                db.put(_CURRENT, _DOUBLE.pack(self._clock()))
                db.put(_IDENTITY, self._identity)
            if self._current:
                _tune(db, _SERVING)
        return db

    def _deletions(self) -> int:
        """Deletions that lie in tables; one goes with the last of what it hides."""
        return sum(int(table["num_deletions"]) for table in self._db.live_files())

    def _begin_anew(self) -> None:
        """Another MANIFEST and LOG than those that have named keys."""
        self.close()
        with explained(self.path):
            for old in self.path.glob("LOG*"):
                old.unlink()
        self._db = self._open()

    def _own(self, key: bytes) -> bytes | None:
        return self.get_many([key])[0]

    def _chunk(self, start: bytes, prefix: bytes) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        with translated(self.path):
            at = self._db.iter()
            at.seek(start)
            while at.valid() and len(found) < _SCAN and (key := at.key()).startswith(prefix):
                found.append((key, at.value()))
                at.next()
            at.status()  # raises when a block could not be read: the end is not the end
        return found

    def _write(self, batch: Any) -> None:
        with translated(self.path):
            how: Any = rocksdict.WriteOptions()  # its stub calls the property a method
            how.disable_wal = not self._current
            self._db.write(batch, how)


def _tune(db: Any, settings: Mapping[str, int]) -> None:
    db.set_options({name: str(value) for name, value in settings.items()})


def _rewriting() -> Any:
    """A compaction that leaves no file as it is: one that only moved would keep tombstones."""
    options = rocksdict.CompactOptions()
    options.set_bottommost_level_compaction(rocksdict.BottommostLevelCompaction.force_optimized())
    return options


def open_store(
    folder: Path,
    partition: int,
    identity: Identity,
    shared: SharedResources,
    *,
    max_idle_s: float | None = None,
    clock: Callable[[], float] = time.time,
) -> Store:
    """The store of a partition below the state folder, wiped if it cannot be trusted.

    `max_idle_s` is how long tombstones live in the changelogs: a store that was away for longer is
    wiped. Raises `StateError` when the folder cannot be used.
    """
    path = partition_dir(folder, partition)
    if is_condemned(path):
        wipe(path, "it was found corrupt")
    try:
        store = Store(path, identity, shared, clock)
    except Corrupt as error:
        wipe(path, error.detail)
        return Store(path, identity, shared, clock)
    try:
        store.check(max_idle_s)
    except (StoreMismatch, Corrupt) as error:
        _log.warning("wiped", path=str(path), why=error.detail)
        store.clear()
    except StateError:
        store.close()
        raise
    return store


class Stores:
    """Everything in a worker's state folder; a context manager that holds the folder's lock."""

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        *,
        configured_id: str | None = None,
        cache_mb: int = 64,
        write_buffer_mb: int = 64,
        max_idle_s: float | None = None,
    ) -> None:
        """Lock the folder. Raises `StateError` when another worker has it."""
        self._folder = folder
        self._identity = identity
        self._max_idle_s = max_idle_s
        self._shared = SharedResources(cache_mb, write_buffer_mb)
        self._stores: dict[int, Store] = {}
        self._vectors: VectorCache | None = None
        self._lock: StateLock = lock_state_dir(folder)
        self.worker_id = worker_id(folder, configured_id)
        self.unowned = UnownedStores(folder)

    def __enter__(self) -> Stores:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, partition: int) -> Store:
        """The store of a partition; whoever gets it closes it, this does so at the latest."""
        if partition in self._stores:
            self._stores.pop(partition).close()
        self._stores[partition] = open_store(
            self._folder, partition, self._identity, self._shared, max_idle_s=self._max_idle_s
        )
        return self._stores[partition]

    @property
    def topics(self) -> str:
        """Which topics of which cluster this is the state of."""
        return json.dumps(asdict(self._identity), sort_keys=True)

    def vectors(self, encoder: str) -> VectorCache:
        """The cache of item vectors for the encoder with this sha."""
        if self._vectors is None:
            self._vectors = VectorCache(self._folder, encoder, self._shared)
        return self._vectors.of(encoder)

    def keep_vectors(self, encoders: Collection[str]) -> None:
        """Let go of item vectors of encoders other than these."""
        if self._vectors is not None:
            self._vectors.keep(encoders)

    def close(self) -> None:
        """Close what is still open and let go of the folder."""
        for store in self._stores.values():
            store.close()
        if self._vectors is not None:
            self._vectors.close()
        self._lock.close()
