"""Drift: how much the items that people act on now differ from those of before.

The measure is the Jensen-Shannon divergence (Lin, "Divergence Measures Based on the Shannon
Entropy", 1991) in bits: 0 where nothing has changed, 1 where nothing is the same. It needs no items
in common, which the population stability index does. Two samples of one distribution differ by
chance, on a long tail of items a lot. So it is adjusted for chance as clusterings are compared
(Vinh, Epps, Bailey, "Information Theoretic Measures for Clusterings Comparison", 2010): what random
halves of all clicks together make on average becomes 0, and 1 stays 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

K = TypeVar("K", bound=Hashable)
Floats = NDArray[np.float64]

KINDS = 200
"""Items that are told apart, the most frequent ones; the rest counts as one."""

MOST = 10_000
"""Items that a reference keeps."""

DRAWS = 20
"""Deals from which the part of chance is known."""


def divergence(now: Mapping[K, float], before: Mapping[K, float]) -> float:
    """Jensen-Shannon divergence of two tables of counts in bits, adjusted for chance: 0 to 1.

    Counts of the same distribution give a number near 0, whatever their size.
    """
    first, second = _told_apart(now, before)
    if not first.sum() or not second.sum():
        return 0.0
    found, chance = float(_jensen_shannon(first, second)), by_chance(first, second)
    return max(0.0, (found - chance) / (1 - chance)) if chance < 1 else 0.0


def by_chance(first: Floats, second: Floats) -> float:
    """The mean divergence, in bits, when all clicks are dealt out anew to tables of these sizes."""
    both = np.rint(first + second).astype(np.int64)
    size = min(int(first.sum()), int(both.sum()) - 1)
    if size < 1:
        return 0.0
    rng = np.random.default_rng(0)
    dealt = rng.multivariate_hypergeometric(both, size, DRAWS, method="marginals")
    return float(
        _jensen_shannon(dealt.astype(np.float64), (both - dealt).astype(np.float64)).mean()
    )


def faded(reference: Counter[K], bucket: Mapping[K, float], keep: float) -> Counter[K]:
    """The reference after one more bucket; `keep` is what is left of the older counts."""
    older = {key: keep * count for key, count in reference.items()}
    total = {key: older.get(key, 0.0) + bucket.get(key, 0.0) for key in {*older, *bucket}}
    most = sorted(total.items(), key=lambda entry: -entry[1])[:MOST]
    return Counter(dict(most))


def _told_apart(now: Mapping[K, float], before: Mapping[K, float]) -> tuple[Floats, Floats]:
    """Both tables over the most frequent keys of the two together, and what is left: [k + 1]."""
    sizes = [sum(table.values()) or 1.0 for table in (now, before)]
    share = {k: now.get(k, 0) / sizes[0] + before.get(k, 0) / sizes[1] for k in {*now, *before}}
    keys = sorted(share, key=lambda key: -share[key])[:KINDS]
    told = [np.array([float(table.get(key, 0)) for key in keys]) for table in (now, before)]
    left = [
        sum(table.values()) - counts.sum()
        for table, counts in zip((now, before), told, strict=True)
    ]
    return np.append(told[0], max(0.0, left[0])), np.append(told[1], max(0.0, left[1]))


def _jensen_shannon(first: Floats, second: Floats) -> Floats:
    """Of tables of counts [..., k] with a positive sum: [...] bits."""
    p, q = (table / table.sum(axis=-1, keepdims=True) for table in (first, second))
    return 0.5 * (_divergence_to_mean(p, q) + _divergence_to_mean(q, p))


def _divergence_to_mean(p: Floats, q: Floats) -> Floats:
    """Kullback-Leibler divergence of p from the mean of both, in bits."""
    ratio = np.divide(2 * p, p + q, out=np.ones_like(p), where=p > 0)
    return np.asarray((p * np.log2(ratio)).sum(axis=-1))
