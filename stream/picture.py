"""A picture of an evaluation: quality by shots, the model against the baselines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adapters.baselines import BASELINES
from adapters.cohorts import COHORTS
from adapters.report import Report, Row
from stream.errors import DataError, MissingPart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("svg", "png", "pdf")
"""Endings of files that can be drawn."""

_MODEL = ("adapted", "steps off")
_COLOURS = ("#0b3c8c", "#7aa6e8", "#999999", "#e69f00", "#cc79a7", "#009e73", "#d55e00", "#56b4e9")
_SIZE = (9.0, 5.0)  # inches
_WIDTH = 0.7  # of the place of a cohort, shared by its variants


def check(path: Path) -> None:
    """Refuse before hours of work what could not be drawn at their end.

    Raises `DataError` for an ending that is no picture's or a folder that is not there,
    `MissingPart` without matplotlib.
    """
    if path.suffix.lstrip(".").lower() not in KINDS:
        raise DataError(f"{path}: no kind of picture", remedy=f"End it in {' or '.join(KINDS)}.")
    if not path.parent.is_dir():
        raise DataError(f"{path.parent}: no such folder", remedy="Make it, or name another.")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingPart("pictures need matplotlib") from None


def save(report: Report, path: Path, title: str) -> None:
    """Draw `figure` to a file. Raises `DataError` where it cannot be written."""
    try:
        figure(report, title).savefig(path, dpi=150)
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror or error}", remedy="Name another file with --picture."
        ) from None


def figure(report: Report, title: str) -> Figure:
    """nDCG@10 with its 95% interval, by shots, of the model and of every baseline."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=_SIZE, layout="constrained")
    axes = drawn.subplots()
    _plot(axes, report)
    axes.set(title=title, xlabel="events of the user so far (users)", ylabel="nDCG@10")
    drawn.legend(loc="outside lower center", frameon=False, ncols=4)
    return drawn


def _plot(axes: Axes, report: Report) -> None:
    rows = {(row.variant, row.cohort): row for row in report.rows}
    cohorts = [name for name, _, _ in COHORTS if any(cohort == name for _, cohort in rows)]
    variants = [v for v in (*_MODEL, *BASELINES, "repeat") if (v, "all") in rows]
    for at, variant in enumerate(variants):
        shift = _WIDTH * ((at + 0.5) / len(variants) - 0.5)
        own = [rows[variant, cohort] for cohort in cohorts]
        _points(axes, variant, own, shift, _COLOURS[at % len(_COLOURS)])
    users = [rows[variants[0], cohort].users for cohort in cohorts]
    labels = [f"{c}\n({n:,})" for c, n in zip(cohorts, users, strict=True)]
    axes.set_xticks(range(len(cohorts)), labels)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _points(axes: Axes, variant: str, rows: list[Row], shift: float, colour: str) -> None:
    means = [row.ndcg.mean for row in rows]
    ends = [
        [max(row.ndcg.mean - row.ndcg.low, 0) for row in rows],
        [max(row.ndcg.high - row.ndcg.mean, 0) for row in rows],
    ]
    model = variant == _MODEL[0]
    axes.errorbar(
        [at + shift for at in range(len(rows))],
        means,
        yerr=ends,
        fmt="o" if model else "s",
        markersize=7 if model else 4,
        linewidth=2 if model else 1,
        color=colour,
        label=variant,
    )
