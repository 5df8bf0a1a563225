"""Whether state is what its changelogs say, byte for byte.

Every partition is restored into a fresh store, by the restore that workers use, and compared with
the newest committed value of each key, read from the log without any of it. Stores of stopped
workers are compared too, each as a copy that was brought to the same offsets.

All of it stands at one moment, the ends of the changelogs as they were at the beginning. Keys that
were written to after that are left out: compaction may have taken what they were.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from stream.errors import StateError, StoreMismatch
from stream.ports import LogReader, PartitionStore, Positions, Record, TopicPartition
from stream.restore import Restore
from stream.state_dir import PARTITIONS, StateLock, lock_state_dir, partition_dir
from stream.store import Identity, SharedResources, Store
from stream.store_errors import Corrupt, is_condemned
from stream.tables import printable
from stream.user_state import USER

SHOWN = 5
"""Differences of a store that are told one by one."""

Values = dict[bytes, bytes]
Changelogs = Mapping[str, TopicPartition]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A key that a store and its changelogs do not agree on; None = not there."""

    key: bytes  # as in a store, with its type byte
    expected: bytes | None
    found: bytes | None

    def __str__(self) -> str:
        """One line."""
        kind = {b"u": "user", b"c": "counter of", b"n": "neighbours of"}.get(self.key[:1], "key")
        return f"{kind} {printable(self.key[1:])}: {self._what()}"

    def _what(self) -> str:
        if self.expected is None or self.found is None:
            return "not in the store" if self.found is None else "not in the changelog"
        sizes = f"changelog {len(self.expected)} bytes, store {len(self.found)} bytes"
        pairs = zip(self.expected, self.found, strict=False)
        shorter = min(len(self.expected), len(self.found))
        first = next((at for at, (a, b) in enumerate(pairs) if a != b), shorter)
        return f"{sizes}, first difference at byte {first}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A store against the changelogs of its partition."""

    what: str  # which store
    differences: tuple[Difference, ...] = ()
    untrusted: str = ""  # why a worker would wipe it, so that it was not compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """One partition: what its changelogs hold, and each store that was compared with it."""

    partition: int
    records: int
    bytes: int
    moved: int  # keys left out, because they were written to meanwhile
    stores: tuple[Compared, ...]

    @property
    def differences(self) -> int:
        """Number of keys on which some store differs, each store counted."""
        return sum(len(store.differences) for store in self.stores)


class AsOf:
    """A log reader whose ends stand still."""

    def __init__(self, reader: LogReader, ends: Positions) -> None:
        self._reader = reader
        self._ends = dict(ends)

    def start_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """As the reader below."""
        return self._reader.start_offsets(partitions)

    def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """The ends as they were."""
        return {tp: self._ends[tp] for tp in partitions}

    def read(
        self, positions: Positions, targets: Positions, limit: int = 10_000
    ) -> Iterator[list[Record]]:
        """As the reader below."""
        return self._reader.read(positions, targets, limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where stores are made and found."""

    scratch: Path  # for stores that are thrown away
    state_dirs: Sequence[Path]  # of stopped workers, locked by the caller
    identity: Identity
    shared: SharedResources
    max_idle_s: float | None = None  # as for a worker's stores
    clock: Callable[[], float] = time.time

    def fresh(self, partition: int) -> Store:
        """An empty store."""
        path = partition_dir(self.scratch / "fresh", partition)
        return Store(path, self.identity, self.shared, self.clock)

    def copies(self, partition: int) -> Iterator[tuple[Path, Path]]:
        """The state folders that have a store of this partition, each with a copy of it."""
        for number, folder in enumerate(self.state_dirs):
            if partition_dir(folder, partition).is_dir():
                copy = partition_dir(self.scratch / str(number), partition)
                yield folder, Path(shutil.copytree(partition_dir(folder, partition), copy))


def lock(folder: Path) -> StateLock:
    """Lock the state folder of a stopped worker. Raises `StateError`."""
    if not (folder / PARTITIONS).is_dir():
        raise StateError(f"{folder} has no stores", remedy="Name the --state-dir of a worker.")
    try:
        return lock_state_dir(folder)
    except StateError as error:
        remedy = "Stop that worker first, or leave its folder out."
        raise StateError(error.detail, remedy=remedy) from None


def verify(
    reader: LogReader, partition: int, changelogs: Changelogs, place: Place, ends: Positions
) -> Verified:
    """Compare every store of a partition with its changelogs up to `ends`."""
    log = AsOf(reader, ends)
    expected = _newest(log, changelogs)
    found = [_restored(log, place.fresh(partition), changelogs, expected)]
    for folder, copy in place.copies(partition):
        found.append(_kept(log, folder, copy, changelogs, expected, place))
    moved = _written_since(reader, changelogs, ends) if any(c.differences for c in found) else set()
    return Verified(
        partition=partition,
        records=len(expected),
        bytes=sum(len(key) + len(value) for key, value in expected.items()),
        moved=len(moved),
        stores=tuple(_without(compared, moved) for compared in found),
    )


def lines(found: Verified) -> Iterator[str]:
    """A partition in words."""
    head = f"partition {found.partition}: {found.records} records, {found.bytes} bytes"
    moved = f", {found.moved} keys written to meanwhile and left out" if found.moved else ""
    equal = [c.what for c in found.stores if not (c.differences or c.untrusted)]
    yield f"{head}{moved}; equal: {', '.join(equal) or 'none'}"
    for compared in found.stores:
        if compared.untrusted:
            yield f"  {compared.what}: not compared, a worker would wipe it: {compared.untrusted}"
        if compared.differences:
            yield f"  {compared.what}: {len(compared.differences)} keys differ"
        for difference in islice(compared.differences, SHOWN):
            yield f"    {difference}"


# -- inside -----------------------------------------------------------------------------------


def _newest(reader: LogReader, changelogs: Changelogs) -> Values:
    """The newest committed value of each key, straight from the log."""
    partitions = list(changelogs.values())
    starts, ends = reader.start_offsets(partitions), reader.end_offsets(partitions)
    values = dict(_written(reader, changelogs, starts, ends))
    return {key: value for key, value in values.items() if value is not None}


def _written_since(reader: LogReader, changelogs: Changelogs, ends: Positions) -> set[bytes]:
    """Keys with records at or after `ends`."""
    now = reader.end_offsets(list(changelogs.values()))
    return {key for key, _ in _written(reader, changelogs, ends, now)}


def _written(
    reader: LogReader, changelogs: Changelogs, starts: Positions, ends: Positions
) -> Iterator[tuple[bytes, bytes | None]]:
    """Keys as in a store, and values, as they were written from `starts` to `ends`."""
    users = changelogs["state"].topic  # whose keys have no type byte in the log
    positions = {tp: starts[tp] for tp in changelogs.values()}
    for batch in reader.read(positions, {tp: ends[tp] for tp in positions}):
        yield from ((USER + r.key if r.topic == users else r.key, r.value) for r in batch if r.key)


def _restored(
    reader: LogReader, store: PartitionStore, changelogs: Changelogs, expected: Values
) -> Compared:
    """A fresh store, restored as a worker does."""
    try:
        _run(Restore(reader, store, changelogs))
        return Compared(what="restored", differences=_differences(store, expected))
    finally:
        store.close()


def _kept(
    reader: LogReader,
    folder: Path,
    copy: Path,
    changelogs: Changelogs,
    expected: Values,
    place: Place,
) -> Compared:
    """A worker's store, as the copy that is thrown away, brought to the ends."""
    what = str(folder)
    if is_condemned(partition_dir(folder, int(copy.name))):
        return Compared(what=what, untrusted="it was found corrupt")
    try:
        store = Store(copy, place.identity, place.shared, place.clock)
    except Corrupt as error:
        return Compared(what=what, untrusted=error.detail)
    try:
        store.check(place.max_idle_s)
        _check_offsets(reader, store, changelogs)
        _run(Restore(reader, store, changelogs))
        return Compared(what=what, differences=_differences(store, expected))
    except (StoreMismatch, Corrupt) as error:
        return Compared(what=what, untrusted=error.detail)
    finally:
        store.close()


def _check_offsets(reader: LogReader, store: PartitionStore, changelogs: Changelogs) -> None:
    """A restore would clear a store beyond the log, and so hide what is in it."""
    partitions = list(changelogs.values())
    starts, ends = reader.start_offsets(partitions), reader.end_offsets(partitions)
    for role, tp in changelogs.items():
        if not starts[tp] <= store.offset(role) + 1 <= ends[tp]:
            raise StoreMismatch(f"its offset {store.offset(role)} is not in {role}")


def _run(restore: Restore) -> None:
    while restore.step():
        pass


def _differences(store: PartitionStore, expected: Values) -> tuple[Difference, ...]:
    """Keys on which the store and the log do not agree, in the order of the store, then the log."""
    found: list[Difference] = []
    seen: set[bytes] = set()
    for key, value in store.scan(b""):
        seen.add(key)
        if expected.get(key) != value:
            found.append(Difference(key=key, expected=expected.get(key), found=value))
    missing = sorted(expected.keys() - seen)
    found += [Difference(key=key, expected=expected[key], found=None) for key in missing]
    return tuple(found)


def _without(compared: Compared, moved: set[bytes]) -> Compared:
    kept = tuple(d for d in compared.differences if d.key not in moved)
    return Compared(what=compared.what, differences=kept, untrusted=compared.untrusted)
