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
from torch import Tensor, autocast

from adapters import (
    adapter,
    arrivals,
    episodes,
    offsets,
    outer_loop,
    profiles,
    towers,
    tuning,
    validation,
)
from adapters.episodes import Draw, Episodes, Histories, Log
from adapters.inheritance import Ancestor, inherit
from adapters.offsets import Offsets
from adapters.outer_loop import Check, Clock, Keep, Progress, Snapshot, Task
from adapters.team import ALONE, Team
from adapters.towers import ItemFeatures
from adapters.tuning import TunedTexts
from adapters.types import Block, Meta, ModelConfig

FROZEN = ("step_scale", "text.mean", "text.components", profiles.KNOWN, profiles.TEXT)
"""Tensors that the outer loop leaves as they are."""

POPULARITY = "train.popularity"
"""Weights [H] of the popularity offsets: learned beside the model, and not part of the result."""


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


class _Softmax(NamedTuple):
    """Items that stand for the catalogue in the softmax, and what is added to their scores."""

    chances: Tensor | None  # [N] of a draw; None = the whole catalogue
    size: int
    rows: int
    offsets: Offsets | None
    there: Tensor  # rows of the catalogue as it is when the log ends
    since: Tensor | None  # [N] unix seconds when items appeared; None = all before the log


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
    `ancestor` the weights begin as its own are. In a `team` every process calls this with the same
    arguments and returns the same. With `tuned` the backbone is trained, too; see `read_anew` for
    what is to follow. Raises `ValueError` where the log holds nothing to predict,
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
    softmax = _softmax(log, histories, features, meta, recipe)

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
    softmax: _Softmax,
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


def losses(
    meta: Meta,
    features: ItemFeatures,
    batch: Episodes,
    softmax: _Softmax,
    recipe: Recipe,
    generator: torch.Generator,
    team: Team = ALONE,
    tuned: TunedTexts | None = None,
) -> tuple[Tensor, Tensor]:
    """L_few and L_meta of a batch: mean negative log-likelihood of the next positives.

    With `tuned` the gradient runs on into the backbone.

    In a team those of this process's episodes, such that their average over the team is that of
    the whole batch. What is drawn at random is drawn for the whole batch, alike in all processes.
    """
    device = features.text.device
    negatives = _draw_negatives(softmax, generator)
    rows, local = _used_rows(batch, negatives, softmax.rows)
    known = features.select(rows.to(device))
    if tuned is not None:
        known = replace(known, text=tuned.step(meta, rows, recipe.check_every, generator))
    dropped = torch.rand(len(rows), generator=generator) < recipe.id_dropout
    vectors = towers.item_vectors(meta, known.without_ids(dropped.to(device)))
    inputs = vectors * _dropout(vectors.shape, recipe.vector_dropout, generator).to(device)
    few, query = _sizes(batch)
    batch = team.share(_with_profiles(batch, recipe, generator))
    if not len(batch.targets):  # more processes than episodes
        return vectors.sum() * 0, vectors.sum() * 0
    block = replace(batch.block, items=_look_up(local, batch.block.items)).to(device)
    interests = _interests(meta, block, inputs, _points(meta, batch))
    wanted = batch.targets >= 0
    owner, place = wanted.nonzero(as_tuple=True)
    chosen = interests[owner.to(device), batch.places[wanted].to(device)]  # [m, K, d]
    nll, scores = _nll(meta, chosen, vectors, batch, negatives, local, softmax)
    if recipe.diversity_weight:
        text = towers.reduce_text(meta, known.text[local[negatives].to(device)])
        nll = nll + recipe.diversity_weight * sameness(scores, text)
    late = batch.query[owner, place].to(device)
    meta_loss = _mean(nll, late, query) * team.size
    if chosen.shape[1] > 1:
        target = vectors[local[batch.targets[wanted]].to(device)]
        meta_loss = meta_loss + recipe.balance * _uneven(chosen @ target[..., None])
    return _mean(nll, ~late, few) * team.size, meta_loss


def _interests(meta: Meta, block: Block, vectors: Tensor, profile: Tensor | None) -> Tensor:
    """Interests before the first event and after each: [n, t + 1, K, d]."""
    state = adapter.init(meta, len(block.items), profile)
    _, after = adapter.unroll(meta, state, block, vectors)
    return torch.cat([adapter.read(meta, state)[:, None], after], dim=1)


def _with_profiles(batch: Episodes, recipe: Recipe, generator: torch.Generator) -> Episodes:
    """The batch with some of its users' profiles left out."""
    if batch.profiles is None:
        return batch
    kept = torch.rand(len(batch.profiles), generator=generator) >= recipe.profile_dropout
    return replace(batch, profiles=torch.where(kept[:, None], batch.profiles, -1))


def _points(meta: Meta, batch: Episodes) -> Tensor | None:
    """Points [n, d] of the users' profiles."""
    if batch.profiles is None:
        return None
    return profiles.vectors(meta, batch.profiles.to(meta["step_scale"].device))


def _nll(
    meta: Meta,
    interests: Tensor,
    vectors: Tensor,
    batch: Episodes,
    negatives: Tensor,
    local: Tensor,
    softmax: _Softmax,
) -> tuple[Tensor, Tensor]:
    """-log p(target) [m] over the catalogue without seen items; sampled ones stand for the rest.

    Also the scores [m, C] of the others, -inf = seen. A sampled item that is expected c times
    counts 1/c, so that the sum over the sample is an unbiased estimate of the sum over the
    catalogue (logQ correction).
    """
    device, wanted = vectors.device, batch.targets >= 0
    target = batch.targets[wanted]
    scores = _exact(_best(interests, vectors[local[negatives].to(device)]))  # [m, C]
    if softmax.chances is not None:
        scores = scores - (softmax.size * softmax.chances[negatives]).log().to(device)
    hidden = episodes.seen_at(batch, softmax.rows)[:, negatives] | (negatives == target[:, None])
    if softmax.since is not None:
        hidden |= softmax.since[negatives] > batch.times[wanted][:, None]
    scores = scores.masked_fill(hidden.to(device), -math.inf)
    own = torch.einsum("mkd,md->mk", interests, vectors[local[target].to(device)])
    right = _exact(own.amax(1))
    if softmax.offsets is not None:
        moment = softmax.offsets.at(batch.times[wanted])
        table, weight = softmax.offsets.table, meta[POPULARITY]
        chosen, line = torch.unique(moment, return_inverse=True)
        for half_life in range(len(table)):
            known = table[half_life].index_select(0, chosen)  # few moments, before any gathering
            offset = known.index_select(1, negatives).float().index_select(0, line).to(device)
            scores = scores + weight[half_life] * offset
            right = right + weight[half_life] * known[line, target].float().to(device)
    return torch.logaddexp(right, scores.logsumexp(1)) - right, scores


def _exact(values: Tensor) -> Tensor:
    """In float32 at least: sums of exponentials do not bear the rounding of bfloat16."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def sameness(scores: Tensor, text: Tensor) -> Tensor:
    """Expected similarity [m] of two items drawn from softmax(scores) [m, C]; text [C, T].

    Intra-list similarity (Ziegler et al., "Improving Recommendation Lists Through Topic
    Diversification", 2005) of a list that is a distribution: E_i E_j of the product of unit
    vectors, which is the squared length of their mean.
    """
    return (scores.softmax(1) @ text).square().sum(1)


def _best(interests: Tensor, vectors: Tensor) -> Tensor:
    """Scores [m, C]: the largest dot product with one of the interests [m, K, d]."""
    if interests.shape[1] == 1:
        return interests[:, 0] @ vectors.T
    return torch.einsum("mkd,cd->mkc", interests, vectors).amax(1)


def _uneven(scores: Tensor) -> Tensor:
    """How unevenly interests win targets, by their scores [m, K, 1]: 1 where all win alike, to K.

    Only the winner of a target learns from it, so that one that never wins would never learn. This
    is the load balancing of mixtures of experts (Fedus, Zoph, Shazeer, "Switch Transformers",
    2022): the share won, times the mean of a soft assignment.
    """
    size = scores.shape[1]
    won = scores.argmax(1)[:, 0].bincount(minlength=size) / max(len(scores), 1)
    return size * (won * scores.softmax(1).mean((0, 2))).sum()


def _softmax(
    log: Log, histories: Histories, features: ItemFeatures, meta: Meta, recipe: Recipe
) -> _Softmax:
    rows = len(features)
    there, since = arrivals.there(log, features.created, rows)
    moments = None
    if recipe.popularity:
        moments = offsets.build(log, rows, meta.config.half_lives, len(there))
    if len(there) <= recipe.full_softmax:
        return _Softmax(None, len(there), rows, moments, there, since)
    counts = np.bincount(histories.items[histories.items >= 0], minlength=rows).astype(float)
    chances = recipe.popular_share * counts / counts.sum()
    chances[there.numpy()] += (1 - recipe.popular_share) / len(there)
    drawn = torch.from_numpy(chances).float()
    return _Softmax(drawn, recipe.negatives, rows, moments, there, since)


def _draw_negatives(softmax: _Softmax, generator: torch.Generator) -> Tensor:
    if softmax.chances is None:
        return softmax.there
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


def _sizes(batch: Episodes) -> tuple[int, int]:
    """Predictions of the support part and of the query part, 1 where there are none."""
    wanted = batch.targets >= 0
    return tuple(max(int((wanted & part).sum()), 1) for part in (~batch.query, batch.query))  # type: ignore[return-value]


def _mean(values: Tensor, where: Tensor, size: int) -> Tensor:
    """The sum of some values over how many there are in the whole batch."""
    return (values * where).sum() / size
