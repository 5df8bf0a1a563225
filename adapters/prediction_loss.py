"""What a batch of episodes costs: the negative log-likelihood of the next positives.

The softmax runs over the catalogue, or over items that are sampled for it, with the popularity of
the moment added to the scores (see `adapters.offsets`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adapters import adapter, arrivals, episodes, offsets, profiles, towers
from adapters.episodes import Episodes, Histories, Log
from adapters.offsets import Offsets
from adapters.team import ALONE, Team
from adapters.towers import ItemFeatures
from adapters.tuning import TunedTexts
from adapters.types import Block, Meta

if TYPE_CHECKING:
    from adapters.meta_train import Recipe

POPULARITY = "train.popularity"
"""Weights [H] of the popularity offsets: learned beside the model, and not part of the result."""


class Softmax(NamedTuple):
    """Items that stand for the catalogue in the softmax, and what is added to their scores."""

    chances: Tensor | None  # [N] of a draw; None = the whole catalogue
    size: int
    rows: int
    offsets: Offsets | None
    there: Tensor  # rows of the catalogue as it is when the log ends
    since: Tensor | None  # [N] unix seconds when items appeared; None = all before the log


def softmax_of(
    log: Log, histories: Histories, features: ItemFeatures, meta: Meta, recipe: Recipe
) -> Softmax:
    """What predictions on the items of a log are taken over."""
    rows = len(features)
    there, since = arrivals.there(log, features.created, rows)
    moments = None
    if recipe.popularity:
        moments = offsets.build(log, rows, meta.config.half_lives, len(there))
    if len(there) <= recipe.full_softmax:
        return Softmax(None, len(there), rows, moments, there, since)
    counts = np.bincount(histories.items[histories.items >= 0], minlength=rows).astype(float)
    chances = recipe.popular_share * counts / counts.sum()
    chances[there.numpy()] += (1 - recipe.popular_share) / len(there)
    drawn = torch.from_numpy(chances).float()
    return Softmax(drawn, recipe.negatives, rows, moments, there, since)


def losses(
    meta: Meta,
    features: ItemFeatures,
    batch: Episodes,
    softmax: Softmax,
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
    softmax: Softmax,
) -> tuple[Tensor, Tensor]:
    """-log p(target) [m] over the catalogue without seen items; sampled ones stand for the rest.

    Also the scores [m, C] of the others, -inf = seen or not there yet. Where that leaves none of
    them, as early in a log whose items arrive bit by bit, there is nothing to learn: 0. A sampled
    item that is expected c times counts 1/c, so that the sum over the sample is an unbiased
    estimate of the sum over the catalogue (logQ correction).
    """
    device, wanted = vectors.device, batch.targets >= 0
    target = batch.targets[wanted]
    scores = _exact(_best(interests, vectors[local[negatives].to(device)]))  # [m, C]
    if softmax.chances is not None:
        scores = scores - (softmax.size * softmax.chances[negatives]).log().to(device)
    hidden = episodes.seen_at(batch, softmax.rows)[:, negatives] | (negatives == target[:, None])
    if softmax.since is not None:
        hidden |= softmax.since[negatives] > batch.times[wanted][:, None]
    alone = hidden.all(1, keepdim=True).to(device)  # [m, 1] nothing that was drawn could be listed
    scores = scores.masked_fill(hidden.to(device), -math.inf).masked_fill(alone, 0.0)
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
    nll = torch.logaddexp(right, scores.logsumexp(1)) - right
    return nll.masked_fill(alone[:, 0], 0.0), scores


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


def _draw_negatives(softmax: Softmax, generator: torch.Generator) -> Tensor:
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
