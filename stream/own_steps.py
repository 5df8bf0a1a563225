"""The inner step on users' own weights of the experts, as a worker takes it.

One for each user and round, on the newest liked event of the round and the view before the round:
with one event of a user in a batch that is what evaluation does.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from adapters import adapter, own_weights
from adapters.types import State
from stream.config import Settings
from stream.serving import MILLISECONDS, Serving
from stream.user_layout import picked
from stream.user_state import Events, Records
from stream.viewing import Viewer

Ints = NDArray[np.int64]


class OwnWeights:
    """Steps the own weights of users; made for models that have them."""

    def __init__(self, settings: Settings, serving: Serving) -> None:
        self._serving = serving
        self._viewer = Viewer(settings.ranking, serving)

    def step(
        self, records: Records, before: Records, state: State, block: Events, rows: Ints
    ) -> None:
        """Put the own weights of n users after a round into `records`, in place.

        `before` and `state` are their records and adapters before it, `rows` [n, t] the items.
        """
        liked = block.mask & (rows >= 0) & (block.values > 0)
        liked &= self._serving.signals.streamed(block.times / MILLISECONDS)
        liked &= (before["shots"] > 0)[:, None]
        users = np.flatnonzero(liked.any(1))
        if not len(users):
            return
        newest = liked.shape[1] - 1 - liked[users, ::-1].argmax(1)
        meta, prepared = self._serving.meta, self._serving.prepared()
        mine = {
            name: field[torch.from_numpy(users).to(field.device)] for name, field in state.items()
        }
        view = self._viewer.view(picked(before, users), adapter.read(meta, mine))
        taken = self._viewer.tensor(rows[users, newest])
        drawn = own_weights.sampled(prepared, self._serving.signals.opened)
        found = own_weights.evidence(meta, prepared, view, taken, drawn)
        records["delta"][users] = own_weights.step(meta, found, view.delta).cpu().numpy()
