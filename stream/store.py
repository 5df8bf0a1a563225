"""The store of a partition: RocksDB. No other module imports rocksdict.

One database a partition, one column family, the write-ahead log on, sync off: what the operating
system loses, the changelog brings back. Keys start with a type byte; those that start with zero
are the store's own. All stores of a process share a block cache and a budget for write buffers.

A store that cannot be trusted is wiped, with one log line: it belongs to another cluster, topic or
layout; it is corrupt; or it was away for longer than tombstones live in the changelog, so that it
could bring back a user who was forgotten.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import rocksdict
from numpy.typing import NDArray

from stream import log
from stream.errors import StateError, StoreMismatch
from stream.ports import Put
from stream.state_dir import StateLock, UnownedStores, lock_state_dir, partition_dir, worker_id
from stream.store_errors import Corrupt, is_condemned, remove, translated, wipe

_log = log.get("store")

LAYOUT_VERSION = 1
"""Of keys and values in a store; another one wipes it."""

_IDENTITY = b"\0identity"
_CURRENT = b"\0current"
_OFFSET = b"\0offset:"
_SCAN = 1_000  # records a live iterator reads before it is let go
_OPEN_FILES = 32
_MEMTABLE = 4 << 20
_ARENA = 256 << 10
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
        options.set_write_buffer_size(_MEMTABLE)
        options.set_arena_block_size(_ARENA)
        options.set_max_open_files(_OPEN_FILES)
        options.set_compression_type(rocksdict.DBCompressionType.lz4())
        options.set_keep_log_file_num(2)
        options.set_max_log_file_size(1 << 20)
        options.set_stats_dump_period_sec(0)
        return options


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
        batch = rocksdict.WriteBatch(raw_mode=True)
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

    def restored(self) -> None:
        """The store has everything its changelogs hold, and follows them from now on."""
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
        if self._current:
            self.apply((), {})
        with translated(self.path):
            self._db.close()
        self._db = None

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
            db = rocksdict.Rdict(str(self.path), self._shared.options())
            if fresh:
                db.put(_CURRENT, _DOUBLE.pack(self._clock()))
                db.put(_IDENTITY, self._identity)
        return db

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
            self._db.write(batch)


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
        self._caches: list[VectorCache] = []
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

    def vectors(self, encoder: str) -> VectorCache:
        """The cache of item vectors for the encoder with this sha."""
        cache = VectorCache(self._folder, encoder, self._shared)
        self._caches.append(cache)
        return cache

    def close(self) -> None:
        """Close what is still open and let go of the folder."""
        for store in self._stores.values():
            store.close()
        for cache in self._caches:
            cache.close()
        self._lock.close()


class VectorCache:
    """Vectors of item texts by content hash and encoder, kept over restarts: one a worker."""

    def __init__(self, folder: Path, encoder: str, shared: SharedResources) -> None:
        self._path = folder / "vectors"
        self._encoder = encoder.encode() + b":"
        try:
            self._db = self._open(shared)
        except Corrupt as error:
            wipe(self._path, error.detail)
            self._db = self._open(shared)

    def get_many(self, hashes: NDArray[np.uint64]) -> list[NDArray[np.float16] | None]:
        """The vectors [D] that are stored for `hashes` [m], None where there is none."""
        if not len(hashes):
            return []
        with translated(self._path):
            found = self._db.get(self._keys(hashes))
        return [None if v is None else np.frombuffer(v, np.float16) for v in found]

    def put_many(self, hashes: NDArray[np.uint64], vectors: NDArray[np.float16]) -> None:
        """Store vectors [m, D] for `hashes` [m]."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, vector in zip(self._keys(hashes), vectors, strict=True):
            batch.put(key, vector.astype(np.float16, copy=False).tobytes())
        with translated(self._path):
            self._db.write(batch)

    def close(self) -> None:
        """Let go of the files. May be called twice."""
        with translated(self._path):
            self._db.close()

    def _open(self, shared: SharedResources) -> Any:
        with translated(self._path):
            return rocksdict.Rdict(str(self._path), shared.options())

    def _keys(self, hashes: NDArray[np.uint64]) -> list[bytes]:
        return [self._encoder + h.to_bytes(8, "big") for h in hashes.tolist()]
