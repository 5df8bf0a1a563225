"""Figures of lists: accuracy, and what accuracy does not show.

A list is a row of catalogue rows, best first, -1 = none. A figure that a list cannot have, such as
the variety of a single item, is nan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.episodes import Log
from adapters.signals import Ints

Values = NDArray[np.float64]

TOPICS = 32
"""Clusters of texts that stand for categories where items have none."""

BLEND = 0.01
"""Share of the history's distribution in that of a list, so that the divergence is finite."""

_CHUNK = 16_384  # lists that are worked on at once


def accuracy(rows: Ints, wanted: Ints) -> Values:
    """nDCG, hit and reciprocal rank of lists [m, k] against relevant rows [m, r], -1 = none."""
    parts = range(0, max(len(rows), 1), _CHUNK)
    return np.concatenate([_accuracy(rows[p : p + _CHUNK], wanted[p : p + _CHUNK]) for p in parts])


def _accuracy(rows: Ints, wanted: Ints) -> Values:
    hit = ((rows[:, :, None] == wanted[:, None, :]) & (rows >= 0)[:, :, None]).any(2)  # [m, k]
    discount = 1 / np.log2(np.arange(rows.shape[1]) + 2.0)
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    most = np.minimum((wanted >= 0).sum(1), rows.shape[1])
    gain = (hit * discount).sum(1) / np.maximum(ideal[most], 1e-12)
    reciprocal = (hit / np.arange(1, rows.shape[1] + 1)).max(1, initial=0.0)
    return np.stack([gain, hit.any(1).astype(float), reciprocal], 1)


def coverage(rows: Ints, size: int) -> float:
    """The share of `size` items that are in at least one of the lists [m, k]."""
    return len(np.unique(rows[rows >= 0])) / max(size, 1)


@dataclass(frozen=True, slots=True)
class Popularity:
    """How often each item was taken before any place of a log."""

    keys: Ints  # [q] item x (events + 1) + place of each positive event, sorted
    events: int  # of the log
    before: Ints  # [events + 1] positive events before each place
    size: int  # items of the catalogue

    @classmethod
    def of(cls, log: Log, size: int) -> Popularity:
        """Count a log's positive events."""
        good = (log.values > 0) & (log.items >= 0)
        places = np.flatnonzero(good)
        keys = np.sort(log.items[places] * (len(log) + 1) + places)
        return cls(keys, len(log), np.append(0, np.cumsum(good)), size)

    def counts(self, rows: Ints, until: Ints) -> Ints:
        """Positive events with items [m, k] before log places `until` [m]."""
        first = rows * (self.events + 1)
        found = np.searchsorted(self.keys, first + until[:, None])
        return np.asarray(found - np.searchsorted(self.keys, first))


def novelty(rows: Ints, popularity: Popularity, until: Ints) -> Values:
    """Mean self-information -log2 p of each list's items [m]: bits, more = less popular.

    p is an item's share of all positive events before log places `until` [m], with one event more
    for every item (Castells, Vargas, Wang, "Novelty and Diversity Metrics for Recommender
    Systems", 2011).
    """
    counts = popularity.counts(np.maximum(rows, 0), until) + 1.0
    total = popularity.before[until] + popularity.size
    return _mean(np.log2(total[:, None] / counts), rows >= 0)


def variety(rows: Ints, text: Tensor) -> Values:
    """Intra-list diversity [m]: mean over pairs of a list's items of 1 - cosine of their texts.

    `text` [N, T] has unit length (Ziegler et al., "Improving Recommendation Lists Through Topic
    Diversification", WWW 2005).
    """
    out = [_variety(rows[p : p + _CHUNK], text) for p in range(0, max(len(rows), 1), _CHUNK)]
    return np.concatenate(out)


def _variety(rows: Ints, text: Tensor) -> Values:
    there = torch.from_numpy(rows >= 0)
    vectors = text[torch.from_numpy(np.maximum(rows, 0))].double() * there[..., None]
    squares = vectors.square().sum((1, 2))
    alike = vectors.sum(1).square().sum(1) - squares  # every pair counts twice
    n = there.sum(1)
    pairs = torch.where(n > 1, n * (n - 1), torch.nan)
    return np.asarray((1 - alike / pairs).numpy())


def miscalibration(history: Ints, rows: Ints, groups: Tensor) -> Values:
    """Kullback-Leibler divergence [m] of lists [m, k] from what users took before [m, S].

    Both are distributions over categories; `groups` [N, G] says how an item's weight is spread
    over them, zeros = unknown. 0 = a list in the proportions of the history; nan without history
    (Steck, "Calibrated Recommendations", RecSys 2018).
    """
    parts = range(0, max(len(rows), 1), _CHUNK // 16)
    out = []
    for p in parts:
        own = _spread(history[p : p + _CHUNK // 16], groups)
        listed = _spread(rows[p : p + _CHUNK // 16], groups)
        blended = (1 - BLEND) * listed + BLEND * own
        out.append(torch.special.xlogy(own, own / blended.clamp(min=1e-30)).sum(1))
    return np.asarray(torch.cat(out).numpy())


def _spread(rows: Ints, groups: Tensor) -> Tensor:
    """Distributions [m, G] over categories of items [m, s]; nan where nothing is known."""
    there = torch.from_numpy(rows >= 0).double()
    known = groups.double()[torch.from_numpy(np.maximum(rows, 0))]
    total = torch.einsum("ms,msg->mg", there, known)
    return total / total.sum(1, keepdim=True)


def topics(text: Tensor, count: int = TOPICS, rounds: int = 10, seed: int = 0) -> Tensor:
    """Clusters of texts [N, T] of unit length as categories [N, count]: spherical k-means."""
    generator = torch.Generator().manual_seed(seed)
    count = min(count, len(text))
    centres = text[torch.randperm(len(text), generator=generator)[:count]]
    for _ in range(rounds):
        nearest = (text @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, text)
        centres = torch.nn.functional.normalize(sums, dim=1)
    return torch.nn.functional.one_hot((text @ centres.T).argmax(1), count).float()


def _mean(values: Values, there: NDArray[np.bool_]) -> Values:
    count = there.sum(1)
    sums = np.where(there, values, 0.0).sum(1)
    return np.asarray(np.where(count > 0, sums / np.maximum(count, 1), np.nan))
