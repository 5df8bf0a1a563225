"""Weights of the second look, fitted for ranking among the candidates that the mix chooses.

The loss is the log-softmax of the relevant ones among them (a listwise loss; Cao et al., "Learning
to Rank: From Pairwise Approach to Listwise Approach", 2007). It is convex, so the fit has no seed
of its own, and weights are pulled to zero on features of unit spread. What the numbers say together
is fitted after it, by `fit_interplay`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adapters import fit_interplay, rerank
from adapters.fit_history import History, worth
from adapters.looks import Looks, look, sums
from adapters.minimise import minimise
from adapters.signals import Ints
from adapters.types import Meta

PULL = 2e-3
"""L2 of the weights, on features of unit spread among candidates."""

SPREAD = 1e-2
"""Added to a feature's spread: one that hardly differs gets no large weight."""

STEPS = 120
"""Of the optimiser at most."""

LOOKED = (0.4, 0.75)
"""Share of the time of a fit that collecting the candidates takes, roughly: from and to."""


def fit(meta: Meta, history: History, users: Ints) -> Meta:
    """The model with weights of the second look; as it was where no candidate was ever relevant."""
    with torch.no_grad():
        parts = [look(meta, asked) for asked in history.walk(meta, users, part=LOOKED)]
    if not parts or not any(bool(part.hits.any()) for part in parts):
        return meta
    looks = Looks(*(torch.cat(column) for column in zip(*parts, strict=True)))
    weighting = history.options.weighting
    weights = solve(looks, weighting)
    together = fit_interplay.fit(looks, solve, weighting, history.seed)
    tensors = {**meta.tensors, **rerank.with_weights(weights), **together}
    return Meta(meta.config, tensors)


def solve(looks: Looks, weighting: float) -> Tensor:
    """Weights [F, CIRCUMSTANCES] of the sum alone; `weighting` is that of users, as in `worth`."""
    scale = _spread(looks) + SPREAD
    weight = worth(looks.users, looks.recency, weighting)
    # twice the precision: where the minimum is flat, rounding would decide
    scaled = looks._replace(values=(looks.values / scale).double(), context=looks.context.double())
    start = torch.zeros(len(scale), rerank.CIRCUMSTANCES, dtype=torch.float64)
    found = minimise(
        lambda w: loss(w, scaled, weight) + PULL * w.square().sum(),
        start,
        torch.ones_like(start),
        STEPS,
    )
    return found.float() / scale[:, None]


def loss(weights: Tensor, looks: Looks, importance: Tensor) -> Tensor:
    """Negative log-likelihood of relevant candidates, weighted mean over positions.

    `weights` [F, CIRCUMSTANCES], `importance` [n]. A relevant item that is no candidate adds
    nothing, but counts in the mean.
    """
    chances = sums(looks, weights).log_softmax(1)
    each = -(chances * looks.hits).sum(1) / looks.relevant.clamp(min=1)
    return (each * importance).sum() / importance.sum()


def _spread(looks: Looks) -> Tensor:
    """Standard deviation [F] of each feature among the candidates of a position, averaged."""
    known = looks.known[..., None].float()
    count = known.sum(1, keepdim=True).clamp(min=1)
    centred = (looks.values - (looks.values * known).sum(1, keepdim=True) / count) * known
    return (centred.square().sum(1) / count[:, 0]).mean(0).sqrt()
