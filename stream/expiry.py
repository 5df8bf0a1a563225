"""Users who no longer act: found a few records at a time, so that traffic does not wait.

A user expires when the newest event time of the partition is more than `state.ttl_days` past the
last event of that user. Event time alone drives it: where nobody acts, nobody expires, and a
worker that has just started waits for the first event of a partition.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from stream.ports import PartitionStore
from stream.user_state import USER, Layout, Records

CHUNK = 1_000
"""Records looked at between two batches."""

PAUSE_S = (1.0, 60.0)
"""Least and most seconds between two passes over a partition; a tenth of the ttl between them."""

_DAY_MS = 86_400_000


@dataclass
class _Pass:
    """A walk over the users of a partition."""

    records: Iterator[tuple[bytes, bytes]] | None = None  # None = between two passes
    due: float = 0.0


class Expiry:
    """Walks over the stores of the partitions that are served."""

    def __init__(
        self,
        ttl_days: float | None,
        layout: Layout,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Without `ttl_days` nobody expires; `clock` paces the passes."""
        self._ttl_ms = None if ttl_days is None else round(ttl_days * _DAY_MS)
        self._pause_s = min(max(PAUSE_S[0], (self._ttl_ms or 0) / 10_000), PAUSE_S[1])
        self.layout = layout
        self._clock = clock
        self._newest: dict[int, int] = {}
        self._passes: dict[int, _Pass] = {}

    def acted(self, partition: int, time_ms: int) -> None:
        """An event of this time was committed."""
        self._newest[partition] = max(self._newest.get(partition, 0), time_ms)

    def closed(self, partition: int) -> None:
        """The store is gone."""
        self._newest.pop(partition, None)
        self._passes.pop(partition, None)

    def next_expired(self, partition: int, store: PartitionStore) -> list[bytes]:
        """Ids of users who expired, among the next records of this partition."""
        if self._ttl_ms is None or partition not in self._newest:
            return []
        walk = self._passes.setdefault(partition, _Pass())
        if walk.records is None:
            if walk.due > self._clock():
                return []
            walk.records = store.scan(USER)
        keys = [key for key, _ in islice(walk.records, CHUNK)]
        if len(keys) < CHUNK:
            self._passes[partition] = _Pass(due=self._clock() + self._pause_s)
        return self._expired(keys, store, self._newest[partition] - self._ttl_ms)

    def _expired(self, keys: list[bytes], store: PartitionStore, before: int) -> list[bytes]:
        """Users among `keys` who last acted before that time; a scan may be older than this."""
        found = zip(keys, store.get_many(keys), strict=True)
        readable = ((key, value) for key, value in found if not self.layout.damaged(value))
        there = [(key, value) for key, value in readable if value is not None]
        old = _last_acted(self.layout.decode([value for _, value in there])) < before
        return [key[len(USER) :] for (key, _), gone in zip(there, old, strict=True) if gone]


def _last_acted(records: Records) -> np.ndarray:
    """Milliseconds [n] of the last event; of who never acted, of the last list shown or profile."""
    shown = records["impressions"]["time"].max(1, initial=0).astype(np.int64) * 1000
    last = records["last_time"]
    return np.where(records["shots"] > 0, last, np.maximum(last, shown))
