"""The outer loop: meta-train item tower and adapter so that each inner step helps the next list.

Every episode starts from the shared start, takes its inner steps in the parallel form, and pays
for the next positive at some of its places: L = L_meta (query part) + few_weight L_few (support
part). The gradient runs through every inner step (second order).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adapters import adamw, adapter, episodes, offsets, profiles, towers
from adapters.episodes import Draw, Episodes, Histories, Log
from adapters.offsets import Offsets
from adapters.towers import ItemFeatures
from adapters.types import Block, Meta, ModelConfig

FROZEN = ("step_scale", "text.mean", "text.components", profiles.KNOWN, profiles.TEXT)
"""Tensors that the outer loop leaves as they are."""

POPULARITY = "train.popularity"
"""Weights [H] of the popularity offsets: learned beside the model, and not part of the result."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the outer loop runs."""

    steps: int = 600  # where no budget in seconds is given
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warm_up: float = 0.03  # of the run
    clip: float = 1.0  # largest norm of the gradient
    averaging: float = 0.0  # decay of the running mean of the weights that is returned; 0 = off
    few_weight: float = 0.5  # of the support part's loss
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
    silent: tuple[str, ...] = ()  # tensors that are zero and stay so, such as `item.id`
    draw: Draw = field(default_factory=Draw)


class Progress(NamedTuple):
    """What a progress bar shows."""

    step: int
    fraction: float  # of the run, 0 to 1
    losses: dict[str, float]  # meta, few, total of the last batch
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of a run."""

    meta: Meta
    features: ItemFeatures  # with the id rows that belong to `meta`
    held_out: np.ndarray  # users that were not trained on
    metrics: dict[str, float]


class _Softmax(NamedTuple):
    """Items that stand for the catalogue in the softmax, and what is added to their scores."""

    chances: Tensor | None  # [N] of a draw; None = the whole catalogue
    size: int
    rows: int
    offsets: Offsets | None


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
    device: torch.device | str = "cpu",
) -> Trained:
    """Meta-train on `log`, whose items are rows of `features`.

    Runs `recipe.steps` steps, or `budget_s` seconds of wall time. Users in `held_out` are left
    out entirely, id embeddings included. The id rows of `features` are set here. Raises
    `ValueError` where the log holds nothing to predict.
    """
    started = time.monotonic()
    recipe = recipe or Recipe()
    users = np.asarray(held_out, dtype=np.int64)
    kept, _ = episodes.split_users(log, users)
    generator = torch.Generator().manual_seed(seed)
    known = towers.known_items(kept.items, len(features), recipe.least_events)
    features = replace(features, id_rows=known)
    meta = _without(start(kept, features, config, generator), recipe).to(device)
    clock = _Clock(started, budget_s, recipe.steps)
    meta, metrics = _outer_loop(
        meta, kept, features.to(device), recipe, clock, generator, seed, progress
    )
    return Trained(meta=meta.to("cpu"), features=features, held_out=users, metrics=metrics)


def start(
    log: Log, features: ItemFeatures, config: ModelConfig, generator: torch.Generator
) -> Meta:
    """The model before its first step: SVD for known ids, PCA for text, the rest at random."""
    ids = towers.svd_start(log.users, log.items, features.id_rows, config.dim, generator)
    told = profiles.at_start(log.profiles, log.users, log.times)
    return Meta(
        config,
        {
            **adapter.new_tensors(config, generator),
            **profiles.new_tensors(features, told),
            **towers.new_tensors(config, features, generator, ids),
            **towers.fit_text_reduction(features.text, config.text_dim),
            POPULARITY: torch.full((len(config.half_lives),), 1 / max(len(config.half_lives), 1)),
        },
    )


def _without(meta: Meta, recipe: Recipe) -> Meta:
    """The same start without what the recipe leaves out."""
    off = () if recipe.inner_loop else ("step_scale",)
    zero = {k: torch.zeros_like(meta[k]) for k in (*recipe.silent, *off) if k in meta.tensors}
    return replace(meta, tensors={**meta.tensors, **zero})


@dataclass(frozen=True, slots=True)
class _Clock:
    """How far a run is: by wall time where it has a budget, else by steps."""

    started: float
    budget_s: float | None
    steps: int

    def fraction(self, step: int) -> float:
        if self.budget_s is None:
            return step / max(self.steps, 1)
        return (time.monotonic() - self.started) / max(self.budget_s, 1e-9)

    def seconds_left(self, fraction: float) -> float:
        if self.budget_s is not None:
            return max(self.budget_s * (1 - fraction), 0.0)
        spent = time.monotonic() - self.started
        return spent * (1 - fraction) / fraction if fraction > 0 else math.inf


def _outer_loop(
    meta: Meta,
    log: Log,
    features: ItemFeatures,
    recipe: Recipe,
    clock: _Clock,
    generator: torch.Generator,
    seed: int,
    progress: Callable[[Progress], None] | None,
) -> tuple[Meta, dict[str, float]]:
    histories = episodes.group(log, repeat=recipe.draw.repeat)
    if not (histories.target >= 0).any():
        raise ValueError("the log holds no positive event to learn from")
    chances, rng = episodes.anchors(histories, recipe.draw), np.random.default_rng(seed)
    softmax = _softmax(log, histories, features, meta, recipe)
    leaves, model = _leaves(meta, (*FROZEN, *recipe.silent))
    mean = [leaf.detach().clone() for leaf in leaves]
    groups = _groups(model, leaves, recipe)
    step, smooth = 0, {"meta": 0.0, "few": 0.0, "total": 0.0}
    while (fraction := clock.fraction(step)) < 1:
        batch = episodes.sample(histories, recipe.draw, chances, rng)
        few, query = losses(model, features, batch, softmax, recipe, generator)
        total = query + recipe.few_weight * few
        _descend(groups, leaves, total, recipe, fraction)
        step += 1
        _average(mean, leaves, recipe.averaging, step)
        now = {"meta": query.item(), "few": few.item(), "total": total.item()}
        smooth = {k: v + max(0.02, 1 / step) * (now[k] - v) for k, v in smooth.items()}
        if progress is not None:
            progress(Progress(step, min(fraction, 1.0), now, clock.seconds_left(fraction)))
    spent = time.monotonic() - clock.started
    metrics = {"steps": float(step), "seconds": spent, **{f"loss_{k}": smooth[k] for k in smooth}}
    for place, weight in enumerate(model[POPULARITY].tolist()):
        metrics[f"popularity_weight_{place}"] = weight
    return _frozen(model, leaves, mean if recipe.averaging else leaves), metrics


def losses(
    meta: Meta,
    features: ItemFeatures,
    batch: Episodes,
    softmax: _Softmax,
    recipe: Recipe,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """L_few and L_meta of a batch: mean negative log-likelihood of the next positives."""
    device = features.text.device
    negatives = _draw_negatives(softmax, generator)
    rows, local = _used_rows(batch, negatives, softmax.rows)
    known = features.select(rows.to(device))
    dropped = torch.rand(len(rows), generator=generator) < recipe.id_dropout
    vectors = towers.item_vectors(meta, known.without_ids(dropped.to(device)))
    inputs = vectors * _dropout(vectors.shape, recipe.vector_dropout, generator).to(device)
    block = replace(batch.block, items=_look_up(local, batch.block.items)).to(device)
    interests = _interests(meta, block, inputs, _profiles(meta, batch, recipe, generator))
    wanted = batch.targets >= 0
    owner, place = wanted.nonzero(as_tuple=True)
    chosen = interests[owner.to(device), batch.places[wanted].to(device)]  # [m, K, d]
    nll = _nll(meta, chosen, vectors, batch, negatives, local, softmax)
    query = batch.query[owner, place].to(device)
    return _mean(nll, ~query), _mean(nll, query)


def _interests(meta: Meta, block: Block, vectors: Tensor, profile: Tensor | None) -> Tensor:
    """Interests before the first event and after each: [n, t + 1, K, d]."""
    state = adapter.init(meta, len(block.items), profile)
    _, after = adapter.unroll(meta, state, block, vectors)
    return torch.cat([adapter.read(meta, state)[:, None], after], dim=1)


def _profiles(
    meta: Meta, batch: Episodes, recipe: Recipe, generator: torch.Generator
) -> Tensor | None:
    """Points [n, d] of the users' profiles, some of them left out."""
    if batch.profiles is None:
        return None
    kept = torch.rand(len(batch.profiles), generator=generator) >= recipe.profile_dropout
    told = torch.where(kept[:, None], batch.profiles, -1)
    return profiles.vectors(meta, told.to(meta["step_scale"].device))


def _nll(
    meta: Meta,
    interests: Tensor,
    vectors: Tensor,
    batch: Episodes,
    negatives: Tensor,
    local: Tensor,
    softmax: _Softmax,
) -> Tensor:
    """-log p(target) [m] over the catalogue without seen items; sampled ones stand for the rest.

    A sampled item that is expected c times counts 1/c, so that the sum over the sample is an
    unbiased estimate of the sum over the catalogue (logQ correction).
    """
    device, wanted = vectors.device, batch.targets >= 0
    target = batch.targets[wanted]
    scores = _best(interests, vectors[local[negatives].to(device)])  # [m, C]
    if softmax.chances is not None:
        scores = scores - (softmax.size * softmax.chances[negatives]).log().to(device)
    hidden = _seen(batch, negatives, softmax.rows) | (negatives == target[:, None])
    scores = scores.masked_fill(hidden.to(device), -math.inf)
    right = torch.einsum("mkd,md->mk", interests, vectors[local[target].to(device)]).amax(1)
    if softmax.offsets is not None:
        moment = softmax.offsets.at(batch.times[wanted])
        table, weight = softmax.offsets.table, meta[POPULARITY]
        for half_life in range(len(table)):
            known = table[half_life][moment].float().to(device)
            scores = scores + weight[half_life] * known[:, negatives]
            right = right + weight[half_life] * known.gather(1, target[:, None])[:, 0]
    return torch.logaddexp(right, scores.logsumexp(1)) - right


def _best(interests: Tensor, vectors: Tensor) -> Tensor:
    """Scores [m, C]: the largest dot product with one of the interests [m, K, d]."""
    if interests.shape[1] == 1:
        return interests[:, 0] @ vectors.T
    return torch.einsum("mkd,cd->mkc", interests, vectors).amax(1)


def _seen(batch: Episodes, negatives: Tensor, rows: int) -> Tensor:
    """Whether a negative has been seen at a place with a target: [m, C] bool."""
    owner, slot = (batch.targets >= 0).nonzero(as_tuple=True)
    before = (batch.seen_from[owner] <= batch.places[owner, slot][:, None]) & (
        batch.seen[owner] >= 0
    )
    line, at = before.nonzero(as_tuple=True)
    table = torch.zeros(len(owner), rows, dtype=torch.bool)
    table[line, batch.seen[owner[line], at]] = True
    return table[:, negatives]


def _softmax(
    log: Log, histories: Histories, features: ItemFeatures, meta: Meta, recipe: Recipe
) -> _Softmax:
    rows = len(features)
    moments = offsets.build(log, rows, meta.config.half_lives) if recipe.popularity else None
    if rows <= recipe.full_softmax:
        return _Softmax(None, rows, rows, moments)
    counts = np.bincount(histories.items[histories.items >= 0], minlength=rows).astype(float)
    chances = recipe.popular_share * counts / counts.sum() + (1 - recipe.popular_share) / rows
    return _Softmax(torch.from_numpy(chances).float(), recipe.negatives, rows, moments)


def _draw_negatives(softmax: _Softmax, generator: torch.Generator) -> Tensor:
    if softmax.chances is None:
        return torch.arange(softmax.rows)
    return torch.multinomial(softmax.chances, softmax.size, replacement=True, generator=generator)


def _used_rows(batch: Episodes, negatives: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Catalogue rows that a batch needs [U], and the place of each row among them [N]."""
    used = torch.zeros(rows + 1, dtype=torch.bool)  # the last one stands for -1
    for part in (batch.block.items, batch.targets, negatives):
        used[part.flatten()] = True
    used[rows] = False
    chosen = used[:rows].nonzero()[:, 0]
    local = torch.full((rows,), -1)
    local[chosen] = torch.arange(len(chosen))
    return chosen, local


def _look_up(local: Tensor, rows: Tensor) -> Tensor:
    return torch.where(rows >= 0, local[rows.clamp(min=0)], -1)


def _dropout(shape: torch.Size, share: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator) >= share).float() / (1 - share)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean of some values, 0 where there are none."""
    return (values * where).sum() / where.sum().clamp(min=1)


def _leaves(meta: Meta, frozen: Sequence[str]) -> tuple[list[Tensor], Meta]:
    """Trainable copies, and the model that is made of them."""
    tensors = {
        k: v if k in frozen else v.detach().clone().requires_grad_()
        for k, v in meta.tensors.items()
    }
    return [v for v in tensors.values() if v.requires_grad], Meta(meta.config, tensors)


def _frozen(model: Meta, leaves: list[Tensor], values: list[Tensor]) -> Meta:
    new = {id(leaf): value.detach().clone() for leaf, value in zip(leaves, values, strict=True)}
    tensors = {k: new.get(id(v), v) for k, v in model.tensors.items()}
    del tensors[POPULARITY]
    return Meta(model.config, tensors)


def _groups(model: Meta, leaves: list[Tensor], recipe: Recipe) -> list[adamw.Group]:
    """The few weights of the popularity offsets go faster and without decay."""
    weights = [leaf for leaf in leaves if leaf is not model[POPULARITY]]
    return [
        adamw.group(weights, 1.0, recipe.weight_decay),
        adamw.group([model[POPULARITY]], recipe.popularity_scale, 0.0),
    ]


def _descend(
    groups: list[adamw.Group],
    leaves: list[Tensor],
    loss: Tensor,
    recipe: Recipe,
    fraction: float,
) -> None:
    """One step of the outer loop: warm-up, then cosine over the run."""
    rate = min(1.0, (fraction + 1e-3) / recipe.warm_up) * 0.5 * (1 + math.cos(math.pi * fraction))
    for leaf in leaves:
        leaf.grad = None
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(leaves, recipe.clip)
    adamw.descend(groups, recipe.learning_rate * rate)


def _average(mean: list[Tensor], leaves: list[Tensor], decay: float, step: int) -> None:
    """Running mean of the weights in place; young means forget faster."""
    if decay:
        with torch.no_grad():
            torch._foreach_lerp_(mean, leaves, 1 - min(decay, step / (step + 10)))
