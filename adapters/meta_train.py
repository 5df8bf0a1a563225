"""The outer loop: meta-train item tower and adapter so that each inner step helps the next list.

Every episode starts from the shared start, takes its inner steps in the parallel form, and pays
for the next positive at some of its places: L = L_meta (query part) + few_weight L_few (support
part). The gradient runs through every inner step (second order).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, autocast

from adapters import (
    adapter,
    arrivals,
    episodes,
    outer_loop,
    profiles,
    towers,
    tuning,
    validation,
)
from adapters.episodes import Draw, Episodes, Log
from adapters.inheritance import Ancestor, inherit
from adapters.outer_loop import Check, Clock, Keep, Progress, Snapshot, Task
from adapters.prediction_loss import POPULARITY, Softmax, losses, softmax_of
from adapters.team import ALONE, Team
from adapters.towers import ItemFeatures
from adapters.tuning import TunedTexts
from adapters.types import Meta, ModelConfig

FROZEN = ("step_scale", "text.mean", "text.components", profiles.KNOWN, profiles.TEXT)
"""Tensors that the outer loop leaves as they are."""

STEPS = (600, 3_000)
"""Outer steps where neither a number nor a budget is given: one for each `batch` events that are
trained on, so that an event is met some 35 times, but not fewer and not more than these."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the outer loop runs."""

    steps: int | None = None  # at most; None = see `STEPS`, or as many as fit into the budget
    learning_rate: float = 3e-3  # at its peak
    weight_decay: float = 0.01
    warm_up: float = 0.03  # of the run
    clip: float = 1.0  # largest norm of the gradient
    averaging: float = 0.99  # decay a step of the mean of the weights that is returned; 0 = off
    check_every: int = 50  # steps between checks on users that are held out
    patience: int | None = 4  # checks without anything better that end the run; None = never
    few_weight: float = 0.5  # of the support part's loss
    balance: float = 0.1  # weight of the pull to even use of several interests
    diversity_weight: float = 0.0  # of `sameness` in the loss of every prediction
    id_dropout: float = 0.2
    vector_dropout: float = 0.5  # of the items that events bring in
    profile_dropout: float = 0.2  # so that users without a profile have a good start, too
    negatives: int = 2_000  # sampled items a batch, shared by its predictions
    popular_share: float = 0.5  # of the negatives drawn by popularity, the rest evenly
    full_softmax: int = 4_000  # catalogues up to this size are not sampled
    popularity: bool = True  # add the log popularity of the moment to the scores in training
    popularity_scale: float = 10.0  # learning rate of its weights relative to that of the rest
    least_events: int = 5  # of an item that gets an id embedding
    inner_loop: bool = True  # off: steps of size zero in training and after it, as a control
    mixed: bool = False  # products in bfloat16, weights and sums in float32; checks stay exact
    silent: tuple[str, ...] = ()  # tensors that are zero and stay so, such as `item.id`
    draw: Draw = field(default_factory=Draw)


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of a run."""

    meta: Meta
    features: ItemFeatures  # with the id rows that belong to `meta`
    held_out: np.ndarray  # users that were not trained on
    metrics: dict[str, float]
    backbone: dict[str, Tensor] | None = None  # its weights that were tuned


def train(
    log: Log,
    features: ItemFeatures,
    config: ModelConfig,
    *,
    budget_s: float | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    held_out: Sequence[int] | np.ndarray = (),
    progress: Callable[[Progress], None] | None = None,
    keep: Keep | None = None,
    resume: Snapshot | None = None,
    device: torch.device | str = "cpu",
    ancestor: Ancestor | None = None,
    team: Team = ALONE,
    tuned: TunedTexts | None = None,
) -> Trained:
    """Meta-train on `log`, whose items are rows of `features`.

    Runs until checks on the newest events of users in `held_out` bring nothing better, at most
    `recipe.steps` steps and `budget_s` seconds of wall time. These users are otherwise left out
    entirely, id embeddings included. The id rows of `features` are set here. `keep` is offered a
    snapshot after every step, and `resume` goes on from one: same arguments, same result. With an
    `ancestor` the weights begin as its own are; with 0 steps they stay so, and items that it does
    not know begin as in any training. In a `team` every process calls this with the same arguments
    and returns the same. With `tuned` the backbone is trained, too; see `read_anew` for what is to
    follow. Raises `ValueError` where the log holds nothing to predict,
    `InheritanceError` where the ancestor has other dimensions.
    """
    started = time.monotonic()
    recipe = recipe or Recipe()
    users = np.asarray(held_out, dtype=np.int64)
    log = episodes.shuffle_ties(log, seed)
    kept, _ = episodes.split_users(log, users)
    generator = torch.Generator().manual_seed(seed)
    known = towers.known_items(kept.items, len(features), recipe.least_events)
    features = replace(features, id_rows=known)
    meta = start(kept, features, config, generator)
    if ancestor is not None:
        meta = inherit(meta, ancestor, features.id_rows, FROZEN)
    meta = _without(meta, recipe)
    if tuned is not None:
        tuned = tuned.to(device)
        meta = replace(meta, tensors={**meta.tensors, **tuned.start(generator)})
    meta = meta.to(device)
    checked = validation.draw(log, users, recipe.draw, seed)
    metrics = {"steps": 0.0}
    if recipe.steps != 0:
        meta, metrics = outer_loop.run(
            _task(meta, kept, features.to(device), checked, recipe, seed, team, tuned),
            recipe,
            Clock(_steps(recipe, len(kept), budget_s), budget_s, started),
            generator,
            np.random.default_rng(seed),
            progress=progress,
            keep=keep,
            resume=resume,
            team=team,
        )
    metrics |= {
        "validation_positions": float(validation.size(checked)),
        **{f"popularity_weight_{i}": w for i, w in enumerate(meta[POPULARITY].tolist())},
    }
    return Trained(
        meta=_without_helpers(meta),
        features=features,
        held_out=users,
        metrics=metrics,
        backbone=None if tuned is None else tuned.weights(meta),
    )


def read_anew(trained: Trained, log: Log, text: Tensor) -> Trained:
    """The same model over the vectors [N, D] of a backbone that was tuned with it on `log`.

    What was made of the vectors before training, the reduced texts and those of profiles, is made
    anew.
    """
    features = replace(trained.features, text=text)
    kept, _ = episodes.split_users(log, trained.held_out)
    made = _of_texts(kept, features, trained.meta.config)
    meta = replace(trained.meta, tensors={**trained.meta.tensors, **made})
    return replace(trained, meta=meta, features=features)


def _steps(recipe: Recipe, events: int, budget_s: float | None) -> int | None:
    """Outer steps at most; None = as many as fit into the budget."""
    if recipe.steps is not None or budget_s is not None:
        return recipe.steps
    return min(max(events // recipe.draw.batch, STEPS[0]), STEPS[1])


def start(
    log: Log, features: ItemFeatures, config: ModelConfig, generator: torch.Generator
) -> Meta:
    """The model before its first step: SVD for known ids, PCA for text, the rest at random.

    Items that appear after the log ends do not count.
    """
    ids = towers.svd_start(log.users, log.items, features.id_rows, config.dim, generator)
    return Meta(
        config,
        {
            **adapter.new_tensors(config, generator),
            **towers.new_tensors(config, features, generator, ids),
            **_of_texts(log, features, config),
            POPULARITY: torch.full((len(config.half_lives),), 1 / max(len(config.half_lives), 1)),
        },
    )


def _of_texts(log: Log, features: ItemFeatures, config: ModelConfig) -> dict[str, Tensor]:
    """What is made of the backbone's vectors and not trained."""
    there, _ = arrivals.there(log, features.created, len(features))
    told = profiles.at_start(log.profiles, log.users, log.times)
    return {
        **profiles.new_tensors(features, told),
        **towers.fit_text_reduction(features.text[there], config.text_dim),
    }


def _without(meta: Meta, recipe: Recipe) -> Meta:
    """The same start without what the recipe leaves out."""
    off = () if recipe.inner_loop else ("step_scale",)
    zero = {k: torch.zeros_like(meta[k]) for k in (*recipe.silent, *off) if k in meta.tensors}
    return replace(meta, tensors={**meta.tensors, **zero})


def _task(
    meta: Meta,
    log: Log,
    features: ItemFeatures,
    checked: list[Episodes],
    recipe: Recipe,
    seed: int,
    team: Team,
    tuned: TunedTexts | None,
) -> Task:
    histories = episodes.group(log, repeat=recipe.draw.repeat)
    if not (histories.target >= 0).any():
        raise ValueError("the log holds no positive event to learn from")
    chances = episodes.anchors(histories, recipe.draw)
    softmax = softmax_of(log, histories, features, meta, recipe)

    def loss(
        model: Meta, generator: torch.Generator, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        batch = episodes.sample(histories, recipe.draw, chances, rng)
        with autocast(features.text.device.type, torch.bfloat16, enabled=recipe.mixed):
            return losses(model, features, batch, softmax, recipe, generator, team, tuned)

    return Task(
        start=meta,
        frozen=(*FROZEN, *recipe.silent),
        scales={POPULARITY: recipe.popularity_scale, **_slower(meta, tuned)},
        loss=loss,
        check=_check(features, checked, softmax, recipe, seed, team, tuned) if checked else None,
        memory={} if tuned is None else tuned.memory,
    )


def _slower(meta: Meta, tuned: TunedTexts | None) -> dict[str, float]:
    """Learning rates of the backbone's tensors relative to that of the rest."""
    own = [name for name in meta.tensors if name.startswith(tuning.PREFIX)]
    return {} if tuned is None else dict.fromkeys(own, tuning.RATES[tuned.tuning.kind])


def _check(
    features: ItemFeatures,
    batches: list[Episodes],
    softmax: Softmax,
    recipe: Recipe,
    seed: int,
    team: Team,
    tuned: TunedTexts | None,
) -> Check:
    """The loss over fixed positions and sampled items, nothing dropped and nothing rounded."""
    whole = replace(recipe, id_dropout=0.0, vector_dropout=0.0, balance=0.0, diversity_weight=0.0)
    sizes = [validation.size([batch]) for batch in batches]

    def check(model: Meta) -> float:
        generator = torch.Generator().manual_seed(seed)
        known = features if tuned is None else replace(features, text=tuned.refresh(model))
        found = [
            losses(model, known, b, softmax, whole, generator, team)[1].item() for b in batches
        ]
        return team.total(float(np.average(found, weights=sizes))) / team.size

    return check


def _without_helpers(meta: Meta) -> Meta:
    tensors = {name: tensor for name, tensor in meta.tensors.items() if name != POPULARITY}
    return tuning.without(replace(meta, tensors=tensors)).to("cpu")
