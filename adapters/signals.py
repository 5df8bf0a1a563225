"""What the users of one partition do: decayed item counts and co-visited items.

A counter of an item is H decayed sums of positive evidence up to the start of a bucket of event
time, and one plain sum over the bucket that is still open. All events of a bucket decay from the
bucket's end, so that a counter is exact whatever the batches were, and what "as of the last closed
bucket" means survives a restart. Everything is additive over partitions.

Neighbours of an item are the at most M items with the largest decayed co-visitation. Pairs wait in
a queue until their bucket is over; `fold_neighbours` then merges them by sorting, without a loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.types import ModelConfig

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Times = NDArray[np.float64]
Bools = NDArray[np.bool_]

PREVIOUS = 8
"""Earlier positive items of a user that a new positive item is paired with."""

PAIR_DECAY = 0.8
"""Weight of a pair relative to that of the pair one item nearer."""

PAIR_HALF_LIFE = 14 * 86_400.0
"""Seconds of event time after which a co-visitation counts half."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Directed co-visitations: who acted on `item` had acted on `row`, or the other way round."""

    rows: Ints  # [q]
    items: Ints  # [q]
    weights: Floats  # [q]
    times: Times  # [q] end of the bucket of the later event


@dataclass(frozen=True, slots=True)
class SignalDelta:
    """New full values of touched counters, and pairs to queue; changes nothing until applied."""

    rows: Ints  # [r] distinct
    counts: Floats  # [r, H + 1]
    times: Times  # [r] start of the open bucket
    pairs: Pairs


@dataclass(frozen=True, slots=True)
class NeighbourDelta:
    """New full neighbour lists of touched items, heaviest first."""

    rows: Ints  # [r] distinct
    items: Ints  # [r, M], -1 = none
    weights: Floats  # [r, M] decayed to `times`
    times: Times  # [r]
    until: float  # pairs of earlier buckets are in; later ones stay in the queue


def counter_width(config: ModelConfig) -> int:
    """Numbers in the counter of an item: one a half-life, and the open bucket's sum."""
    return len(config.half_lives) + 1


class Signals:
    """Counters and neighbours of one partition; changed by `apply…` and `set_…` alone.

    Neighbour lists take memory only where an item has some: 8 M bytes a list. Counters take
    4 (H + 1) + 16 bytes an item.
    """

    def __init__(self, config: ModelConfig, size: int) -> None:
        self.config = config
        self.counts: Floats = np.zeros((0, counter_width(config)), np.float32)
        self.times: Times = np.zeros(0)
        self.counter_stamps = np.zeros(0, np.int32)
        self.neighbour_stamps = np.zeros(0, np.int32)
        self.clock = 0
        self.queue: list[Pairs] = []
        self._slot = np.zeros(0, np.int32)
        self._items = np.zeros((0, config.neighbours), np.int32)
        self._weights = np.zeros((0, config.neighbours), np.float32)
        self._times = np.zeros(0)
        self._slots = 0
        self.resize(size)

    @property
    def size(self) -> int:
        """Number of catalogue rows that have a place."""
        return len(self.times)

    def resize(self, size: int) -> None:
        """Make room for the rows below `size`; never shrinks."""
        if size <= self.size:
            return
        self.counts = grown(self.counts, size, 0)
        self.times = grown(self.times, size, 0)
        self.counter_stamps = grown(self.counter_stamps, size, 0)
        self.neighbour_stamps = grown(self.neighbour_stamps, size, 0)
        self._slot = grown(self._slot, size, -1)

    def apply(self, delta: SignalDelta) -> None:
        """Take over what `observe` found, once the batch is committed."""
        self.set_counters(delta.rows, delta.counts, delta.times)
        if len(delta.pairs.rows):
            self.queue.append(delta.pairs)

    def set_counters(self, rows: Ints, counts: Floats, times: Times) -> None:
        """Overwrite whole counters: rows [r], counts [r, H + 1], times [r]."""
        self.clock += 1
        self.counts[rows] = counts
        self.times[rows] = times
        self.counter_stamps[rows] = self.clock

    def apply_neighbours(self, delta: NeighbourDelta) -> None:
        """Take over what `fold_neighbours` found and drop the pairs it used."""
        self.set_neighbours(delta.rows, delta.items, delta.weights, delta.times)
        late = [_where(pairs, pairs.times > delta.until) for pairs in self.queue]
        self.queue = [pairs for pairs in late if len(pairs.rows)]

    def set_neighbours(self, rows: Ints, items: Ints, weights: Floats, times: Times) -> None:
        """Overwrite whole neighbour lists: rows [r], items and weights [r, M], times [r]."""
        self.clock += 1
        self._reserve(rows)
        slots = self._slot[rows]
        self._items[slots] = items
        self._weights[slots] = np.where(items >= 0, weights, 0)
        self._times[slots] = times
        self.neighbour_stamps[rows] = self.clock

    def neighbours(self, rows: Ints) -> tuple[Ints, Ints, Floats, Times]:
        """All neighbours of these rows, flat: place in `rows`, item, weight, the weight's time."""
        slots = self._slot[rows]
        known = np.flatnonzero(slots >= 0)
        slots = slots[known]
        items = self._items[slots]
        place, column = np.nonzero(items >= 0)
        return (
            known[place],
            items[place, column].astype(np.int64),
            self._weights[slots[place], column],
            self._times[slots[place]],
        )

    def _reserve(self, rows: Ints) -> None:
        new = rows[self._slot[rows] < 0]
        need = self._slots + len(new)
        if need > len(self._times):
            room = max(need, min(2 * len(self._times), self.size), 64)
            self._items = grown(self._items, room, -1)
            self._weights = grown(self._weights, room, 0)
            self._times = grown(self._times, room, 0)
        self._slot[new] = np.arange(self._slots, need)
        self._slots = need


def observe(
    signals: Signals, rows: Ints, values: Floats, times: Times, previous: Ints
) -> SignalDelta:
    """What m events change; pure. Only positive evidence on known rows counts.

    `rows`, `values`, `times` are [m]; `previous` is [m, P]: the user's earlier positive items,
    nearest first, -1 = none (see `previous_items`). Events may come in any order, late ones
    included.
    """
    good = np.flatnonzero((rows >= 0) & (values > 0))
    rows, values, times, previous = rows[good], values[good], times[good], previous[good]
    starts = bucket_start(times, signals.config.bucket)
    touched, place = np.unique(rows, return_inverse=True)
    counts, opened = _count(signals, touched, place, values, starts)
    return SignalDelta(touched, counts, opened, _pairs(rows, previous, starts, signals.config))


def bucket_start(times: Times, bucket: float) -> Times:
    """Start of the bucket that each time lies in; exact for whole seconds."""
    return np.asarray(np.floor(times / bucket) * bucket)


def decay(age: Times, half_life: float | Times) -> Times:
    """2 ^ (-age / half_life); a negative age counts as 0."""
    return np.asarray(np.exp2(-np.maximum(age, 0.0) / half_life))


def closed_counts(config: ModelConfig, counts: Floats, times: Times, now: float) -> Times:
    """Counters [r, H + 1] with times [r] as they were when bucket `now` began: [r, H].

    Counters of a partition that is ahead of `now` count as they are.
    """
    half = np.asarray(config.half_lives)
    closed = counts[:, :-1] * decay((now - times)[:, None], half)
    over = (times + config.bucket <= now)[:, None]
    last = counts[:, -1:] * decay((now - times - config.bucket)[:, None], half)
    return np.asarray(closed + np.where(over, last, 0.0))


def fold_neighbours(signals: Signals, now: float) -> NeighbourDelta:
    """New neighbour lists from the queued pairs of buckets that ended by `now`; pure."""
    ready = [_where(pairs, pairs.times <= now) for pairs in signals.queue]
    rows = np.concatenate([p.rows for p in ready] or [np.zeros(0, np.int64)])
    touched, place = np.unique(rows, return_inverse=True)
    old_place, old_items, old_weights, old_times = signals.neighbours(touched)
    items = np.concatenate([p.items for p in ready] + [old_items])
    weights = np.concatenate([p.weights for p in ready] + [old_weights])
    times = np.concatenate([p.times for p in ready] + [old_times])
    lists = heaviest(
        np.concatenate([place, old_place]),
        items,
        weights * decay(now - times, PAIR_HALF_LIFE),
        len(touched),
        signals.config.neighbours,
    )
    return NeighbourDelta(touched, *lists, np.full(len(touched), now), now)


def heaviest(rows: Ints, items: Ints, weights: Times, n: int, width: int) -> tuple[Ints, Floats]:
    """Sum equal (row, item) and keep the `width` heaviest of each row: [n, width] twice.

    Items of equal weight are ordered by row number. Empty places are item -1 with weight 0.
    """
    span = int(items.max(initial=0)) + 1
    keys, inverse = np.unique(rows * span + items, return_inverse=True)
    sums = np.bincount(inverse, weights, len(keys))
    row, item = keys // span, keys % span
    order = np.lexsort((-sums, row))
    row, item, sums = row[order], item[order], sums[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    keep = (rank < width) & (sums > 0)
    out_items = np.full((n, width), -1, np.int64)
    out_weights = np.zeros((n, width), np.float32)
    out_items[row[keep], rank[keep]] = item[keep]
    out_weights[row[keep], rank[keep]] = sums[keep]
    return out_items, out_weights


def previous_items(
    support_items: Ints,
    support_values: Floats,
    block_items: Ints,
    block_values: Floats,
    mask: Bools,
) -> Ints:
    """The earlier positive items of each event of a block: [n, t, PREVIOUS], nearest first.

    Support [n, S] is newest first and holds what came before the block [n, t], which is oldest
    first; masked places and negative evidence are passed over, an item is named once and never
    beside itself.
    """
    items = np.concatenate([support_items[:, ::-1], block_items], 1)
    positive = np.concatenate([support_values[:, ::-1] > 0, (block_values > 0) & mask], 1)
    positive &= items >= 0
    before = positive.cumsum(1) - positive  # positives before each place
    packed = np.take_along_axis(items, np.argsort(~positive, axis=1, kind="stable"), 1)
    steps = before[:, support_items.shape[1] :, None] - 1 - np.arange(PREVIOUS)
    n, t, p = steps.shape
    taken = np.take_along_axis(packed, np.maximum(steps, 0).reshape(n, t * p), 1)
    near = np.where(steps >= 0, taken.reshape(n, t, p), -1)
    equal = near[:, :, :, None] == near[:, :, None, :]  # [n, t, P, P]
    repeated = np.tril(equal, -1).any(3) | (near == block_items[:, :, None])
    return np.asarray(np.where(repeated, -1, near))


def grown(array: NDArray[Any], size: int, fill: float) -> NDArray[Any]:
    """A copy with `size` rows, new ones filled."""
    out = np.full((size, *array.shape[1:]), fill, array.dtype)
    out[: len(array)] = array
    return out


def _count(
    signals: Signals, touched: Ints, place: Ints, values: Floats, starts: Times
) -> tuple[Floats, Times]:
    config = signals.config
    half, bucket, n = np.asarray(config.half_lives), config.bucket, len(touched)
    old_times, old = signals.times[touched], signals.counts[touched]
    opened = old_times.copy()
    np.maximum.at(opened, place, starts)
    moved = (opened > old_times)[:, None]
    closed = old[:, :-1] * decay((opened - old_times)[:, None], half)
    closed += np.where(moved, old[:, -1:], 0) * decay((opened - old_times - bucket)[:, None], half)
    is_open = starts == opened[place]
    late = np.where(is_open, 0, values)[:, None] * decay(
        (opened[place] - starts - bucket)[:, None], half
    )
    for h in range(len(half)):
        closed[:, h] += np.bincount(place, late[:, h], n)
    current = np.where(moved[:, 0], 0, old[:, -1])
    current = current + np.bincount(place, np.where(is_open, values, 0), n)
    return np.concatenate([closed, current[:, None]], 1).astype(np.float32), opened


def _pairs(rows: Ints, previous: Ints, starts: Times, config: ModelConfig) -> Pairs:
    event, column = np.nonzero(previous >= 0)
    new, old = rows[event], previous[event, column]
    weights = (PAIR_DECAY**column).astype(np.float32)
    times = starts[event] + config.bucket
    return Pairs(
        np.concatenate([new, old]),
        np.concatenate([old, new]),
        np.concatenate([weights, weights]),
        np.concatenate([times, times]),
    )


def _where(pairs: Pairs, keep: Bools) -> Pairs:
    return Pairs(pairs.rows[keep], pairs.items[keep], pairs.weights[keep], pairs.times[keep])
