"""A walk over a log, bucket by bucket of event time, with what users share as each bucket begins.

With delays, what is shared is what a worker knows: what users of its own partition did as of the
last closed bucket, what all others did a little later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from adapters.episodes import LeakageError
from adapters.experts import Prior, Snapshotter
from adapters.features import Prepared, prepare
from adapters.positions import Sequences, previous_in_log
from adapters.signals import Ints, Signals, Times, bucket_start, fold_neighbours, observe
from adapters.types import Catalogue, Meta, Shared


@dataclass(frozen=True, slots=True)
class Delays:
    """When what a user did is known."""

    label: float = 0.0  # seconds until an event counts, for its user as for all others
    partition: Ints | None = None  # [users] partition of each user number; None = one for all
    signal: float = 0.0  # seconds, on top, until it counts for users of other partitions

    @property
    def shared(self) -> float:
        """Seconds until everybody knows of an event."""
        return self.label + (0.0 if self.partition is None else self.signal)

    def of(self, users: Ints) -> Ints:
        """Partitions [n] of users [n]."""
        if self.partition is None:
            return np.zeros(len(users), np.int64)
        return np.asarray(self.partition[users])


AT_ONCE = Delays()
"""One partition, and no delay but that of the open bucket."""


@dataclass(frozen=True, slots=True)
class Step:
    """A bucket of event time: what is shared as it begins, and the positions inside."""

    prepared: Prepared
    shared: Shared
    totals: Tensor  # [N]
    inside: slice  # of the events asked for


def arranged(seq: Sequences, events: Ints, bucket: float, delays: Delays) -> tuple[Ints, Ints]:
    """An order [n] of the events for `walk`, and their groups [n] in that order.

    Within a bucket, positions of one group share what is known: group 0 is what everybody knows,
    1 + p what partition p knows of its own users besides.
    """
    groups = _apart(seq, events, bucket, delays)
    order = np.lexsort((groups, bucket_start(seq.log.times[events], bucket)))
    return order, groups[order]


def walk(
    meta: Meta,
    seq: Sequences,
    events: Ints,
    catalogue: Catalogue,
    prior: Prior | None,
    delays: Delays = AT_ONCE,
    groups: Ints | None = None,
    width: int = 1,
) -> Iterator[Step]:
    """Bucket by bucket over log places `events`, with the signals of what is known before each.

    Events are sorted by time, or together with their `groups` as `arranged` says. With `width`
    signals are looked at as so many buckets begin, and grow older until the next ones do. Raises
    `LeakageError` for a prior that ends after the bucket of the first of them.
    """
    config = replace(meta.config, bucket=width * meta.config.bucket)
    _refuse_later(prior, seq.log.times[events], config.bucket)
    known = _Known(meta, seq, len(catalogue.alive), prior, delays)
    starts = bucket_start(seq.log.times[events], config.bucket)
    groups = np.zeros(len(events), np.int64) if groups is None else groups
    prepared = None
    for lo, hi in pairwise(_bounds(starts, groups)):
        known.advance(float(starts[lo]))
        shared = known.shared(int(groups[lo]))
        prepared = prepare(config, catalogue, shared, prepared)
        yield Step(prepared, shared, torch.from_numpy(known.totals.copy()), slice(int(lo), int(hi)))


def width_for(times: Times, bucket: float, most: int) -> int:
    """Buckets that are looked at together, a power of 2, so that `times` lie in at most `most`."""
    width = 1
    while len(np.unique(bucket_start(times, width * bucket))) > max(most, 1):
        width *= 2
    return width


def _refuse_later(prior: Prior | None, times: Times, bucket: float) -> None:
    first = float(bucket_start(times.min(keepdims=True), bucket)[0]) if len(times) else np.inf
    if prior is not None and prior.time > first + bucket:
        raise LeakageError(f"the prior reaches {prior.time:.0f}, the first list is of {first:.0f}")


class _Known:
    """The signals of all partitions as far as everybody knows them, from bucket to bucket."""

    def __init__(
        self, meta: Meta, seq: Sequences, size: int, prior: Prior | None, delays: Delays
    ) -> None:
        log = seq.log
        self.totals = np.zeros(size)
        self._now = -np.inf
        self._config, self._log, self._prior, self._delays = meta.config, log, prior, delays
        self._previous = previous_in_log(seq)
        self._partition = delays.of(log.users)
        self._parts = [
            Signals(meta.config, size) for _ in range(int(self._partition.max(initial=0)) + 1)
        ]
        self._snapshotter = Snapshotter(meta.config)
        self._counted = 0
        self._at = 0 if prior is None else int(np.searchsorted(log.times, prior.time))

    def advance(self, now: float) -> None:
        """Take in what everybody knows when bucket `now` begins."""
        if now == self._now:
            return
        self._now = now
        until = int(np.searchsorted(self._log.times, now - self._delays.shared))
        fresh = np.arange(self._at, max(until, self._at))
        for partition in np.unique(self._partition[fresh]).tolist():
            self._feed(self._parts[partition], fresh[self._partition[fresh] == partition])
        for signals in self._parts:
            _fold(signals, now)
        self._count(until)
        self._at = max(until, self._at)

    def shared(self, group: int) -> Shared:
        """What the workers of a group know when the bucket begins."""
        if group == 0:
            return self._snapshotter.snapshot(self._parts, self._prior, self._now)
        until = int(np.searchsorted(self._log.times, self._now - self._delays.label))
        recent = np.arange(self._at, max(until, self._at))
        own = Signals(self._config, len(self.totals))
        self._feed(own, recent[self._partition[recent] == group - 1])
        _fold(own, self._now)
        return Snapshotter(self._config).snapshot([*self._parts, own], self._prior, self._now)

    def _feed(self, signals: Signals, places: Ints) -> None:
        log = self._log
        signals.apply(
            observe(
                signals,
                log.items[places],
                log.values[places],
                log.times[places],
                self._previous[places],
            )
        )

    def _count(self, until: int) -> None:
        part = slice(self._counted, until)
        good = (self._log.values[part] > 0) & (self._log.items[part] >= 0)
        items, values = self._log.items[part][good], self._log.values[part][good]
        self.totals += np.bincount(items, values, len(self.totals))
        self._counted = max(until, self._counted)


def _fold(signals: Signals, now: float) -> None:
    if signals.queue:
        signals.apply_neighbours(fold_neighbours(signals, now))


def _apart(seq: Sequences, events: Ints, bucket: float, delays: Delays) -> Ints:
    """1 + partition where users of the same partition did what others do not know yet, else 0."""
    groups = np.zeros(len(events), np.int64)
    if delays.partition is None or delays.signal <= 0:
        return groups
    log = seq.log
    everybody, own = delays.of(log.users), delays.of(log.users[events])
    known = bucket_start(log.times[events], bucket) - delays.label
    for partition in np.unique(own).tolist():
        mine, times = own == partition, log.times[everybody == partition]
        common = np.searchsorted(times, known[mine] - delays.signal)
        groups[mine] = np.where(np.searchsorted(times, known[mine]) > common, partition + 1, 0)
    return groups


def _bounds(starts: np.ndarray, groups: Ints) -> Ints:
    """Where runs of equal values begin, and the end."""
    if not len(starts):
        return np.zeros(1, np.int64)
    changes = np.flatnonzero((np.diff(starts) != 0) | (np.diff(groups) != 0)) + 1
    return np.asarray(np.r_[0, changes, len(starts)])
