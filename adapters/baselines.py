"""Simple recommenders that an adapter has to beat, on the same signals and support sets.

Each is a function of the item side, what is shared and the users' views to scores [n, Np]; padding
and what must not be ranked are masked by the caller (`mask`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapters import features
from adapters.features import Prepared
from adapters.item_to_item import ItemToItem
from adapters.types import Support, UserView

KNN_RECENCY = 1.0
"""Weight of recency popularity beside item-kNN, both on a logarithmic scale."""

HISTORY = 1_024
"""Latest events of a user that baselines look at: they are not held to what a record can keep."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """What the baselines know beside a user's view."""

    prepared: Prepared
    popularity: Tensor  # [N, H] decayed counts
    totals: Tensor  # [N] positive evidence since the log began
    now: float = 0.0  # unix seconds
    history: Support | None = None  # up to HISTORY events of the users; None = their support set
    linear: Mapping[str, ItemToItem] = field(default_factory=dict)  # by name
    there: Tensor = field(init=False)  # [N] bool: what is yet to come says nothing
    recent: Tensor = field(init=False)  # [N, H] log popularity relative to the average item there
    ties: Tensor = field(init=False)  # [N] 0 to 1e-6: of equal scores the more popular item wins

    def __post_init__(self) -> None:
        there = self.prepared.columns[-1, : self.prepared.size] == 0
        object.__setattr__(self, "there", there)
        recent = features.popularity_features(self.popularity, there)
        object.__setattr__(self, "recent", recent)
        object.__setattr__(self, "ties", 1e-6 * popularity_rank(self.totals))


Baseline = Callable[[Crowd, UserView], Tensor]


def popularity(crowd: Crowd, view: UserView) -> Tensor:
    """All positive evidence so far, however old."""
    return _for_all(crowd.totals, view)


def recency_popularity(crowd: Crowd, view: UserView, half_life: int = 0) -> Tensor:
    """Decayed counts at the half-life with this index."""
    return _for_all(crowd.popularity[:, half_life], view)


def support_mean(crowd: Crowd, view: UserView) -> Tensor:
    """Dot product with the mean vector of the support set's positive items."""
    rows = view.support.items
    good = ((rows >= 0) & (view.support.values > 0)).float()
    vectors = crowd.prepared.catalogue.vectors
    total = torch.einsum("ns,nsd->nd", good, vectors[rows.clamp(min=0)])
    return total / good.sum(1, keepdim=True).clamp(min=1) @ vectors.T


def item_knn(crowd: Crowd, view: UserView) -> Tensor:
    """Summed cosine to the positive items of the latest events; popularity where there is none."""
    return _knn_sums(crowd, view) + crowd.ties


def item_knn_recency(crowd: Crowd, view: UserView, half_life: int = 0) -> Tensor:
    """The logarithm of item-kNN plus that of recency popularity."""
    knn = torch.log1p(_knn_sums(crowd, view) / features.SOFT["covisit_prior"])
    return knn + KNN_RECENCY * crowd.recent[:, half_life]


def repeat(crowd: Crowd, view: UserView, half_life: float = 90 * 86_400.0) -> Tensor:
    """How often the user took an item, decayed with this half-life in seconds; then popularity."""
    past = crowd.history or view.support
    size = crowd.prepared.size
    age = (crowd.now - past.times).clamp(min=0)
    weight = (0.5 ** (age / half_life)).float() * (past.values > 0)
    rows = torch.where(past.items >= 0, past.items, size)
    counts = torch.zeros(len(rows), size + 1).scatter_add_(1, rows, weight)[:, :size]
    return counts + crowd.ties


def linear(crowd: Crowd, view: UserView, name: str) -> Tensor:
    """The model of `crowd.linear` with this name on the whole history; popularity breaks ties."""
    past = crowd.history or view.support
    rows = torch.where(past.values > 0, past.items, -1)
    scores = crowd.linear[name].scores(rows, crowd.prepared.size).double()  # finer than the ties
    scores /= scores.abs().amax(1, keepdim=True).clamp(min=1e-12)
    return scores + crowd.ties


def with_recency(
    crowd: Crowd, view: UserView, of: Baseline, half_life: int, weight: float
) -> Tensor:
    """Another baseline on a scale of its own plus recency popularity.

    What is summed is score / (largest score of the user) and `weight` times the logarithm of
    decayed counts relative to the largest: both are at most 1, whatever `of` is.
    """
    scores = of(crowd, view)
    largest = scores.masked_fill(~crowd.there, -torch.inf).amax(1, keepdim=True)
    own = (scores / largest.clamp(min=1e-9)).float()
    recent = crowd.recent[:, half_life]
    return own + weight * recent / recent.amax().clamp(min=1e-9)


BASELINES: dict[str, Baseline] = {
    "popularity": popularity,
    "recency popularity": recency_popularity,
    "mean of the support": support_mean,
    "item-kNN": item_knn,
    "item-kNN + recency": item_knn_recency,
}


def mask(crowd: Crowd, view: UserView, scores: Tensor) -> Tensor:
    """Scores [n, N] as [n, Np] in which nothing seen, deleted or absent can be ranked."""
    prepared = crowd.prepared
    pad = prepared.columns.shape[1] - prepared.size
    scores = torch.nn.functional.pad(scores, (0, pad)) + prepared.columns[-1]
    return features.masked(scores, prepared, view)


def popularity_rank(counts: Tensor) -> Tensor:
    """Places [N] from 0 to 1, the most popular item last."""
    return counts.argsort(stable=True).argsort(stable=True) / max(len(counts), 1)


def _for_all(counts: Tensor, view: UserView) -> Tensor:
    return counts.float().expand(len(view.shots), -1)


def _knn_sums(crowd: Crowd, view: UserView) -> Tensor:
    size = crowd.prepared.size
    columns, values = features.touched(crowd.prepared, "covisit_prior", features.seeds(view))
    sums = values.new_zeros(len(view.shots), size + 1)
    return sums.scatter_add_(1, columns, values)[:, :size]
