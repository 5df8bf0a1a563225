"""Erasure on the disk: what was deleted is rewritten away, one store at a time.

A deleted record stays in the files of RocksDB until a compaction happens to meet it. This makes
it happen: an eighth of `state.forget_within_hours` after the last time at the latest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from stream import log
from stream.ports import PartitionStore

_log = log.get("worker")

ROUNDS = 8
"""Rounds of erasing within the time in which a forgotten user has to be gone."""


class Eraser:
    """Goes round the stores that are served."""

    def __init__(self, forget_within_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = forget_within_s / ROUNDS
        self._clock = clock
        self._erased: dict[int, float] = {}

    def step(self, stores: Mapping[int, PartitionStore]) -> None:
        """Erase in the one store that has waited longest, if it is due."""
        for partition in list(self._erased):
            if partition not in stores:
                del self._erased[partition]
        waiting = {p: self._erased.setdefault(p, self._clock()) for p in stores}
        if not waiting:
            return
        partition = min(waiting, key=lambda p: waiting[p])
        if self._clock() - waiting[partition] < self._interval:
            return
        self._erased[partition] = self._clock()
        if count := stores[partition].erase():
            _log.info("erased", partition=partition, records=count)
