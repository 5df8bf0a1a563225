"""Baselines with parameters, and the choice of these on validation users or time.

An honest comparison gives the simple recommenders the same care as the model (Ferrari Dacrema,
Cremonesi, Jannach, "Are We Really Making Much Progress?", RecSys 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from adapters import baselines, evaluate, item_to_item
from adapters.baselines import Baseline, Crowd
from adapters.episodes import Log
from adapters.evaluate import Moments, Options, Progress
from adapters.experts import Prior
from adapters.item_to_item import ItemToItem
from adapters.report import per_user
from adapters.types import Catalogue, Meta, ModelConfig, UserView

PENALTIES = (10.0, 50.0, 200.0, 1_000.0, 5_000.0)
"""L2 penalties of EASE that are tried."""

NEIGHBOURS = (20, 100, 500)
"""Neighbours of an item in item-kNN that are tried, beside those of the experts."""

SHRINKAGES = (5.0, 50.0)
"""Users added to the norms in item-kNN that are tried."""

WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Weights of recency beside another baseline that are tried."""

REPEAT_DAYS = (14, 45, 90, 365)
"""Half-lives in days of a user's own counts that are tried."""


@dataclass(frozen=True, slots=True)
class Family:
    """One baseline at all the parameters that are tried."""

    name: str
    points: Mapping[str, Baseline]  # parameters in words -> function


@dataclass(frozen=True, slots=True)
class Choice:
    """What validation chose."""

    family: str
    point: str
    ndcg: float  # mean over validation users
    function: Baseline


def families(config: ModelConfig, repeats: bool, linear: bool = True) -> list[Family]:
    """All baselines; those that repeat a user's own items only where that is allowed.

    Without `linear` there are none that need `linear_models`, which take a matrix of all items.
    """
    alone: dict[str, Mapping[str, Baseline]] = {
        "mean of the support": {"": baselines.support_mean},
        "item-kNN": {"latest 12": baselines.item_knn},
    }
    if linear:
        alone["item-kNN"] = {**alone["item-kNN"], **_linear(_knn_points())}
        alone["EASE"] = _linear(_ease_points())
    if repeats:
        alone["repeat"] = {
            f"{days} d": partial(baselines.repeat, half_life=days * 86_400.0)
            for days in REPEAT_DAYS
        }
    found = [Family("popularity", {"": baselines.popularity})]
    found.append(Family("recency popularity", _recent(config)))
    for name, functions in alone.items():
        points = {point: _once(function) for point, function in functions.items()}
        found += [Family(name, points), Family(f"{name} + recency", _mixed(config, points))]
    return found


def linear_models(log: Log, until: float) -> dict[str, ItemToItem]:
    """EASE and item-kNN at every point, from the events before `until` (unix seconds)."""
    n = int((log.times < until).sum())
    counts = item_to_item.gram(log.users[:n], log.items[:n], log.values[:n])
    return {
        **{name: item_to_item.ease(counts, p) for name, p in _ease_points().items()},
        **{name: item_to_item.nearest(counts, *point) for name, point in _knn_points().items()},
    }


def _ease_points() -> dict[str, float]:
    return {f"penalty {p:g}": p for p in PENALTIES}


def _knn_points() -> dict[str, tuple[int, float]]:
    grid = product(NEIGHBOURS, SHRINKAGES)
    return {f"{count} nearest, shrinkage {s:g}": (count, s) for count, s in grid}


def _linear(names: Iterable[str]) -> dict[str, Baseline]:
    return {name: partial(baselines.linear, name=name) for name in names}


def choose(
    meta: Meta,
    log: Log,
    start: float,
    catalogue: Catalogue,
    prior: Prior | None,
    options: Options,
    tried: list[Family],
    progress: Progress | None = None,
) -> list[Choice]:
    """The best point of every family by nDCG at the positions of `options` from `start` on.

    `options` says which users and events are for validation, and carries the linear models of
    the events before. The caller sees to it that no test position is among them.
    """
    points = {_label(f.name, p): run for f in tried for p, run in f.points.items()}
    asked = replace(options, variants=tuple(points), baselines=points)
    with torch.inference_mode():
        found = evaluate.positions(meta, log, start, catalogue, prior, asked, progress)
    return [_best(family, found) for family in tried]


def _once(of: Baseline) -> Baseline:
    """The same scores, kept for the mixtures that ask for them at the same positions."""
    kept: list[tuple[Crowd, UserView, Tensor]] = []

    def scores(crowd: Crowd, view: UserView) -> Tensor:
        if not kept or kept[0][0] is not crowd or kept[0][1] is not view:
            kept[:] = [(crowd, view, of(crowd, view))]
        return kept[0][2]

    return scores


def _best(family: Family, found: Moments) -> Choice:
    scores = {
        point: float(per_user(found.users, found.figures(_label(family.name, point))[:, :1]).mean())
        for point in family.points
    }
    best = max(scores, key=lambda point: scores[point])
    return Choice(family.name, best, scores[best], family.points[best])


def _label(family: str, point: str) -> str:
    return f"{family} [{point}]"


def _recent(config: ModelConfig) -> dict[str, Baseline]:
    return {
        _days(config, h): partial(baselines.recency_popularity, half_life=h)
        for h in range(len(config.half_lives))
    }


def _mixed(config: ModelConfig, points: Mapping[str, Baseline]) -> dict[str, Baseline]:
    return dict(_mixtures(config, points))


def _mixtures(
    config: ModelConfig, points: Mapping[str, Baseline]
) -> Iterator[tuple[str, Baseline]]:
    grid = product(points.items(), range(len(config.half_lives)), WEIGHTS)
    for (point, of), half_life, weight in grid:
        name = ", ".join(filter(None, (point, _days(config, half_life), f"weight {weight:g}")))
        yield name, partial(baselines.with_recency, of=of, half_life=half_life, weight=weight)


def _days(config: ModelConfig, half_life: int) -> str:
    return f"{config.half_lives[half_life] / 86_400:g} d"
