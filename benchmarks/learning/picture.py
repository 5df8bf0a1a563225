"""The picture of the README: quality by shots on every set, the model against baselines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adapters.report import per_user
from benchmarks.learning.goals import SetResult, cohorts
from benchmarks.learning.rows import OWN

PATH = Path(__file__).parents[2] / "docs" / "quality-by-shots.svg"

WIDTH = 0.6
"""Of the place of a cohort, shared by its rows."""


def save(found: list[SetResult], path: Path = PATH) -> None:
    """Draw nDCG@10 with 95% intervals (1.96 standard errors over users) to an SVG file."""
    widths = [1.0 + len(cohorts(own)) for own in found]  # in cohorts, with room for the scale
    drawn = Figure(figsize=(max(5.6, 0.9 * sum(widths)), 4.2), layout="constrained")
    panels = drawn.subplots(1, len(found), width_ratios=widths)
    for axes, own in zip(np.atleast_1d(panels), found, strict=True):
        _plot(axes, own)
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(
        handles,
        labels,
        loc="outside lower center",
        frameon=False,
        ncols=2 if len(found) == 1 else 4,
    )
    with rc_context({"svg.hashsalt": "innerloop"}):  # the same figures give the same file
        drawn.savefig(path, metadata={"Date": None})


def _plot(axes: Axes, own: SetResult) -> None:
    parts = cohorts(own)
    rows = {
        "Innerloop": (OWN, "#0b3c8c"),
        "trained without steps": ("no inner loop", "#7aa6e8"),
        "best simple baseline": (own.best_simple, "#d55e00"),
        "recency popularity": ("recency popularity", "#999999"),
    }
    for at, (label, (row, colour)) in enumerate(rows.items()):
        points = [_point(own, row, inside) for _, inside in parts]
        place = np.arange(len(parts)) + WIDTH * ((at + 0.5) / len(rows) - 0.5)
        means, errors = zip(*points, strict=True)
        axes.errorbar(place, means, errors, fmt="o", markersize=4, color=colour, label=label)
    names = [f"{name}\n({inside.sum():,})" for name, inside in parts]
    axes.set_xticks(range(len(parts)), names, fontsize="small")
    axes.set_xlim(-0.5, len(parts) - 0.5)
    axes.set_title(own.name, fontsize="medium")
    axes.set(xlabel="events so far\n(lists)", ylabel="nDCG@10")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _point(own: SetResult, row: str, inside: np.ndarray) -> tuple[float, float]:
    each = per_user(own.judged.users[inside], own.ndcg[row][inside, None])[:, 0]
    return float(each.mean()), 1.96 * float(each.std()) / len(each) ** 0.5
