"""What ranking reads of one model: its weights, the catalogue as it sees it, and what users share.

What users share (`SharedSignals`) and the rows of items (`Places`) belong to the worker: models
that serve at the same time, or one after the other, have them in common.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from adapters import adapter, profiles, ranking
from adapters.experts import Prior
from adapters.features import Prepared
from adapters.types import Block, Meta, State
from stream.catalogue import CatalogueTable
from stream.shared_signals import SharedSignals
from stream.user_state import Events

Rows = NDArray[np.int64]

MILLISECONDS = 1_000.0
"""In a second."""


class Serving:
    """A model being served."""

    def __init__(
        self,
        meta: Meta,
        version: str,
        table: CatalogueTable,
        prior: Prior,
        signals: SharedSignals | None = None,
    ) -> None:
        """`prior` and `signals` have the table's rows; without `signals` they begin here."""
        self.meta = meta
        self.version = version
        self.device = meta["step_scale"].device
        self.table = table
        self.signals = signals or SharedSignals(meta.config, table.places, prior.time)
        self._prior = prior
        self._prepared: Prepared | None = None
        self._prepared_for: tuple[float, tuple[int, int]] = (-1.0, (-1, -1))

    def start(self, told: Rows) -> State:
        """The adapters of n users who begin, by the attributes [n, P] of their profiles, -1 = none.

        Where no profile says anything to the model it is the same start for all.
        """
        point = profiles.vectors(self.meta, torch.from_numpy(told).to(self.device))
        return adapter.init(self.meta, len(told), point)

    def rows(self, events: Events) -> Rows:
        """Rows [n, t] of the items of events; -1 = masked, or not in the catalogue."""
        return np.where(events.mask, self.table.rows_of(events.items), -1)

    def block(self, events: Events, rows: Rows) -> Block:
        """Events [n, t] as tensors on the model's device; `rows` are theirs.

        Actions that a model after this one has added, before a rollback, are unknown ones here.
        """
        actions = np.minimum(events.actions.astype(np.int64), len(self.meta.config.actions))
        return Block(
            items=torch.from_numpy(rows),
            actions=torch.from_numpy(actions),
            values=torch.from_numpy(events.values),
            times=torch.from_numpy(events.times / MILLISECONDS),
            mask=torch.from_numpy(events.mask),
        ).to(self.device)

    def prepared(self) -> Prepared:
        """The item side as of the last closed bucket; made anew when the bucket or an item did."""
        key = (self.signals.opened, self.table.state)
        if self._prepared is None or key != self._prepared_for:
            self._prepared = ranking.prepare(
                self.meta.config,
                self.table.catalogue(),
                self.signals.snapshot(self._prior),
                self._prepared,
            )
            self._prepared_for = key
        return self._prepared
