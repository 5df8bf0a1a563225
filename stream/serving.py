"""What ranking reads: the model, the catalogue, and what all users did until the last bucket.

Event time drives it. `advance` closes buckets as the newest event time moves on; within a bucket
nothing that users share changes, and so lists hardly depend on how events came in batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from adapters import adapter, profiles, ranking, signals
from adapters.experts import Prior, Snapshotter
from adapters.features import Prepared
from adapters.signals import NeighbourDelta, SignalDelta, Signals
from adapters.types import Block, Meta, State
from stream.catalogue import CatalogueTable
from stream.user_state import Events

Rows = NDArray[np.int64]

MILLISECONDS = 1_000.0
"""In a second."""


class Serving:
    """A model being served, with the signals of every partition."""

    def __init__(self, meta: Meta, version: str, table: CatalogueTable, prior: Prior) -> None:
        self.meta = meta
        self.version = version
        self.device = meta["step_scale"].device
        self.table = table
        self.now = prior.time  # newest event time that any user of this worker brought, seconds
        self.signals: dict[int, Signals] = {}
        self._prior = prior
        self._snapshotter = Snapshotter(meta.config)
        self._prepared: Prepared | None = None
        self._prepared_for: tuple[float, int] = (-1.0, -1)

    def start(self, told: Rows) -> State:
        """The adapters of n users who begin, by the attributes [n, P] of their profiles, -1 = none.

        Where no profile says anything to the model it is the same start for all.
        """
        point = profiles.vectors(self.meta, torch.from_numpy(told).to(self.device))
        return adapter.init(self.meta, len(told), point)

    # -- events -------------------------------------------------------------------------------

    def rows(self, events: Events) -> Rows:
        """Rows [n, t] of the items of events; -1 = masked, or not in the catalogue."""
        return np.where(events.mask, self.table.rows_of(events.items), -1)

    def block(self, events: Events, rows: Rows) -> Block:
        """Events [n, t] as tensors on the model's device; `rows` are theirs."""
        return Block(
            items=torch.from_numpy(rows),
            actions=torch.from_numpy(events.actions.astype(np.int64)),
            values=torch.from_numpy(events.values),
            times=torch.from_numpy(events.times / MILLISECONDS),
            mask=torch.from_numpy(events.mask),
        ).to(self.device)

    # -- signals ------------------------------------------------------------------------------

    def signals_of(self, partition: int) -> Signals:
        """The accumulators of a partition, with room for every item of the catalogue."""
        if partition not in self.signals:
            self.signals[partition] = Signals(self.meta.config, self.table.size)
        own = self.signals[partition]
        own.resize(self.table.size)
        return own

    def forget_signals(self, partition: int) -> None:
        """Begin anew with a partition's signals, before they are read from its store."""
        self.signals.pop(partition, None)

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
        own = self.signals_of(partition)
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
        folded = {p: signals.fold_neighbours(self.signals_of(p), self.opened) for p in owned}
        for partition, delta in folded.items():
            self.signals[partition].apply_neighbours(delta)
        return {p: delta for p, delta in folded.items() if len(delta.rows)}

    @property
    def opened(self) -> float:
        """Start of the bucket that `now` lies in."""
        return float(signals.bucket_start(np.array([self.now]), self.meta.config.bucket)[0])

    # -- ranking ------------------------------------------------------------------------------

    def prepared(self) -> Prepared:
        """The item side as of the last closed bucket; made anew when the bucket or an item did."""
        key = (self.opened, self.table.version)
        if self._prepared is None or key != self._prepared_for:
            parts = [self.signals_of(p) for p in sorted(self.signals)] or [self.signals_of(0)]
            shared = self._snapshotter.snapshot(parts, self._prior, self.opened)
            self._prepared = ranking.prepare(
                self.meta.config, self.table.catalogue(), shared, self._prepared
            )
            self._prepared_for = key
        return self._prepared

    def streamed(self, times: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which events at these times (unix seconds) are no part of the prior."""
        return np.asarray(times >= self._prior.time)
