"""Simple recommenders that an adapter has to beat, on the same signals and support sets.

Each is a function of the item side, what is shared and the users' views to scores [n, Np]; padding
and what must not be ranked are masked by the caller (`mask`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters import features
from adapters.features import NEVER, Prepared
from adapters.types import UserView

KNN_RECENCY = 1.0
"""Weight of recency popularity beside item-kNN, both on a logarithmic scale."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """What the baselines know beside a user's view."""

    prepared: Prepared
    popularity: Tensor  # [N, H] decayed counts
    totals: Tensor  # [N] positive evidence since the log began


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
    return _knn_sums(crowd, view) + 1e-6 * popularity_rank(crowd.totals)


def item_knn_recency(crowd: Crowd, view: UserView, half_life: int = 0) -> Tensor:
    """The logarithm of item-kNN plus that of recency popularity."""
    knn = torch.log1p(_knn_sums(crowd, view) / features.SOFT["covisit_prior"])
    there = torch.ones(crowd.prepared.size, dtype=torch.bool, device=knn.device)
    recent = features.popularity_features(crowd.popularity, there)[:, half_life]
    return knn + KNN_RECENCY * recent


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
    seen = torch.where(view.seen >= 0, view.seen, prepared.size)
    return scores.scatter_(1, seen, NEVER)


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
