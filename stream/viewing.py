"""What ranking knows of users, read from their records."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters import own_weights, profiles
from adapters.positions import FAR
from adapters.types import Support, UserView
from stream import config, seen_ring, user_state
from stream.serving import Serving
from stream.user_state import Records

Ints = NDArray[np.int64]


class Viewer:
    """Reads records as ranking does."""

    def __init__(self, ranking: config.Ranking, serving: Serving) -> None:
        self._settings = ranking
        self._serving = serving
        self._own = own_weights.active(serving.meta)

    def view(self, records: Records, interests: Tensor) -> UserView:
        """What ranking knows of n users whose adapters say `interests` [n, K, d]."""
        serving = self._serving
        support = records["support"]
        width = max(1, int((support["item"] != 0).sum(1).max(initial=0)))
        rows = serving.table.rows_of(support["item"][:, :width])
        seen = self._seen(records, rows)
        return UserView(
            interests=interests,
            shots=self.tensor(records["shots"].astype(np.int64)),
            support=Support(
                items=self.tensor(rows),
                values=self.tensor(support["value"][:, :width].copy()),
                times=self.tensor(support["time"][:, :width] / 1000.0),
            ),
            seen=self.tensor(seen),
            shown=self.tensor(
                _at_least_one(serving.table.rows_of_low(user_state.shown_hashes(records)))
            ),
            delta=self.delta(records),
            told=self._told(records),
            days=self.tensor(_days(records, seen)) if self._settings.repeats else None,
            repeats=self._settings.repeats,
        )

    def delta(self, records: Records) -> Tensor:
        """Own weights [n, E]; zero with a model that has none, whatever one before it left."""
        found = records["delta"] if self._own else np.zeros_like(records["delta"])
        return self.tensor(found.copy())

    def tensor(self, array: NDArray[np.generic]) -> Tensor:
        """The same on the model's device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._serving.device)

    def _told(self, records: Records) -> Tensor:
        """Users [n] bool without events whose profile says something to the model."""
        told = user_state.profile_buckets(records, records["shots"] == 0)
        return profiles.known(self._serving.meta, self.tensor(told))

    def _seen(self, records: Records, support_rows: Ints) -> Ints:
        """Rows [n, L] of items the users acted on, newest first, -1 = none.

        In any way, liked or not, where they are not ranked again; else those that were liked.
        """
        older = self._serving.table.rows_of_low(seen_ring.older_seen(records))
        if self._settings.repeats:
            values = records["support"]["value"][:, : support_rows.shape[1]]
            support_rows = np.where(values > 0, support_rows, -1)
        return np.concatenate([support_rows, older], axis=1)


def _days(records: Records, seen: Ints) -> NDArray[np.float32]:
    """Days by the calendar from each of the events `seen` [n, L] to the newest."""
    days = seen_ring.seen_days(records)
    return np.where(seen >= 0, days, FAR).clip(0, FAR).astype(np.float32)


def _at_least_one(rows: Ints) -> Ints:
    """The same with a column of "none" where there is no column."""
    return rows if rows.shape[1] else np.full((len(rows), 1), -1)
