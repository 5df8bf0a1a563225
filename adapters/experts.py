"""The experts: numbers per user and item that are mixed into the score, and how they are weighted.

The encoder is one of them. Popularity and age are columns of the item side, text similarity is a
dot product, co-visitation, repeats and impressions touch few items of a user. `snapshot` turns the
accumulators of `signals` into what ranking reads; training computes the same from a log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adapters import repeats
from adapters.features import NEAREST
from adapters.signals import (
    PAIR_HALF_LIFE,
    Floats,
    Ints,
    Signals,
    Times,
    bucket_start,
    closed_counts,
    decay,
    grown,
    heaviest,
    previous_items,
)
from adapters.types import Meta, ModelConfig, Shared, UserView

PACE = 3_600.0
"""Seconds between a user's latest two events at which pace is a half."""

TOLD = "expert_weight_told"
"""Tensor [E] of a model whose fit saw profiles: weights of users who have one and no events."""

PAIR_SHRINK = 4.0
"""Co-visitation weight added to both items' totals: a pair seen once proves little."""

DEFAULT_WEIGHTS = {
    "encoder": 1.0,
    "text": 0.5,
    "popularity": 0.4,
    "age": 0.1,
    "covisit_prior": 0.3,
    "covisit_stream": 0.8,
    "repeat": 0.5,
    "shown": -0.3,
}
"""Weights of experts where none were fitted."""


def names(config: ModelConfig) -> tuple[str, ...]:
    """The experts in the order of their weights; popularity once per half-life, in seconds."""
    popularity = tuple(f"popularity_{h:g}" for h in config.half_lives)
    return (
        "encoder",
        "text",
        *popularity,
        "age",
        "covisit_prior",
        "covisit_stream",
        "repeat",
        "shown",
    )


def default_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Unfitted weights: `expert_weight` [E, 4] as in `weights`, `expert_weight_zero` [E]."""
    popularity = DEFAULT_WEIGHTS["popularity"]
    start = torch.tensor([DEFAULT_WEIGHTS.get(name, popularity) for name in names(config)])
    return {
        "expert_weight": torch.cat([start[:, None], torch.zeros(len(start), 3)], 1),
        "expert_weight_zero": start.clone(),
    }


def weights(meta: Meta, view: UserView, trend: Tensor) -> Tensor:
    """Weights [n, E] of users: w0 + w1 log(1 + shots) + w2 pace + w3 trend + the user's delta.

    `trend` [n] is that of `features`. Users without events have weights of their own, to which
    delta is not added; those who have a profile have others again.
    """
    warm = circumstances(view, trend) @ meta["expert_weight"].T + view.delta
    zero = meta["expert_weight_zero"]
    if view.told is not None and TOLD in meta.tensors:
        zero = torch.where(view.told[:, None], meta[TOLD], zero)
    return torch.where((view.shots > 0)[:, None], warm, zero)


def circumstances(view: UserView, trend: Tensor) -> Tensor:
    """What weights depend on: 1, log(1 + shots), pace and trend, [n, 4].

    Pace is 1 for a user whose latest two events follow each other at once, 1/2 with PACE seconds
    between them, 0 with one event. Who goes through several items in a row picks what belongs
    together; who comes back after days picks what is new.
    """
    newest, before = view.support.times[:, 0], view.support.times[:, 1:2].sum(1)
    near = PACE / (PACE + (newest - before).clamp(min=0))
    pace = torch.where(before > 0, near, 0.0).float()
    grows = torch.log1p(view.shots.float())
    return torch.stack([torch.ones_like(pace), grows, pace, trend], 1)


@dataclass(frozen=True, slots=True)
class Prior:
    """What training saw of all users, as part of a bundle. Rows beyond it are new items."""

    time: float  # counts are decayed to here; the stream's signals start here
    counts: Floats  # [N, H]
    neighbour_items: Ints  # [N, M], -1 = none
    neighbour_weights: Floats  # [N, M] normalised
    returns: Floats | None = None  # [N, 2] of `repeats.returns`; None = training did not count them


class Snapshotter:
    """Merges the signals of all partitions; recomputes only what changed since its last call."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._seen: list[tuple[int, int]] = []  # identity and clock of each partition's signals
        self._counts = np.zeros((0, len(config.half_lives)))
        self._counts_time = np.zeros(0)
        self._pending = np.zeros(0, np.bool_)
        self._width = min(config.neighbours, NEAREST)
        self._items = np.zeros((0, self._width), np.int64)
        self._weights = np.zeros((0, self._width), np.float32)
        self._totals = np.zeros(0)
        self._times = np.zeros(0)

    def snapshot(self, partitions: Sequence[Signals], prior: Prior | None, now: float) -> Shared:
        """Everything that happened in buckets that ended by `now`, of all partitions.

        `now` is the start of the open bucket. Tensors are copies: later changes do not show.
        """
        known = [id(s) for s in partitions] == [i for i, _ in self._seen]
        clocks = [clock for _, clock in self._seen] if known else [-1] * len(partitions)
        size = max([s.size for s in partitions] + [0 if prior is None else len(prior.counts)])
        self._grow(size)
        self._merge_counts(partitions, clocks, now)
        self._merge_neighbours(partitions, clocks, now)
        self._seen = [(id(s), s.clock) for s in partitions]
        return self._shared(prior, now)

    def _grow(self, size: int) -> None:
        if size <= len(self._times):
            return
        self._counts = grown(self._counts, size, 0)
        self._counts_time = grown(self._counts_time, size, 0)
        self._pending = grown(self._pending, size, 0)
        self._items = grown(self._items, size, -1)
        self._weights = grown(self._weights, size, 0)
        self._totals = grown(self._totals, size, 0)
        self._times = grown(self._times, size, 0)

    def _merge_counts(
        self, partitions: Sequence[Signals], clocks: Sequence[int], now: float
    ) -> None:
        dirty = self._pending.copy()
        for signals, clock in zip(partitions, clocks, strict=True):
            dirty[: signals.size] |= signals.counter_stamps > clock
        rows = np.flatnonzero(dirty)
        if not len(rows):
            return
        self._counts[rows] = 0
        self._counts_time[rows] = now
        self._pending[rows] = False
        for signals in partitions:
            own = rows[: np.searchsorted(rows, signals.size)]
            own = own[signals.times[own] > 0]
            counts, times = signals.counts[own], signals.times[own]
            self._counts[own] += closed_counts(self.config, counts, times, now)
            self._pending[own] |= times + self.config.bucket > now

    def _merge_neighbours(
        self, partitions: Sequence[Signals], clocks: Sequence[int], now: float
    ) -> None:
        dirty = np.zeros(len(self._times), np.bool_)
        for signals, clock in zip(partitions, clocks, strict=True):
            dirty[: signals.size] |= signals.neighbour_stamps > clock
        rows = np.flatnonzero(dirty)
        if not len(rows):
            return
        parts = [s.neighbours(rows[: np.searchsorted(rows, s.size)]) for s in partitions]
        place, items, raw, times = (np.concatenate(x) for x in zip(*parts, strict=True))
        decayed = raw * decay(now - times, PAIR_HALF_LIFE)
        lists = heaviest(place, items, decayed, len(rows), self._width)
        self._items[rows], self._weights[rows] = lists
        self._totals[rows] = np.bincount(place, decayed, len(rows))
        self._times[rows] = now

    def _shared(self, prior: Prior | None, now: float) -> Shared:
        half = np.asarray(self.config.half_lives)
        counts = self._counts * decay((now - self._counts_time)[:, None], half)
        if prior is not None:
            counts[: len(prior.counts)] += prior.counts * decay(
                np.full(len(half), now - prior.time), half
            )
        return Shared(
            now=now,
            popularity=torch.from_numpy(counts.astype(np.float32)),
            neighbour_items=torch.from_numpy(self._items.copy()),
            neighbour_weights=torch.from_numpy(self._normalised(now)),
        )

    def _normalised(self, now: float) -> Floats:
        age = decay(now - self._times, PAIR_HALF_LIFE)
        scale = (1 / np.sqrt(self._totals * age + PAIR_SHRINK)).astype(np.float32)
        own = (age * scale).astype(np.float32)
        rows = np.flatnonzero(self._totals)
        out = np.zeros_like(self._weights)
        out[rows] = self._weights[rows] * scale[self._items[rows]] * own[rows, None]
        return out


def snapshot(partitions: Sequence[Signals], prior: Prior | None, now: float) -> Shared:
    """`Snapshotter.snapshot` from scratch, for callers that need one only."""
    config = partitions[0].config
    return Snapshotter(config).snapshot(partitions, prior, now)


def prior_from_log(
    config: ModelConfig,
    size: int,
    users: Ints,
    rows: Ints,
    values: Floats,
    times: Times,
    until: float,
) -> Prior:
    """Popularity counts, co-visited items and returns from training events before `until`.

    The events are sorted by time, `size` is the number of catalogue rows. Neighbours are item-kNN:
    cosine of the sets of users with positive evidence, shrunk, the M best of each item.
    """
    keep = (rows >= 0) & (values > 0) & (times < until)
    users, rows, values, times = users[keep], rows[keep], values[keep], times[keep]
    half = np.asarray(config.half_lives)
    ends = bucket_start(times, config.bucket) + config.bucket
    mass = values[:, None] * decay((until - ends)[:, None], half)  # [m, H]
    counts = np.stack([np.bincount(rows, mass[:, h], size) for h in range(len(half))], 1)
    items, cosine = _item_knn(users, rows, size, config.neighbours)
    again = repeats.returns(users, rows, times, size)
    return Prior(until, counts.astype(np.float32), items, cosine, again)


KNN_HISTORY = 100
"""Latest distinct items of a user that item-kNN pairs."""


def _item_knn(users: Ints, rows: Ints, size: int, width: int) -> tuple[Ints, Floats]:
    """Shrunk cosine neighbours [size, width]; items weigh less the longer a user's history is."""
    user, row = _latest_sets(users, rows, size)
    starts = np.flatnonzero(np.r_[True, user[1:] != user[:-1]]) if len(user) else np.zeros(0, int)
    lengths = np.diff(np.r_[starts, len(user)])
    left, right, weight = [], [], []
    for length in np.unique(lengths):  # users with histories of equal length at once
        sets = row[starts[lengths == length][:, None] + np.arange(length)]  # [u, length]
        a = np.broadcast_to(sets[:, :, None], (*sets.shape, length)).ravel()
        b = np.broadcast_to(sets[:, None, :], (*sets.shape, length)).ravel()
        left.append(a[a != b])
        right.append(b[a != b])
        weight.append(np.full(len(left[-1]), 1 / np.log(2.0 + length)))
    if not left:
        return np.full((size, width), -1, np.int64), np.zeros((size, width), np.float32)
    a, b, w = np.concatenate(left), np.concatenate(right), np.concatenate(weight)
    count = np.bincount(row, np.repeat(1 / np.log(2.0 + lengths), lengths), size)
    scale = 1 / np.sqrt(count + KNN_SHRINK)
    return heaviest(a, b, w * scale[a] * scale[b], size, width)


KNN_SHRINK = 4.0
"""Users added to every item's count in item-kNN."""


def _latest_sets(users: Ints, rows: Ints, size: int) -> tuple[Ints, Ints]:
    """The latest KNN_HISTORY distinct items of each user, grouped by user."""
    _, last = np.unique((users * size + rows)[::-1], return_index=True)
    last = np.sort(len(users) - 1 - last)
    user, row = users[last], rows[last]
    order = np.argsort(user, kind="stable")
    user, row = user[order], row[order]
    from_end = np.searchsorted(user, user, side="right") - np.arange(len(user))
    keep = from_end <= KNN_HISTORY
    return user[keep], row[keep]


__all__ = [
    "Prior",
    "Snapshotter",
    "default_tensors",
    "names",
    "previous_items",
    "prior_from_log",
    "snapshot",
    "weights",
]
