"""Linear models from the items of a history to the items that are ranked: EASE and item-kNN.

Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019. Sarwar, Karypis, Konstan,
Riedl, "Item-Based Collaborative Filtering Recommendation Algorithms", WWW 2001.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapters.signals import Floats, Ints

MOST = 5_000
"""Items that take part: those with the most users. The matrix is MOST x MOST."""


@dataclass(frozen=True, slots=True)
class Gram:
    """How many users two items have in common."""

    rows: Tensor  # [M] int64 catalogue rows that take part
    shared: Tensor  # [M, M] float32, users of an item on the diagonal


@dataclass(frozen=True, slots=True)
class ItemToItem:
    """Weights from the items of a history to the items that are ranked."""

    rows: Tensor  # [M] int64 catalogue rows
    weights: Tensor  # [M, M] float32, zero diagonal

    def scores(self, history: Tensor, size: int) -> Tensor:
        """Scores [n, size] of users with these rows [n, L] behind them, -1 = none."""
        taken = torch.zeros(len(history), size + 1)
        taken.scatter_(1, torch.where(history >= 0, history, size), 1.0)
        user, place = taken[:, self.rows].nonzero(as_tuple=True)
        ends = torch.bincount(user, minlength=len(history)).cumsum(0)
        starts = functional.pad(ends[:-1], (1, 0))
        scores = torch.zeros(len(history), size)  # few of M are read; a product would read them all
        scores[:, self.rows] = functional.embedding_bag(place, self.weights, starts, mode="sum")
        return scores


def gram(users: Ints, items: Ints, values: Floats, most: int = MOST) -> Gram:
    """Count the users that pairs of items share; repeats and dislikes do not count."""
    good = (values > 0) & (items >= 0)
    pairs = np.unique(np.stack([users[good], items[good]]), axis=1)
    rows, count = np.unique(pairs[1], return_counts=True)
    rows = np.sort(rows[np.argsort(-count, kind="stable")[:most]])
    inside = np.isin(pairs[1], rows)
    _, owner = np.unique(pairs[0, inside], return_inverse=True)
    place = np.searchsorted(rows, pairs[1, inside])
    at = torch.from_numpy(np.stack([owner, place]))
    shape = (int(owner.max(initial=-1)) + 1, len(rows))
    x = torch.sparse_coo_tensor(at, torch.ones(at.shape[1]), shape, check_invariants=True)
    return Gram(torch.from_numpy(rows), torch.sparse.mm(x.T, x.to_dense()))


def ease(counts: Gram, penalty: float) -> ItemToItem:
    """The weights at this L2 penalty (in users; above 0, else `ValueError`)."""
    if penalty <= 0:
        raise ValueError(f"penalty must be above 0, got {penalty}")
    eye = torch.eye(len(counts.rows), dtype=torch.float32)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(counts.shared + penalty * eye))
    weights = inverse / -inverse.diagonal().clamp(min=1e-12)
    return ItemToItem(counts.rows, weights.fill_diagonal_(0.0))


def nearest(counts: Gram, count: int, shrink: float) -> ItemToItem:
    """Cosine of the sets of users, with `shrink` users added below; of each item the `count` best.

    Raises `ValueError` for a count below 1 or a shrinkage below 0.
    """
    if count < 1 or shrink < 0:
        raise ValueError(f"count must be at least 1 and shrink 0, got {count} and {shrink}")
    taken = counts.shared.diagonal()
    below = (taken[:, None] * taken).sqrt() + shrink
    alike = (counts.shared / below.clamp(min=1e-12)).fill_diagonal_(0.0)
    best = alike.topk(min(count, len(alike)), 1)
    weights = torch.zeros_like(alike).scatter_(1, best.indices, best.values)
    return ItemToItem(counts.rows, weights)
