"""From user records to published lists: candidates, experts, a varied top-K, and what caused it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from adapters import adapter, profiles, ranking
from adapters.adapter import chosen
from adapters.types import State, Support, UserView
from stream import user_state
from stream.config import Settings
from stream.message_checks import COLD_KEY
from stream.message_encoding import Cause, encode_recommendations
from stream.serving import Serving
from stream.user_state import Layout, Records

Ints = NDArray[np.int64]


class Recommender:
    """Ranks the catalogue for users and writes their lists."""

    def __init__(self, settings: Settings, serving: Serving, clock: Callable[[], float]) -> None:
        self._settings = settings.ranking
        self._serving = serving
        self._clock = clock
        self._layout = Layout.of(serving.meta.config)

    def lists(
        self, names: Sequence[str], records: Records, causes: Sequence[Cause]
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
        serving = self._serving
        interests = adapter.read(serving.meta, self._state(records))
        support = records["support"]
        width = max(1, int((support["item"] != 0).sum(1).max(initial=0)))
        rows = serving.table.rows_of(support["item"][:, :width])
        view = UserView(
            interests=interests,
            shots=self._tensor(records["shots"].astype(np.int64)),
            support=Support(
                items=self._tensor(rows),
                values=self._tensor(support["value"][:, :width].copy()),
                times=self._tensor(support["time"][:, :width] / 1000.0),
            ),
            seen=self._tensor(self._seen(records, rows)),
            shown=self._tensor(
                _at_least_one(serving.table.rows_of_low(user_state.shown_hashes(records)))
            ),
            delta=self._tensor(records["delta"].copy()),
            told=self._told(records),
            repeats=not self._settings.exclude_seen,
        )
        return view if control is None or not control.any() else self._unadapted(view, control)

    def _state(self, records: Records) -> State:
        """The stored adapters; who has none yet is at the start that his profile gives."""
        state = self._layout.adapter_state(records, self._serving.device)
        has = user_state.has_adapter(records)
        if has.all():
            return state
        start = self._serving.start(user_state.profile_buckets(records, ~has))
        return chosen(self._tensor(has), state, start)

    def _told(self, records: Records) -> Tensor:
        """Users [n] bool without events whose profile says something to the model."""
        told = user_state.profile_buckets(records, records["shots"] == 0)
        return profiles.known(self._serving.meta, self._tensor(told))

    def _seen(self, records: Records, support_rows: Ints) -> Ints:
        """Rows [n, L] of items the users acted on, newest first, -1 = none.

        In any way, liked or not, where they are not ranked again; else those that were liked.
        """
        older = self._serving.table.rows_of_low(user_state.older_seen(records))
        if not self._settings.exclude_seen:
            values = records["support"]["value"][:, : support_rows.shape[1]]
            support_rows = np.where(values > 0, support_rows, -1)
        return np.concatenate([support_rows, older], axis=1)

    def control(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Users [n] whose lists are made without adaptation, always the same ones."""
        share = self._settings.control_share
        if share == 0:
            return np.zeros(len(names), np.bool_)
        hashes = (xxhash.xxh3_64_intdigest(name.encode(), seed=1) for name in names)
        return np.fromiter((h < share * 2**64 for h in hashes), np.bool_, len(names))

    def _unadapted(self, view: UserView, control: NDArray[np.bool_]) -> UserView:
        """The view with nothing known of the control users but what they have seen."""
        mask = self._tensor(control)
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
            repeats=view.repeats,
        )

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._serving.device)

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


def _at_least_one(rows: Ints) -> Ints:
    """The same with a column of "none" where there is no column."""
    return rows if rows.shape[1] else np.full((len(rows), 1), -1)
