"""Why an item moved: the worker's model, with the user's record and the signals from the topics.

Nothing here is told by the worker. The record is the one in `state`, the counters and neighbours
are those in `signals`, and scores are made by the functions that the worker calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from adapters import adapter, experts, ranking
from adapters.types import UserView
from export.bundle import Bundle
from stream import assembly, inspection
from stream.config import Settings
from stream.kafka.admin import Admin
from stream.kafka.reader import LogReader, Tail
from stream.messages import Item
from stream.ports import TopicPartition
from stream.recommend import Recommender
from stream.signal_log import SignalLog
from stream.user_state import Layout

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

WORDS = {
    "encoder": "nearer to the taste learned step by step",
    "text": "reads like what was clicked",
    "popularity": "popular lately",
    "age": "recent",
    "covisit_prior": "liked by those who liked these",
    "covisit_stream": "picked with these in the last days",
    "repeat": "clicked before",
    "shown": "shown and passed over",
}
"""Experts in words; popularity stands for all of its half-lives."""


class Replica:
    """The model with the catalogue and the signals, read-only."""

    def __init__(self, settings: Settings, bundle: Bundle, items: Sequence[Item]) -> None:
        self._settings = settings
        self.serving = assembly.serving(settings, bundle)
        self.serving.table.upsert(items)
        self._layout = Layout.of(self.serving.meta.config)
        self._recommender = Recommender(settings, self.serving, lambda: 0.0)
        self._signals = SignalLog(self.serving)
        self._reader = LogReader(settings.kafka)
        self._tail: Tail | None = None
        self._starts: dict[TopicPartition, int] = {}
        names = experts.names(self.serving.meta.config)
        self._groups = [name.partition("_")[0] if "popul" in name else name for name in names]

    def close(self) -> None:
        """Let go of the connections."""
        self._reader.close()
        if self._tail is not None:
            self._tail.close()

    def rows(self, items: Sequence[str]) -> Ints:
        """Rows [m] of item ids; all have to be in the catalogue."""
        return np.array([self.serving.table.row(item) for item in items], np.int64)

    def follow(self, now: float) -> None:
        """Read what is new in `signals` and move event time on to `now` (unix seconds)."""
        if self._tail is None:
            kafka = self._settings.kafka
            self._tail = Tail(kafka, kafka.topic("signals"))
            with Admin(kafka) as admin:
                self._starts = admin.end_offsets(admin.partitions(kafka.topic("state")))
        while (records := self._tail.poll(timeout=0.05)) or not self._tail.caught_up():
            self._signals.take(records)
        self.serving.advance(now, [])

    def _view(self, user: str | None) -> UserView:
        """What ranking knows of a user; None = of one nobody has seen."""
        meta = self.serving.meta
        if user is None:
            return ranking.empty_view(meta, adapter.read(meta, adapter.init(meta, 1)))
        return self._recommender.view(self._layout.decode([self._record(user)]))

    def view(self, user: str | None) -> UserView:
        """What ranking knows of a user now; None = of one nobody has seen."""
        if user is not None:
            return self._recommender.view(self._layout.decode([self._record(user)]))
        meta = self.serving.meta
        with torch.inference_mode():
            return ranking.empty_view(meta, adapter.read(meta, adapter.init(meta, 1)))

    def contributions(self, view: UserView, items: Sequence[str]) -> Floats:
        """What each expert adds to the scores of these items for one user: [m, E]."""
        meta, prepared = self.serving.meta, self.serving.prepared()
        rows = torch.from_numpy(self.rows(items))
        with torch.inference_mode():
            return np.asarray(ranking.contributions(meta, prepared, view, rows[None])[0])

    def reasons(self, before: Floats, after: Floats) -> list[str]:
        """In words, which expert moved each of m items most, compared with the others: [m].

        `before` and `after` are `contributions` [m, E] of the same items.
        """
        change = after - before
        change = change - change.mean(0)
        groups = list(dict.fromkeys(self._groups))
        index = np.array([groups.index(name) for name in self._groups])
        summed = np.stack([change[:, index == g].sum(1) for g in range(len(groups))], 1)
        return [WORDS[groups[place]] for place in summed.argmax(1).tolist()]

    def _record(self, user: str) -> bytes | None:
        """The newest record of a user in `state` that came after the first `follow`."""
        key = user.encode()
        found = inspection.committed(self._reader, self._starts)
        return max((r for r in found if r.key == key), key=lambda r: r.offset).value
