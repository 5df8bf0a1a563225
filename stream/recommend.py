"""From user records to published lists: candidates, experts, a varied top-K, and what caused it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from adapters import adapter, ranking
from adapters.adapter import chosen
from adapters.types import State, Support, UserView
from stream import user_state
from stream.config import Settings
from stream.message_checks import COLD_KEY
from stream.message_encoding import Cause, encode_recommendations
from stream.serving import Serving
from stream.user_state import Layout, Records
from stream.viewing import Viewer

Ints = NDArray[np.int64]


class Recommender:
    """Ranks the catalogue for users and writes their lists."""

    def __init__(self, settings: Settings, serving: Serving, clock: Callable[[], float]) -> None:
        self._settings = settings.ranking
        self._serving = serving
        self._viewer = Viewer(settings.ranking, serving)
        self._clock = clock
        self._layout = Layout.of(serving.meta.config, repeats=settings.ranking.repeats)

    def lists(
        self, names: Sequence[str], records: Records, causes: Sequence[Cause | None]
    ) -> tuple[list[bytes], list[str]]:
        """The lists of n users, and the strategy that made each."""
        control = self.control(names)
        view = self.view(records, control)
        ranked = ranking.rank_prepared(
            self._serving.meta,
            self._serving.prepared(),
            view,
            self._settings.top_k,
            self._settings.diversity,
        )
        shots = records["shots"].tolist()
        own = np.where(records["shots"] > 0, "adapted", "cold")
        strategies = np.where(control, "control", own).tolist()
        versions = records["state_version"].tolist()
        values = self._encode(
            names, ranked.items, ranked.scores, strategies, shots, versions, causes
        )
        return values, strategies

    def cold(self, version: int) -> bytes:
        """The list for users nobody has seen."""
        interests = adapter.read(self._serving.meta, adapter.init(self._serving.meta, 1))
        ranked = ranking.cold(
            self._serving.meta,
            interests,
            self._serving.prepared(),
            self._settings.top_k,
            self._settings.diversity,
        )
        return self._encode(
            [COLD_KEY], ranked.items, ranked.scores, ["cold"], [0], [version], [None]
        )[0]

    def view(self, records: Records, control: NDArray[np.bool_] | None = None) -> UserView:
        """What ranking knows of these users; `control` [n] are ranked without adaptation."""
        view = self._viewer.view(records, adapter.read(self._serving.meta, self._state(records)))
        return view if control is None or not control.any() else self._unadapted(view, control)

    def _state(self, records: Records) -> State:
        """The stored adapters; who has none yet is at the start that his profile gives."""
        state = self._layout.adapter_state(records, self._serving.device)
        has = user_state.has_adapter(records)
        if has.all():
            return state
        start = self._serving.start(user_state.profile_buckets(records, ~has))
        return chosen(self._viewer.tensor(has), state, start)

    def control(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Users [n] whose lists are made without adaptation, always the same ones."""
        share = self._settings.control_share
        if share == 0:
            return np.zeros(len(names), np.bool_)
        hashes = (xxhash.xxh3_64_intdigest(name.encode(), seed=1) for name in names)
        return np.fromiter((h < share * 2**64 for h in hashes), np.bool_, len(names))

    def _unadapted(self, view: UserView, control: NDArray[np.bool_]) -> UserView:
        """The view with nothing known of the control users but what they have seen."""
        mask = self._viewer.tensor(control)
        start = adapter.read(self._serving.meta, adapter.init(self._serving.meta, 1))
        return UserView(
            interests=torch.where(mask[:, None, None], start, view.interests),
            shots=torch.where(mask, 0, view.shots),
            support=Support(
                items=torch.where(mask[:, None], -1, view.support.items),
                values=view.support.values,
                times=view.support.times,
            ),
            seen=torch.where(mask[:, None], -1, view.seen) if view.repeats else view.seen,
            shown=torch.where(mask[:, None], -1, view.shown),
            delta=torch.where(mask[:, None], 0.0, view.delta),
            told=None if view.told is None else view.told & ~mask,
            days=view.days,
            repeats=view.repeats,
        )

    def _encode(
        self,
        names: Sequence[str],
        items: Tensor,
        scores: Tensor,
        strategies: Sequence[str],
        shots: Sequence[int],
        versions: Sequence[int],
        causes: Sequence[Cause | None],
    ) -> list[bytes]:
        now = int(self._clock() * 1000)
        ids = self._serving.table.ids
        return encode_recommendations(
            names,
            [[ids[row] for row in rows if row >= 0] for rows in items.tolist()],
            scores.cpu().numpy(),
            strategy=strategies,
            shots=shots,
            state_versions=versions,
            model_version=self._serving.version,
            generated_at=now,
            expires_at=now + int(self._settings.expires_hours * 3_600_000),
            caused_by=causes,
        )
