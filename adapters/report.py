"""Figures of an evaluation by cohort, with bootstrap intervals over users."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.cohorts import COHORTS
from adapters.list_metrics import coverage

Array = NDArray[Any]

DRAWS = 1_000
"""Bootstrap samples."""

_AT_ONCE = 2_000_000  # drawn users that are held in memory


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over users and its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """One variant in one cohort.

    Figures are by name, such as `ndcg@10`. `lead` has the first variant's figures minus this
    one's, paired by user.
    """

    cohort: str
    variant: str
    users: int
    positions: int
    figures: Mapping[str, Figure]
    lead: Mapping[str, Figure]
    coverage: float  # share of the catalogue in the lists of all these positions together

    @property
    def ndcg(self) -> Figure:
        """nDCG at 10."""
        return self.figures["ndcg@10"]

    @property
    def ahead(self) -> Figure:
        """The first variant's nDCG at 10 minus this one's."""
        return self.lead["ndcg@10"]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; a figure that nobody has is left out."""
        first = {name: asdict(self.figures[f"{name}@10"]) for name in ("ndcg", "hit", "mrr")}
        return {
            "cohort": self.cohort,
            "variant": self.variant,
            "users": self.users,
            "positions": self.positions,
            **first,
            "ahead": asdict(self.ahead),
            "coverage": self.coverage,
            "figures": _plain(self.figures),
            "lead": _plain(self.lead),
        }


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
        return {"rows": [row.to_dict() for row in self.rows]}

    def table(self) -> list[tuple[str, ...]]:
        """A header and one line of text a row: accuracy at 10."""
        head = ("cohort", "variant", "users", "positions", "nDCG", "95%", "hit", "MRR", "ahead by")
        return [head, *(_line(row) for row in self.rows)]

    def beyond(self) -> list[tuple[str, ...]]:
        """A header and one line of text a variant, of all positions: what `table` leaves out."""
        rows = [row for row in self.rows if row.cohort == "all"]
        names = [n for n in (rows[0].figures if rows else ()) if not n.endswith("@10")]
        lines = [
            (r.variant, *(_mean(r.figures[name]) for name in names), f"{r.coverage:.1%}")
            for r in rows
        ]
        return [("variant", *names, "coverage"), *lines]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """The figures of one variant's lists at m positions."""

    figures: Mapping[str, Array]  # name -> [m], nan = has none
    rows: Array  # [m, k] the lists, -1 = none; coverage is theirs


def summarise(
    users: Array,
    cohorts: Sequence[tuple[str, Array]],
    variants: Mapping[str, Lists],
    size: int,
    seed: int = 0,
) -> Report:
    """A report from positions of users [m], by cohorts [m] bool, for a catalogue of `size` items.

    A user's positions are averaged first. The first variant is the one that others are compared
    with. Cohorts without a position are left out.
    """
    rng = np.random.default_rng(seed)
    names = list(next(iter(variants.values())).figures)
    stacked = np.stack([[lists.figures[n] for n in names] for lists in variants.values()])
    rows: list[Row] = []
    for cohort, inside in cohorts:
        if not inside.any():
            continue
        means = per_user(users[inside], stacked[:, :, inside].transpose(2, 0, 1))  # [U, V, F]
        pairs = _figures(means, rng)
        positions = int(inside.sum())
        for (variant, lists), (own, lead) in zip(variants.items(), pairs, strict=True):
            share = coverage(lists.rows[inside], size)
            figures, leads = (dict(zip(names, x, strict=True)) for x in (own, lead))
            rows.append(Row(cohort, variant, len(means), positions, figures, leads, share))
    return Report(tuple(rows))


def by_shots(shots: Array) -> list[tuple[str, Array]]:
    """The cohorts, and which of these positions [m] are in each."""
    return [(name, (shots >= low) & (shots <= high)) for name, low, high in COHORTS]


def compare(users: Array, one: Array, other: Array, seed: int = 0) -> Figure:
    """One model's figures [m] minus another's, relative to the other: mean over users, 95%.

    Of two that are both zero neither is ahead.
    """
    means = per_user(users, np.stack([one, other], 1))
    draws = _resampled(means, np.random.default_rng(seed))
    return _relative(means.mean(0), draws)


def compare_apart(one: Array, other: Array, seed: int = 0) -> Figure:
    """The same of figures of different users, one of each user: [u] and [v], both at least 1.

    For what cannot be paired, such as hit rates of users with one model and of users with another:
    each side is drawn by itself. Raises `ValueError` for a side without users.
    """
    if not (len(one) and len(other)):
        raise ValueError("nobody to compare with")
    rng, sides = np.random.default_rng(seed), (one, other)
    draws = np.concatenate([_resampled(side[:, None], rng) for side in sides], 1)
    return _relative(np.array([side.mean() for side in sides]), draws)


def _relative(mean: Array, draws: Array) -> Figure:
    """One over other, minus 1, from means [2] and their draws [DRAWS, 2]."""
    one, other = np.vstack([mean, draws]).T
    ratio = (one - other) / np.maximum(other, 1e-12)
    low, high = np.quantile(ratio[1:], [0.025, 0.975])
    return Figure(float(ratio[0]), float(low), float(high))


def per_user(users: Array, values: Array) -> Array:
    """Means of each user's positions: [m, ...] to [U, ...]; a nan counts for nothing."""
    _, owner, count = np.unique(users, return_inverse=True, return_counts=True)
    flat = values.reshape(len(values), -1)
    means = np.stack([_owned(owner, count, column) for column in flat.T], 1)
    return np.asarray(means.reshape(-1, *values.shape[1:]))


def _owned(owner: Array, count: Array, column: Array) -> Array:
    there = np.isfinite(column)
    if there.all():
        return np.asarray(np.bincount(owner, column, len(count)) / count)
    sums = np.bincount(owner[there], column[there], len(count))
    own = np.bincount(owner[there], minlength=len(count))
    return np.asarray(np.where(own > 0, sums / np.maximum(own, 1), np.nan))


def _figures(means: Array, rng: np.random.Generator) -> Iterator[tuple[list[Figure], list[Figure]]]:
    """Figures, and leads over them, of each variant from means of users [U, V, F]."""
    n, v, f = means.shape
    both = np.stack([means, means[:, :1] - means], 2).reshape(n, -1)  # [U, V * 2 * F]
    draws = _resampled(both, rng)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    found = [Figure(*map(float, x)) for x in zip(_centre(both), low, high, strict=True)]
    for i in range(v):
        own = found[i * 2 * f : (i + 1) * 2 * f]
        yield own[:f], own[f:]


def _resampled(values: Array, rng: np.random.Generator) -> Array:
    """Means of DRAWS samples of the users with replacement: [DRAWS, columns]; nan = left out.

    A sample in which nobody has a figure says nothing of it and counts as the mean of all.
    """
    n, out = len(values), []
    there, centre = np.isfinite(values), _centre(values)
    # float32 is exact enough for what users are off the mean
    off = np.where(there, values - centre, 0).astype(np.float32)
    whole, kept = bool(there.all()), there.astype(np.float32)
    together = min(DRAWS, max(_AT_ONCE // n, 1))
    for begin in range(0, DRAWS, together):
        counts = _counts(n, min(together, DRAWS - begin), rng)
        size = n if whole else np.maximum(counts @ kept, 1)
        out.append(centre + counts @ off / size)
    return np.concatenate(out)


def _centre(values: Array) -> Array:
    """Means [columns] of the values that there are; nan where there are none."""
    there = np.isfinite(values)
    sums = np.where(there, values, 0).sum(0)
    return np.asarray(np.where(there.any(0), sums / np.maximum(there.sum(0), 1), np.nan))


def _counts(n: int, samples: int, rng: np.random.Generator) -> Array:
    """How often each of n users is in each sample: [samples, n] float32."""
    drawn = rng.integers(0, n, (samples, n)) + n * np.arange(samples)[:, None]
    return np.bincount(drawn.ravel(), minlength=samples * n).reshape(samples, n).astype(np.float32)


def _plain(figures: Mapping[str, Figure]) -> dict[str, dict[str, float]]:
    return {name: asdict(f) for name, f in figures.items() if np.isfinite(f.mean)}


def _mean(figure: Figure) -> str:
    return f"{figure.mean:.4f}" if np.isfinite(figure.mean) else "-"


def _line(row: Row) -> tuple[str, ...]:
    return (
        row.cohort,
        row.variant,
        str(row.users),
        str(row.positions),
        f"{row.ndcg.mean:.4f}",
        f"{row.ndcg.low:.4f}-{row.ndcg.high:.4f}",
        f"{row.figures['hit@10'].mean:.3f}",
        f"{row.figures['mrr@10'].mean:.4f}",
        f"{row.ahead.mean:+.4f} ({row.ahead.low:+.4f} to {row.ahead.high:+.4f})",
    )
