"""The lists of every variant at positions of a log, made as a worker makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from adapters import adapter, arrivals, baselines, experts, own_walk, own_weights, ranking, rerank
from adapters.baselines import BASELINES, HISTORY, Baseline, Crowd
from adapters.episodes import Log
from adapters.experts import Prior
from adapters.features import NEVER
from adapters.item_to_item import ItemToItem
from adapters.positions import Moment, Sequences, histories, interests_at, rebuilt_at, views
from adapters.signals import Ints
from adapters.types import Catalogue, Meta, UserView
from adapters.walking import AT_ONCE, Delays, Step, arranged, walk

STILL = "steps off"
"""The model with inner steps of size zero; what ends in it is such a form of another variant."""

SHARED = "own weights off"
"""The model with the weights that all users share."""

MODELS = (
    "adapted",
    STILL,
    "experts only",
    "encoder only",
    f"encoder only, {STILL}",
    "mix alone",
    SHARED,
)
"""Variants of the model itself.

`experts only` has no encoder, `encoder only` nothing else, `mix alone` no second look.
"""

REBUILT = "rebuilt"
"""The model with every adapter made anew from the support set, as after a change of the model."""

STANDARD = (*MODELS[:4], *BASELINES)
"""The usual variants, the one that the others are compared with first."""

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Options:
    """How positions are scored."""

    k: int = 10
    horizon: int = 10  # the next positives that are relevant; 1 = the next one only
    mask_seen: bool = True  # off where people buy the same again
    moment: Moment = "request"
    diversity: float = 0.0
    diversities: tuple[float, ...] = ()  # of further variants, named by `diversified`
    variants: tuple[str, ...] = STANDARD
    baselines: Mapping[str, Baseline] = field(default_factory=lambda: BASELINES)
    linear: Mapping[str, ItemToItem] = field(default_factory=dict)  # by name, of earlier events
    users: Ints | None = None  # whose positions count; None = everybody's
    most: int | None = None  # positions, drawn evenly where there are more; None = all
    seed: int = 0  # of that draw
    delays: Delays = AT_ONCE
    groups: Tensor | None = None  # [N, G] categories of items for calibration; None = of texts

    @property
    def names(self) -> tuple[str, ...]:
        """All variants."""
        return (*self.variants, *map(diversified, self.diversities))


def diversified(diversity: float) -> str:
    """The variant whose lists are re-ranked for variety."""
    return f"diversity {diversity:g}"


def variant_meta(meta: Meta, variant: str) -> Meta:
    """The model with only the experts that a variant keeps."""
    if variant == "mix alone":
        return rerank.without(meta)
    variant = variant.removesuffix(f", {STILL}")
    keep = _kept(meta, variant)
    if keep is None:
        return meta
    alone = variant == "encoder only"
    fitted = {name: meta[name] for name in WEIGHTS if name in meta.tensors}
    changed = {
        name: _first_alone(w) if alone else torch.einsum("e...,e->e...", w, keep)
        for name, w in fitted.items()
    }
    kept = replace(meta, tensors={**meta.tensors, **changed})
    return own_weights.off(rerank.without(kept)) if alone else rerank.keeping(kept, keep)


def _first_alone(weights: Tensor) -> Tensor:
    """The encoder weighs 1, at the first place of [E] or [E, 4], and all else 0.

    A fitted weight would change no order, but where it is below 0 it would turn the list around.
    """
    alone = torch.zeros_like(weights)
    alone.view(-1)[0] = 1.0
    return alone


WEIGHTS = ("expert_weight", "expert_weight_zero", experts.TOLD)
"""Tensors of the fit with a row for every expert."""


def _kept(meta: Meta, variant: str) -> Tensor | None:
    """1 for each expert [E] that a variant keeps, 0 for the others; None = all are kept."""
    encoder = torch.zeros(len(experts.names(meta.config)), device=meta["expert_weight"].device)
    encoder[0] = 1.0
    return {"experts only": 1 - encoder, "encoder only": encoder}.get(variant)


def rank_all(
    meta: Meta,
    log: Log,
    events: Ints,
    catalogue: Catalogue,
    prior: Prior | None,
    options: Options,
    progress: Progress | None,
) -> dict[str, Ints]:
    """Lists [n, k] of each variant at these places in the log [n], sorted by time."""
    seq, delays = Sequences.of(log), options.delays
    order, groups = arranged(seq, events, meta.config.bucket, delays)
    events = events[order]
    interests = _interests(meta, seq, events, catalogue, options)
    out = {v: np.full((len(events), options.k), -1, np.int64) for v in options.names}
    size = len(experts.names(meta.config))
    alike = list(_alike(meta, options))
    own_weights_at = own_walk.at_events(
        meta, seq, events, catalogue, prior, options.mask_seen, options.moment, delays
    )
    for step in walk(meta, seq, events, catalogue, prior, delays, groups):
        part = step.inside
        view = views(meta, seq, events[part], options.moment, options.mask_seen, size, delays.label)
        asked = torch.from_numpy(log.times[events[part]])
        view = arrivals.hide_unborn(view, step.prepared, step.shared.now, asked)
        for variant, rows in _simple(step, seq, events[part], view, options):
            out[variant][order[part]] = rows
        for model, diversity, same in alike:
            deltas = [_delta(meta, variant, own_weights_at[part]) for variant in same]
            own = _side_by_side(view, [interests[variant][part] for variant in same], deltas)
            ranked = ranking.rank_prepared(model, step.prepared, own, options.k, diversity)
            parts = ranked.items.numpy().reshape(len(same), -1, options.k)
            for variant, rows in zip(same, parts, strict=True):
                out[variant][order[part]] = rows
        if progress is not None:
            progress(part.stop / len(events))
    return out


def _simple(
    step: Step, seq: Sequences, events: Ints, view: UserView, options: Options
) -> Iterator[tuple[str, Ints]]:
    """The lists of the baselines."""
    names = [v for v in options.variants if v not in (*MODELS, REBUILT)]
    if not names:
        return
    crowd = _crowd(step, seq, events, options)
    for name in names:
        scores = options.baselines[name](crowd, view)
        yield name, _best(crowd, view, scores, options.k).numpy()


def _alike(meta: Meta, options: Options) -> Iterator[tuple[Meta, float, list[str]]]:
    """Variants of the model that rank with the very same weights and diversity, together."""
    groups: dict[str, list[str]] = {}
    for name in (v for v in (*MODELS, REBUILT) if v in options.variants):
        whole = name in ("adapted", STILL, REBUILT, SHARED)
        groups.setdefault("adapted" if whole else name.removesuffix(f", {STILL}"), []).append(name)
    for kind, names in groups.items():
        yield variant_meta(meta, kind), options.diversity, names
    for diversity in options.diversities:
        yield meta, diversity, [diversified(diversity)]


def _delta(meta: Meta, variant: str, own: Tensor) -> Tensor:
    """What a variant keeps of users' own weights [n, E]: they are inner steps of experts."""
    if variant == SHARED or variant.endswith(STILL):
        return torch.zeros_like(own)
    keep = _kept(meta, variant)
    return own if keep is None else own * keep


def _side_by_side(view: UserView, interests: list[Tensor], deltas: list[Tensor]) -> UserView:
    """The same n users once for each of the interests [n, K, d] and own weights [n, E]."""
    users = torch.arange(len(view.shots)).repeat(len(interests))
    own = ranking.select(replace(view, interests=interests[0]), users)
    return replace(own, interests=torch.cat(interests), delta=torch.cat(deltas))


def _interests(
    meta: Meta, seq: Sequences, events: Ints, catalogue: Catalogue, options: Options
) -> dict[str, Tensor]:
    at = (seq, events, options.moment, catalogue.vectors, options.delays.label)
    wanted = [v for v in (*MODELS, REBUILT) if v in options.variants]
    wanted += map(diversified, options.diversities)
    out: dict[str, Tensor] = {}
    still = [v for v in wanted if v.endswith(STILL)]
    if len(still) < len(wanted):
        out = dict.fromkeys(wanted, interests_at(meta, *at))
    if still:
        out |= dict.fromkeys(still, interests_at(adapter.steps_off(meta), *at))
    if REBUILT in wanted:
        out[REBUILT] = rebuilt_at(meta, *at, own=out[REBUILT])
    return out


def _crowd(step: Step, seq: Sequences, events: Ints, options: Options) -> Crowd:
    return Crowd(
        prepared=step.prepared,
        popularity=step.shared.popularity[: step.prepared.size],
        totals=step.totals,
        now=step.shared.now,
        history=histories(seq, events, options.moment, HISTORY, options.delays.label),
        linear=options.linear,
    )


def _best(crowd: Crowd, view: UserView, scores: Tensor, k: int) -> Tensor:
    top, rows = ranking.top_k(baselines.mask(crowd, view, scores), min(k, crowd.prepared.size))
    return torch.nn.functional.pad(
        torch.where(top > NEVER / 2, rows, -1), (0, k - rows.shape[1]), value=-1
    )
