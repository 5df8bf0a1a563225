"""What all users did until the last closed bucket: counters and neighbours of every partition.

They are aligned with the worker's rows of items and belong to no model, so that a model is changed
without touching them. Event time drives them: `advance` closes buckets as the newest event time
moves on; within a bucket nothing that users share changes, and so lists hardly depend on how events
came in batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adapters import signals
from adapters.experts import Prior, Snapshotter
from adapters.signals import NeighbourDelta, SignalDelta, Signals
from adapters.types import ModelConfig, Shared
from stream.places import Places

Rows = NDArray[np.int64]


class SharedSignals:
    """The signals of every partition, and the event time that this worker has come to."""

    def __init__(self, config: ModelConfig, places: Places, since: float) -> None:
        """`config` says what the numbers mean; `since` (unix seconds) is when they begin.

        What came before is in the prior of the models.
        """
        self.config = config
        self.places = places
        self.since = since
        self.now = since  # newest event time that any user of this worker brought, seconds
        self.parts: dict[int, Signals] = {}
        self._snapshotter = Snapshotter(config)

    def of(self, partition: int) -> Signals:
        """The accumulators of a partition, with room for every item."""
        if partition not in self.parts:
            self.parts[partition] = Signals(self.config, self.places.size)
        own = self.parts[partition]
        own.resize(self.places.size)
        return own

    def forget(self, partition: int) -> None:
        """Begin anew with a partition's signals, before they are read from its store."""
        self.parts.pop(partition, None)

    def observe(
        self,
        partition: int,
        rows: Rows,
        values: NDArray[np.float32],
        times: NDArray[np.float64],
        previous: Rows,
    ) -> SignalDelta:
        """Count events [m] of one partition; what changed is returned and already applied.

        Events from before the end of training are in the prior already.
        """
        own = self.of(partition)
        new = self.streamed(times)
        delta = signals.observe(own, rows[new], values[new], times[new], previous[new])
        own.apply(delta)
        return delta

    def advance(self, now: float, owned: Sequence[int]) -> dict[int, NeighbourDelta]:
        """Move event time on; when a bucket closes, the new neighbours of owned partitions."""
        opened = self.opened
        self.now = max(self.now, now)
        if self.opened == opened:
            return {}
        folded = {p: signals.fold_neighbours(self.of(p), self.opened) for p in owned}
        for partition, delta in folded.items():
            self.parts[partition].apply_neighbours(delta)
        return {p: delta for p, delta in folded.items() if len(delta.rows)}

    @property
    def opened(self) -> float:
        """Start of the bucket that `now` lies in."""
        return float(signals.bucket_start(np.array([self.now]), self.config.bucket)[0])

    def streamed(self, times: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which events at these times (unix seconds) are no part of the prior."""
        return np.asarray(times >= self.since)

    def snapshot(self, prior: Prior) -> Shared:
        """Everything up to the open bucket, on top of what training saw."""
        parts = [self.of(p) for p in sorted(self.parts)] or [self.of(0)]
        return self._snapshotter.snapshot(parts, prior, self.opened)
