"""Users whom an older model served last: given an adapter and a list by the new one, unasked.

Every user is rebuilt when he next acts; this is for those who acted lately and wait. Whom it has
still to see follows from the records alone, which name their model: so it survives restarts and
rebalances, and goes over a partition whenever it is served anew. First all partitions are counted,
then their users are rebuilt, a few between two batches and none while batches are full, but for a
small share of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from stream import log
from stream.ports import PartitionStore
from stream.roles import Roles
from stream.user_layout import headers
from stream.user_state import USER

_log = log.get("model")

LOOK = 1_000
"""Records looked at between two batches."""

CHUNK = 64
"""Users rebuilt between two batches."""

SHARE = 0.1
"""Of the time, where batches leave none."""

_DAY_MS = 86_400_000


@dataclass(frozen=True, kw_only=True)
class Due:
    """Users of a partition to be refreshed."""

    partition: int
    names: list[str]  # [n]
    records: list[bytes]  # [n] as they are in the store


@dataclass
class _Walk:
    """A partition: counted, then gone over once more."""

    store: PartitionStore
    records: Iterator[tuple[bytes, bytes]]
    counted: bool = False
    newest: int = 0  # ms of event time
    times: list[NDArray[np.int64]] = field(default_factory=list)  # ms, last events of the outdated
    waiting: list[bytes] = field(default_factory=list)  # keys
    left: int = 0


class Refresher:
    """Walks over the stores of the partitions that are served."""

    def __init__(
        self, within_days: float, roles: Roles, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`within_days` 0 = nobody is refreshed; `clock` paces the work."""
        self._within_ms = round(within_days * _DAY_MS)
        self._roles = roles
        self._clock = clock
        self._walks: dict[int, _Walk] = {}
        self._began = clock()
        self._spent = 0.0
        self._done = 0

    # -- what there is to do ------------------------------------------------------------------

    def serve(self, partition: int, store: PartitionStore) -> None:
        """This partition is served from now on."""
        if self._within_ms:
            self._walks[partition] = _Walk(store, store.scan(USER))

    def closed(self, partition: int) -> None:
        """The store is gone."""
        self._walks.pop(partition, None)

    def serve_with(self, roles: Roles, stores: dict[int, PartitionStore]) -> None:
        """Other models serve: everybody is looked at again."""
        self._roles = roles
        self._began, self._spent, self._done = self._clock(), 0.0, 0
        self.again(stores)

    def again(self, stores: dict[int, PartitionStore]) -> None:
        """What was found may not have been written: go over everything anew."""
        for partition, store in stores.items():
            self.serve(partition, store)

    @property
    def left(self) -> int:
        """Users who wait, as far as they have been counted."""
        return sum(walk.left for walk in self._walks.values())

    # -- a turn -------------------------------------------------------------------------------

    def next(self, *, busy: bool) -> Due | None:
        """Some users whose turn it is; `busy` says that batches are full."""
        began = self._clock()
        if not self._walks or (busy and self._spent > SHARE * (began - self._began)):
            return None
        uncounted = next((p for p, walk in self._walks.items() if not walk.counted), None)
        if uncounted is not None:
            self._count(self._walks[uncounted])
            self.took(self._clock() - began)
            return None
        partition = next(iter(self._walks))
        due = self._due(partition, self._walks[partition])
        self.took(self._clock() - began)
        return due

    def took(self, seconds: float) -> None:
        """Work for the users that were handed out last took so long."""
        self._spent += seconds

    def written(self, users: int) -> None:
        """So many users have been refreshed; the last of them is worth a line."""
        self._done += users
        if not self._walks and self._done:
            seconds = round(self._clock() - self._began, 1)
            _log.info("users refreshed", users=self._done, seconds=seconds)
            self._done = 0

    def _count(self, walk: _Walk) -> None:
        """Look at the next records; at the end it is known which events are recent."""
        found = list(islice(walk.records, LOOK))
        keys, heads = [key for key, _ in found], headers([value for _, value in found])
        walk.newest = max(walk.newest, int(heads["last_time"].max(initial=0)))
        walk.times.append(heads["last_time"][self._outdated(keys, heads)])
        if len(found) < LOOK:
            since = walk.newest - self._within_ms
            walk.left = sum(int((times >= since).sum()) for times in walk.times)
            walk.counted, walk.times, walk.records = True, [], walk.store.scan(USER)

    def _due(self, partition: int, walk: _Walk) -> Due | None:
        """The next users of a partition; it is let go of after the last."""
        if not walk.waiting and not self._find(walk):
            self._walks.pop(partition)
            self.written(0)
            return None
        keys, walk.waiting = walk.waiting[:CHUNK], walk.waiting[CHUNK:]
        walk.left = max(walk.left - len(keys), 0)
        now = walk.store.get_many(keys)  # a scan may be older than this
        there = [(key, value) for key, value in zip(keys, now, strict=True) if value is not None]
        heads = headers([value for _, value in there])
        due = self._outdated([key for key, _ in there], heads)
        chosen = [pair for pair, one in zip(there, due, strict=True) if one]
        names = [key[len(USER) :].decode() for key, _ in chosen]
        return Due(partition=partition, names=names, records=[value for _, value in chosen])

    def _find(self, walk: _Walk) -> bool:
        """Look at the next records for users who wait; False at the end."""
        found = list(islice(walk.records, LOOK))
        keys, heads = [key for key, _ in found], headers([value for _, value in found])
        recent = heads["last_time"] >= walk.newest - self._within_ms
        due = self._outdated(keys, heads) & recent
        walk.waiting = [key for key, one in zip(keys, due, strict=True) if one]
        return bool(found)

    def _outdated(self, keys: Sequence[bytes], heads: NDArray[np.void]) -> NDArray[np.bool_]:
        """Users [n] who have acted and whose record names another model than the one they have."""
        wanted = np.zeros(len(keys), np.uint64)
        names = [key[len(USER) :].decode() for key in keys]
        for model, places in self._roles.split(names):
            wanted[places] = model.hash
        return np.asarray((heads["shots"] > 0) & (heads["model"] != wanted))
