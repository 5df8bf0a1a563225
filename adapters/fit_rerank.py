"""Weights of the second look, fitted for ranking among the candidates that the mix chooses.

The loss is the log-softmax of the relevant ones among them (a listwise loss; Cao et al., "Learning
to Rank: From Pairwise Approach to Listwise Approach", 2007). It is convex, so the fit has no seed
of its own, and weights are pulled to zero on features of unit spread.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from adapters import features, ranking, rerank
from adapters.features import NEVER
from adapters.fit_history import Asked, History, worth
from adapters.minimise import minimise
from adapters.signals import Ints
from adapters.types import Meta

PULL = 2e-3
"""L2 of the weights, on features of unit spread among candidates."""

SPREAD = 1e-2
"""Added to a feature's spread: one that hardly differs gets no large weight."""

STEPS = 120
"""Of the optimiser at most."""


class Looks(NamedTuple):
    """The candidates of n positions."""

    values: Tensor  # [n, C, F]
    hits: Tensor  # [n, C] bool: relevant
    known: Tensor  # [n, C] bool: candidates; the rest is padding
    relevant: Tensor  # [n] items that are relevant, in the candidates or not
    context: Tensor  # [n, CIRCUMSTANCES]
    users: Tensor  # [n]
    recency: Tensor  # [n]


def fit(meta: Meta, history: History, users: Ints) -> Meta:
    """The model with weights of the second look; as it was where no candidate was ever relevant."""
    with torch.no_grad():
        parts = [look(meta, asked) for asked in history.walk(meta, users)]
    if not parts or not any(bool(part.hits.any()) for part in parts):
        return meta
    looks = Looks(*(torch.cat(column) for column in zip(*parts, strict=True)))
    scale = _spread(looks) + SPREAD
    weight = worth(looks.users, looks.recency, history.options.weighting)
    # twice the precision: where the minimum is flat, rounding would decide
    scaled = looks._replace(values=(looks.values / scale).double(), context=looks.context.double())
    start = torch.zeros(len(scale), rerank.CIRCUMSTANCES, dtype=torch.float64)
    found = minimise(
        lambda w: loss(w, scaled, weight) + PULL * w.square().sum(),
        start,
        torch.ones_like(start),
        STEPS,
    )
    tensors = {**meta.tensors, **rerank.with_weights(found.float() / scale[:, None])}
    return Meta(meta.config, tensors)


def loss(weights: Tensor, looks: Looks, importance: Tensor) -> Tensor:
    """Negative log-likelihood of relevant candidates, weighted mean over positions.

    `weights` [F, CIRCUMSTANCES], `importance` [n]. A relevant item that is no candidate adds
    nothing, but counts in the mean.
    """
    scores = (looks.values @ (looks.context @ weights.T)[..., None])[..., 0]
    chances = scores.masked_fill(~looks.known, NEVER).log_softmax(1)
    each = -(chances * looks.hits).sum(1) / looks.relevant.clamp(min=1)
    return (each * importance).sum() / importance.sum()


def look(meta: Meta, asked: Asked) -> Looks:
    """The candidates of what was asked for."""
    view, wanted, prepared = asked.view, asked.wanted, asked.step.prepared
    best = ranking.rank_prepared(meta, prepared, view, rerank.CANDIDATES).items
    rows = best.clamp(min=0)
    latest = features.seeds(view)
    return Looks(
        values=ranking.all_values(meta, prepared, view, rows),
        hits=((best[:, :, None] == wanted[:, None, :]) & (best >= 0)[:, :, None]).any(2),
        known=best >= 0,
        relevant=(wanted >= 0).sum(1),
        context=rerank.circumstances(view, features.trend(meta.config, prepared, latest)),
        users=asked.users,
        recency=asked.recency,
    )


def _spread(looks: Looks) -> Tensor:
    """Standard deviation [F] of each feature among the candidates of a position, averaged."""
    known = looks.known[..., None].float()
    count = known.sum(1, keepdim=True).clamp(min=1)
    centred = (looks.values - (looks.values * known).sum(1, keepdim=True) / count) * known
    return (centred.square().sum(1) / count[:, 0]).mean(0).sqrt()
