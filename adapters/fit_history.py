"""Positions on which weights are fitted: after what trained the encoder, before the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adapters import arrivals, experts
from adapters.episodes import Log
from adapters.experts import Prior
from adapters.positions import Sequences, interests_at, relevant, views
from adapters.signals import Ints
from adapters.types import Catalogue, Meta, UserView
from adapters.walking import Step, walk, width_for


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How weights are fitted."""

    positions: int = 6_000  # at most, drawn evenly
    moments: int = 1_000  # at most, at which signals are looked at: each costs time by the item
    negatives: int = 128  # sampled items a position
    pool: int = 100  # best items of the default mix that compete in the first loss
    full: float = 0.1  # weight of the second loss
    uniform: float = 0.5  # share of the sampling distribution that ignores popularity
    pull: float = 1e-3  # L2 towards the default weights, per unit of a feature's variance
    validation: float = 0.25  # share of users that decide on the zero-shot weights
    weighting: float = 0.5  # of a user: positions ** -weighting; 1 = all users weigh the same
    fade: float | None = 1.0  # a position's half-life, in times fitted on; None = all count alike
    horizon: int = 10
    mask_seen: bool = True
    steps: int = 60  # of the optimiser


DEFAULTS = FitOptions()
"""What is fitted where nothing else is asked for."""


class Asked(NamedTuple):
    """Requests of one bucket: what was known, what came next, whose they were, how much they count.

    What people do shifts, and with it the weights that are right: with `fade` later requests
    count more (learning-log.md, 2026-11-29).
    """

    step: Step
    view: UserView  # of n users
    wanted: Tensor  # [n, horizon] relevant rows
    users: Tensor  # [n]
    recency: Tensor  # [n] float64


@dataclass(frozen=True, slots=True)
class History:
    """A log with the part of it that is fitted on."""

    seq: Sequences
    start: float  # unix seconds
    catalogue: Catalogue
    prior: Prior | None
    options: FitOptions
    seed: int
    progress: Callable[[float], None] = lambda share: None  # told the share of a fit that is done

    @classmethod
    def of(
        cls,
        log: Log,
        start: float,
        catalogue: Catalogue,
        prior: Prior | None,
        options: FitOptions,
        seed: int,
        progress: Callable[[float], None] = lambda share: None,
    ) -> History:
        """The positions of `log` at `start` or later."""
        return cls(Sequences.of(log), start, catalogue, prior, options, seed, progress)

    def walk(
        self, meta: Meta, users: Ints, *, fresh: bool = False, part: tuple[float, float] = (0, 0)
    ) -> Iterator[Asked]:
        """Bucket by bucket what was asked for. With `fresh` only the users' first events count.

        Where a log is long and thin, several buckets see the same signals: at most `moments` times.
        The walk is `part` of the fit, from one share of it to another.
        """
        events, wanted = self.positions(users, fresh=fresh)
        if not len(events):
            return
        log, options = self.seq.log, self.options
        interests = interests_at(meta, self.seq, events, "request", self.catalogue.vectors)
        size = len(experts.names(meta.config))
        width = width_for(log.times[events], meta.config.bucket, options.moments)
        for step in walk(meta, self.seq, events, self.catalogue, self.prior, width=width):
            at = events[step.inside]
            view = views(meta, self.seq, at, "request", options.mask_seen, size)
            view = replace(view, interests=interests[step.inside])
            asked = torch.from_numpy(log.times[at])
            view = arrivals.hide_unborn(view, step.prepared, step.shared.now, asked)
            yield Asked(
                step,
                view,
                torch.from_numpy(wanted[step.inside]),
                torch.from_numpy(log.users[at]),
                self._recency(asked),
            )
            if part[1]:
                self.progress(part[0] + (part[1] - part[0]) * step.inside.stop / len(events))

    def positions(self, users: Ints, *, fresh: bool) -> tuple[Ints, Ints]:
        """Places in the log with something relevant after them, and the relevant items.

        Events of a user at one time are one request, as in evaluation: no lists between them.
        """
        seq, options = self.seq, self.options
        begin = int(np.searchsorted(seq.log.times, self.start))
        events = np.flatnonzero(np.isin(seq.log.users[begin:], users)) + begin
        events = events[~seq.tied(events)]
        if fresh:
            events = events[seq.place[events] == seq.start[seq.place[events]]]
        wanted = relevant(seq, events, "request", options.horizon, options.mask_seen)
        some = np.flatnonzero((wanted >= 0).any(1))
        if len(some) > options.positions:
            rng = np.random.default_rng(self.seed)
            some = np.sort(rng.choice(some, options.positions, replace=False))
        return events[some], wanted[some]

    def _recency(self, times: Tensor) -> Tensor:
        """Weights [n] float64 of positions at these times [n], 1 at the end of the log."""
        last, fade = float(self.seq.log.times[-1]), self.options.fade
        if fade is None or last <= self.start:
            return torch.ones_like(times)
        weight: Tensor = 0.5 ** ((last - times) / (fade * (last - self.start)))
        return weight


def per_user(users: Tensor, weighting: float) -> Tensor:
    """Weight of each position [n], falling with the number of its user's positions."""
    _, owner, count = torch.unique(users, return_inverse=True, return_counts=True)
    weight: Tensor = count[owner].float() ** -weighting
    return weight


def worth(users: Tensor, recency: Tensor, weighting: float) -> Tensor:
    """What each position [n] counts in a fit: by its user's positions and by its time; float64."""
    return per_user(users, weighting).double() * recency
