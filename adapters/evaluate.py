"""Progressive evaluation: predict, then learn, over a log in time order.

Every position of the log counts, with the catalogue and the signals as they were when its bucket
of event time began. Lists come from the functions that the worker calls. Figures are averaged per
user, then over the users of a cohort; intervals are bootstrapped over users, in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from adapters import list_metrics
from adapters.episodes import Log
from adapters.experts import Prior
from adapters.list_metrics import Popularity
from adapters.listing import MODELS, REBUILT, STANDARD, Options, Progress, diversified, rank_all
from adapters.listing import variant_meta as variant_meta
from adapters.positions import Sequences, histories, new_items, profiled, relevant
from adapters.report import Lists, Report, by_shots, summarise
from adapters.signals import Bools, Ints, bucket_start
from adapters.types import Catalogue, Meta
from adapters.walking import Delays, Step, walk

CUTOFFS = (10, 20)
"""Lengths of the lists that are judged, where the lists are that long."""

TASTE = 64
"""Latest events of a user whose categories a list should match."""

figures = list_metrics.accuracy


AT_REQUESTS = Options()
"""All usual variants just before each event."""

AS_PUBLISHED = Options(moment="published", variants=("adapted",))
"""The model's lists just after each event, as a worker publishes them."""


@dataclass(frozen=True, slots=True)
class Moments:
    """The lists and their figures at each scored position."""

    events: Ints  # [m] places in the log
    users: Ints  # [m]
    shots: Ints  # [m] events of the user that the list knew
    known: Bools  # [m] the user had events before the first position of all
    new: Bools  # [m] the next item was first met less than a day before
    profiled: Bools  # [m] the user began with a profile
    lists: dict[str, Ints]  # variant -> [m, k] rows, -1 = none
    relevant: Ints  # [m, r] rows, -1 = none

    def figures(self, variant: str, k: int | None = None) -> NDArray[np.float64]:
        """nDCG, hit and reciprocal rank of each position: [m, 3], of the first k places."""
        return figures(self.lists[variant][:, :k], self.relevant)

    def next_hit(self, variant: str, k: int) -> Bools:
        """Whether the very next item is among the first k of the list: [m]."""
        return np.asarray((self.lists[variant][:, :k] == self.relevant[:, :1]).any(1))


def progressive(
    meta: Meta,
    log: Log,
    start: float,
    catalogue: Catalogue,
    prior: Prior | None,
    options: Options = AT_REQUESTS,
    progress: Progress | None = None,
) -> Report:
    """The report on all positions at `start` (unix seconds) or later.

    Earlier events are known history of their users. Signals begin where `prior` ends, or with the
    log. Positions whose user has no further positive are left out.
    """
    with torch.inference_mode():
        found = positions(meta, log, start, catalogue, prior, options, progress)
        return report(found, log, meta.config.bucket, catalogue, options)


def report(
    found: Moments, log: Log, bucket: float, catalogue: Catalogue, options: Options
) -> Report:
    """All figures of the lists, by cohort."""
    seq, popularity = Sequences.of(log), Popularity.of(log, len(catalogue.alive))
    groups = list_metrics.topics(catalogue.text) if options.groups is None else options.groups
    delay = options.delays.label
    until = bucket_start(log.times[found.events], bucket) - delay
    before = np.searchsorted(log.times, until)
    past = _taken(seq, found.events, options)
    variants: dict[str, Lists] = {}
    for name, lists in found.lists.items():
        shown: dict[str, NDArray[np.float64]] = {}
        for k in (k for k in CUTOFFS if k <= options.k):
            columns = found.figures(name, k).T
            shown |= {f"{n}@{k}": c for n, c in zip(("ndcg", "hit", "mrr"), columns, strict=True)}
        head = lists[:, : CUTOFFS[0]]
        shown["novelty"] = list_metrics.novelty(head, popularity, before)
        shown["diversity"] = list_metrics.variety(head, catalogue.text)
        shown["miscalibration"] = list_metrics.miscalibration(past, head, groups)
        variants[name] = Lists(figures=shown, rows=head)
    last = log.times[found.events].max(initial=-np.inf)
    there = catalogue.alive & ~(catalogue.created > last)
    return summarise(found.users, cohorts(found), variants, int(there.sum()))


def cohorts(found: Moments) -> list[tuple[str, Bools]]:
    """Name and positions [m] of every cohort; first lists by profile where there are any."""
    first = found.shots == 0
    told = [("0, profile", first & found.profiled), ("0, no profile", first & ~found.profiled)]
    return [
        ("all", np.ones(len(found.users), np.bool_)),
        *by_shots(found.shots),
        *(told if found.profiled.any() else []),
        ("new users", ~found.known),
        ("known users", found.known),
        ("new items", found.new),
        ("known items", ~found.new),
    ]


def _taken(seq: Sequences, events: Ints, options: Options) -> Ints:
    """Rows of what users took before these events, at most as much as a support set holds."""
    past = histories(seq, events, options.moment, TASTE, options.delays.label)
    return np.asarray(torch.where(past.values > 0, past.items, -1).numpy())


def lists(
    meta: Meta,
    log: Log,
    events: Ints,
    catalogue: Catalogue,
    prior: Prior | None,
    options: Options = AS_PUBLISHED,
) -> Ints:
    """The lists that follow these events (sorted places in the log): rows [len(events), k]."""
    with torch.inference_mode():
        found = rank_all(meta, log, np.asarray(events), catalogue, prior, options, None)
    return found[options.variants[0]]


def positions(
    meta: Meta,
    log: Log,
    start: float,
    catalogue: Catalogue,
    prior: Prior | None,
    options: Options,
    progress: Progress | None,
) -> Moments:
    """The lists of all variants at all positions from `start` on that have something relevant.

    Events of one user at one time, such as a basket, are one request: the list before the first of
    them is judged, so that none helps to guess the others.
    """
    seq = Sequences.of(log)
    events = np.arange(int(np.searchsorted(log.times, start)), len(log))
    if options.users is not None:
        events = events[np.isin(log.users[events], options.users)]
    if options.moment == "request":
        events = events[~seq.tied(events)]
    wanted = relevant(seq, events, options.moment, options.horizon, options.mask_seen)
    some = (wanted >= 0).any(1)
    chosen = _drawn(np.flatnonzero(some), options.most, options.seed)
    events, wanted = events[chosen], wanted[chosen]
    first = seq.start[seq.place[events]]
    return Moments(
        events=events,
        users=log.users[events],
        shots=seq.ends(events, options.moment, options.delays.label) - first,
        known=log.times[seq.order[first]] < start,
        new=new_items(log, events, wanted[:, 0]),
        profiled=profiled(seq, events),
        lists=rank_all(meta, log, events, catalogue, prior, options, progress),
        relevant=wanted,
    )


def _drawn(places: Ints, most: int | None, seed: int) -> Ints:
    if most is None or len(places) <= most:
        return places
    return np.sort(np.random.default_rng(seed).choice(places, most, replace=False))


__all__: Sequence[str] = [
    "MODELS",
    "REBUILT",
    "STANDARD",
    "Delays",
    "Moments",
    "Options",
    "Progress",
    "Report",
    "Step",
    "diversified",
    "figures",
    "lists",
    "positions",
    "progressive",
    "report",
    "variant_meta",
    "walk",
]
