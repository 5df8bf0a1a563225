"""Progressive evaluation: predict, then learn, over a log in time order.

Every position of the log counts, with the catalogue and the signals as they were when its bucket
of event time began. Lists come from the functions that the worker calls. Figures are averaged per
user, then over the users of a cohort; intervals are bootstrapped over users, in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters import adapter, baselines, experts, ranking
from adapters.baselines import BASELINES, HISTORY, Baseline, Crowd
from adapters.ease import Ease
from adapters.episodes import Log
from adapters.experts import Prior, Snapshotter
from adapters.features import NEVER, Prepared, prepare
from adapters.positions import (
    Moment,
    Sequences,
    histories,
    interests_at,
    previous_in_log,
    relevant,
    views,
)
from adapters.report import Report, summarise
from adapters.signals import Ints, Signals, Times, bucket_start, fold_neighbours, observe
from adapters.types import Catalogue, Meta, Shared, UserView

MODELS = ("adapted", "steps off", "experts only", "encoder only")
"""Variants of the model itself; `experts only` has no encoder, `encoder only` nothing else."""

STANDARD = (*MODELS, *BASELINES)
"""All variants, the one that the others are compared with first."""

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Options:
    """How positions are scored."""

    k: int = 10
    horizon: int = 10  # the next positives that are relevant; 1 = the next one only
    mask_seen: bool = True  # off where people buy the same again
    moment: Moment = "request"
    diversity: float = 0.0
    variants: tuple[str, ...] = STANDARD
    baselines: Mapping[str, Baseline] = field(default_factory=lambda: BASELINES)
    ease: Mapping[float, Ease] = field(default_factory=dict)  # by penalty, of earlier events
    users: Ints | None = None  # whose positions count; None = everybody's
    most: int | None = None  # positions, drawn evenly where there are more; None = all
    seed: int = 0  # of that draw


@dataclass(frozen=True, slots=True)
class Moments:
    """The lists and their figures at each scored position."""

    events: Ints  # [m] places in the log
    users: Ints  # [m]
    shots: Ints  # [m] events of the user that the list knew
    lists: dict[str, Ints]  # variant -> [m, k] rows, -1 = none
    relevant: Ints  # [m, horizon] rows, -1 = none

    def figures(self, variant: str, k: int | None = None) -> NDArray[np.float64]:
        """nDCG, hit and reciprocal rank of each position: [m, 3], of the first k places."""
        return figures(self.lists[variant][:, :k], self.relevant)


def progressive(
    meta: Meta,
    log: Log,
    start: float,
    catalogue: Catalogue,
    prior: Prior | None,
    options: Options = Options(),
    progress: Progress | None = None,
) -> Report:
    """The report on all positions at `start` (unix seconds) or later.

    Earlier events are known history of their users. Signals begin where `prior` ends, or with the
    log. Positions whose user has no further positive are left out.
    """
    with torch.inference_mode():
        moments = positions(meta, log, start, catalogue, prior, options, progress)
    return summarise(
        moments.users, moments.shots, {v: moments.figures(v) for v in options.variants}
    )


def hits(
    meta: Meta,
    log: Log,
    start: float,
    catalogue: Catalogue,
    prior: Prior | None,
    options: Options = Options(moment="published", variants=("steps off", "recency popularity")),
) -> tuple[Moments, dict[str, NDArray[np.float64]]]:
    """Hit or miss (1 or 0) of each variant at each scored position of `Moments`."""
    with torch.inference_mode():
        moments = positions(meta, log, start, catalogue, prior, options, None)
    return moments, {v: moments.figures(v)[:, 1] for v in options.variants}


def lists(
    meta: Meta,
    log: Log,
    events: Ints,
    catalogue: Catalogue,
    prior: Prior | None,
    options: Options = Options(moment="published", variants=("adapted",)),
) -> Ints:
    """The lists that follow these events (sorted places in the log): rows [len(events), k]."""
    with torch.inference_mode():
        found = _rank_all(meta, log, np.asarray(events), catalogue, prior, options, None)
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
    shots = seq.place[events] - seq.start[seq.place[events]] + (options.moment == "published")
    found = _rank_all(meta, log, events, catalogue, prior, options, progress)
    return Moments(events, log.users[events], shots, found, wanted)


def _drawn(places: Ints, most: int | None, seed: int) -> Ints:
    if most is None or len(places) <= most:
        return places
    return np.sort(np.random.default_rng(seed).choice(places, most, replace=False))


def figures(rows: Ints, wanted: Ints) -> NDArray[np.float64]:
    """nDCG, hit and reciprocal rank of lists [m, k] against relevant rows [m, r], -1 = none."""
    hit = ((rows[:, :, None] == wanted[:, None, :]) & (rows >= 0)[:, :, None]).any(2)  # [m, k]
    discount = 1 / np.log2(np.arange(rows.shape[1]) + 2.0)
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    most = np.minimum((wanted >= 0).sum(1), rows.shape[1])
    gain = (hit * discount).sum(1) / np.maximum(ideal[most], 1e-12)
    reciprocal = (hit / np.arange(1, rows.shape[1] + 1)).max(1, initial=0.0)
    return np.stack([gain, hit.any(1).astype(float), reciprocal], 1)


@dataclass(frozen=True, slots=True)
class Step:
    """A bucket of event time: what is shared as it begins, and the positions inside."""

    prepared: Prepared
    shared: Shared
    totals: Tensor  # [N]
    inside: slice  # of the events asked for


def walk(
    meta: Meta,
    seq: Sequences,
    events: Ints,
    catalogue: Catalogue,
    prior: Prior | None,
) -> Iterator[Step]:
    """Bucket by bucket over sorted log places `events`, with signals of all events before each."""
    log, config, size = seq.log, meta.config, len(catalogue.alive)
    starts = bucket_start(log.times, config.bucket)
    bounds = _bounds(starts[events])
    begin = 0 if prior is None else int(np.searchsorted(log.times, prior.time))
    previous = previous_in_log(seq)
    signals, snapshotter = Signals(config, size), Snapshotter(config)
    good = (log.values > 0) & (log.items >= 0)
    totals = np.zeros(size)
    counted, prepared = 0, None
    for lo, hi in pairwise(bounds):
        now = float(starts[events[lo]])
        until = int(np.searchsorted(log.times, now))
        part = slice(begin, max(until, begin))
        signals.apply(
            observe(signals, log.items[part], log.values[part], log.times[part], previous[part])
        )
        signals.apply_neighbours(fold_neighbours(signals, now))
        fresh = np.flatnonzero(good[counted:until]) + counted
        totals += np.bincount(log.items[fresh], log.values[fresh], size)
        begin, counted = part.stop, until
        shared = snapshotter.snapshot([signals], prior, now)
        prepared = prepare(config, catalogue, shared, prepared)
        yield Step(prepared, shared, torch.from_numpy(totals.copy()), slice(int(lo), int(hi)))


def _bounds(starts: Times) -> Ints:
    """Where runs of equal values begin, and the end."""
    changes = np.flatnonzero(np.diff(starts) > 0) + 1
    return np.r_[0, changes, len(starts)] if len(starts) else np.zeros(1, np.int64)


def variant_meta(meta: Meta, variant: str) -> Meta:
    """The model with only the experts that a variant keeps."""
    encoder = torch.zeros(len(experts.names(meta.config)), device=meta["expert_weight"].device)
    encoder[0] = 1.0
    keep = {"experts only": 1 - encoder, "encoder only": encoder}.get(variant)
    if keep is None:
        return meta
    changed = {
        "expert_weight": meta["expert_weight"] * keep[:, None],
        "expert_weight_zero": meta["expert_weight_zero"] * keep,
    }
    if experts.TOLD in meta.tensors:
        changed[experts.TOLD] = meta[experts.TOLD] * keep
    return replace(meta, tensors={**meta.tensors, **changed})


def _rank_all(
    meta: Meta,
    log: Log,
    events: Ints,
    catalogue: Catalogue,
    prior: Prior | None,
    options: Options,
    progress: Progress | None,
) -> dict[str, Ints]:
    seq = Sequences.of(log)
    interests = _interests(meta, seq, events, catalogue, options)
    metas = {v: variant_meta(meta, v) for v in options.variants if v in MODELS}
    out = {v: np.full((len(events), options.k), -1, np.int64) for v in options.variants}
    size = len(experts.names(meta.config))
    simple = [v for v in options.variants if v not in metas]
    for step in walk(meta, seq, events, catalogue, prior):
        part = step.inside
        view = views(meta, seq, events[part], options.moment, options.mask_seen, size)
        if simple:
            crowd = _crowd(step, seq, events[part], options)
            for variant in simple:
                scores = options.baselines[variant](crowd, view)
                out[variant][part] = _best(crowd, view, scores, options.k).numpy()
        for same in _alike(metas):
            own = _side_by_side(view, [interests[variant][part] for variant in same])
            ranked = ranking.rank_prepared(
                metas[same[0]], step.prepared, own, options.k, options.diversity
            ).items.numpy()
            for place, variant in enumerate(same):
                out[variant][part] = ranked[place * len(view.shots) :][: len(view.shots)]
        if progress is not None:
            progress(part.stop / len(events))
    return out


def _alike(metas: dict[str, Meta]) -> list[list[str]]:
    """Variants that rank with the very same model, together."""
    groups: dict[int, list[str]] = {}
    for variant, model in metas.items():
        groups.setdefault(id(model), []).append(variant)
    return list(groups.values())


def _side_by_side(view: UserView, interests: list[Tensor]) -> UserView:
    """The same n users once for each of the interests [n, K, d]."""
    users = torch.arange(len(view.shots)).repeat(len(interests))
    own = replace(view, interests=interests[0])
    return replace(ranking.select(own, users), interests=torch.cat(interests))


def _interests(
    meta: Meta, seq: Sequences, events: Ints, catalogue: Catalogue, options: Options
) -> dict[str, Tensor]:
    wanted = [v for v in MODELS if v in options.variants]
    out: dict[str, Tensor] = {}
    if any(v != "steps off" for v in wanted):
        own = interests_at(meta, seq, events, options.moment, catalogue.vectors)
        out = dict.fromkeys(wanted, own)
    if "steps off" in wanted:
        still = adapter.steps_off(meta)
        out["steps off"] = interests_at(still, seq, events, options.moment, catalogue.vectors)
    return out


def _crowd(step: Step, seq: Sequences, events: Ints, options: Options) -> Crowd:
    return Crowd(
        prepared=step.prepared,
        popularity=step.shared.popularity[: step.prepared.size],
        totals=step.totals,
        now=step.shared.now,
        history=histories(seq, events, options.moment, HISTORY),
        ease=options.ease,
    )


def _best(crowd: Crowd, view: UserView, scores: Tensor, k: int) -> Tensor:
    top, rows = ranking.top_k(baselines.mask(crowd, view, scores), min(k, crowd.prepared.size))
    return torch.nn.functional.pad(
        torch.where(top > NEVER / 2, rows, -1), (0, k - rows.shape[1]), value=-1
    )


__all__: Sequence[str] = [
    "MODELS",
    "STANDARD",
    "Moments",
    "Options",
    "Report",
    "figures",
    "hits",
    "lists",
    "positions",
    "progressive",
    "variant_meta",
    "walk",
]
