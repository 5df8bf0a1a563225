"""Figures of an evaluation by cohort, with bootstrap intervals over users."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

COHORTS = (
    ("0", 0, 0),
    ("1", 1, 1),
    ("2-3", 2, 3),
    ("4-7", 4, 7),
    ("8-15", 8, 15),
    ("16-63", 16, 63),
    ("64+", 64, 2**62),
)
"""Name, fewest and most shots."""

METRICS = ("ndcg", "hit", "mrr")

DRAWS = 1_000
"""Bootstrap samples."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over users and its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """One variant in one cohort; `ahead` is the first variant's figure minus this one's."""

    cohort: str
    variant: str
    users: int
    positions: int
    ndcg: Figure
    hit: Figure
    mrr: Figure
    ahead: Figure  # of nDCG, on the same users


@dataclass(frozen=True, slots=True)
class Report:
    """All variants in all cohorts; the cohort `all` comes first."""

    rows: tuple[Row, ...]

    def row(self, variant: str, cohort: str = "all") -> Row:
        """The row of a variant. Raises `KeyError`."""
        for row in self.rows:
            if (row.variant, row.cohort) == (variant, cohort):
                return row
        raise KeyError(f"{variant} in cohort {cohort}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"rows": [asdict(row) for row in self.rows]}

    def table(self) -> list[tuple[str, ...]]:
        """A header and one line of text a row."""
        head = ("shots", "variant", "users", "positions", "nDCG", "95%", "hit", "MRR", "ahead by")
        return [head, *(_line(row) for row in self.rows)]


def summarise(users: Array, shots: Array, figures: dict[str, Array], seed: int = 0) -> Report:
    """A report from positions: users [m], shots [m], and [m, 3] nDCG, hit, MRR of each variant.

    A user's positions are averaged first. The first variant is the one that others are compared
    with.
    """
    rng = np.random.default_rng(seed)
    stacked = np.stack(list(figures.values()), 1)  # [m, V, 3]
    rows: list[Row] = []
    for name, inside in (("all", np.ones(len(shots), bool)), *by_shots(shots)):
        if inside.any():
            means = per_user(users[inside], stacked[inside])
            rows += _rows(name, list(figures), means, int(inside.sum()), rng)
    return Report(tuple(rows))


def by_shots(shots: Array) -> list[tuple[str, Array]]:
    """The cohorts, and which of these positions [m] are in each."""
    return [(name, (shots >= low) & (shots <= high)) for name, low, high in COHORTS]


def compare(users: Array, one: Array, other: Array, seed: int = 0) -> Figure:
    """One model's figures [m] minus another's, relative to the other: mean over users, 95%."""
    means = per_user(users, np.stack([one, other], 1))
    ends = _resampled(means, np.random.default_rng(seed))
    ratio = ends[:, 0] / np.maximum(ends[:, 1], 1e-12) - 1
    mean = means.mean(0)
    low, high = np.quantile(ratio, [0.025, 0.975])
    return Figure(float(mean[0] / max(mean[1], 1e-12) - 1), float(low), float(high))


def per_user(users: Array, values: Array) -> Array:
    """Means of each user's positions: [m, ...] to [U, ...]."""
    _, owner, count = np.unique(users, return_inverse=True, return_counts=True)
    flat = values.reshape(len(values), -1)
    sums = np.stack([np.bincount(owner, column) for column in flat.T], 1)
    return np.asarray((sums / count[:, None]).reshape(-1, *values.shape[1:]))


def _rows(
    cohort: str, variants: list[str], means: Array, positions: int, rng: np.random.Generator
) -> list[Row]:
    n, v, _ = means.shape
    ahead = means[:, :1, :1] - means[:, :, :1]
    flat = np.concatenate([means, ahead], 2).reshape(n, -1)  # [U, V * 4]
    draws = _resampled(flat, rng)
    bounds = np.quantile(draws, [0.025, 0.975], axis=0).reshape(2, v, -1)
    centre = flat.mean(0).reshape(v, -1)
    rows = []
    for i, variant in enumerate(variants):
        numbers = zip(centre[i], bounds[0, i], bounds[1, i], strict=True)
        found = [Figure(*map(float, triple)) for triple in numbers]
        rows.append(Row(cohort, variant, n, positions, *found))
    return rows


def _resampled(values: Array, rng: np.random.Generator) -> Array:
    """Means of DRAWS samples of the users with replacement: [DRAWS, columns]."""
    n, out = len(values), []
    for _ in range(DRAWS // 100):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=100).astype(np.float32)
        out.append(counts @ values.astype(np.float32) / n)
    return np.concatenate(out)


def _line(row: Row) -> tuple[str, ...]:
    return (
        row.cohort,
        row.variant,
        str(row.users),
        str(row.positions),
        f"{row.ndcg.mean:.4f}",
        f"{row.ndcg.low:.4f}-{row.ndcg.high:.4f}",
        f"{row.hit.mean:.3f}",
        f"{row.mrr.mean:.4f}",
        f"{row.ahead.mean:+.4f} ({row.ahead.low:+.4f} to {row.ahead.high:+.4f})",
    )
