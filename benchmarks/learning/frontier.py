"""Accuracy against variety: what `ranking.diversity` costs and brings, on validation positions.

`python -m benchmarks.learning.frontier` trains one model on MovieTweetings; the test slice is not
touched. The chosen point is the most variety whose loss of nDCG@10 stays below MOST_LOST.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from adapters.evaluate import Moments
from adapters.report import Figure, compare, per_user
from benchmarks.learning import world
from benchmarks.learning.goals import Verdict, words
from benchmarks.learning.kept import CUTOFFS, Array, Judged, Shelf
from benchmarks.learning.sets import SETS
from stream.config import Settings
from stream.errors import InnerloopError
from stream.progress import Reporter, reporter

DIVERSITIES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)

MOST_LOST = 0.01
"""Share of nDCG@10 that variety may cost."""

POSITIONS = 4_000
"""Lists that are judged."""


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the re-ranker, figures of the first ten places."""

    diversity: float
    ndcg: float
    change: Figure  # of nDCG, relative to no diversity
    variety: float  # mean over pairs of a list's items of 1 - cosine of their texts
    coverage: float  # share of the catalogue that is in any list


def frontier(
    folder: Path, steps: int | None, shown: Reporter, positions: int = POSITIONS
) -> list[Point]:
    """All points; what was run before is read from `folder`.

    Raises `DataError` where the data is missing.
    """
    data = SETS["movietweetings"]

    def make() -> Judged:
        built = world.build(data, positions, shown)
        return _judged(*world.varied(built, DIVERSITIES, steps, shown))

    name = f"frontier, {DIVERSITIES}, steps {steps}, {positions} positions"
    return points(Shelf(folder / data.name).get(name, make))


def points(found: Judged) -> list[Point]:
    """The figures of each diversity; the first is what the others are compared with."""
    names = list(found.coverage)
    plain = found.figures[names[0]][:, 0]
    out = []
    for name in names:
        ndcg, variety = found.figures[name].T
        out.append(
            Point(
                diversity=float(name),
                ndcg=float(per_user(found.users, ndcg[:, None]).mean()),
                change=compare(found.users, ndcg, plain),
                variety=float(per_user(found.users, variety[:, None]).mean()),
                coverage=found.coverage[name],
            )
        )
    return out


def chosen(found: Sequence[Point]) -> float:
    """The largest diversity up to which, going up from 0, no point loses MOST_LOST."""
    best = found[0].diversity
    for point in found:
        if point.change.mean <= -MOST_LOST:
            break
        best = point.diversity
    return best


def verdicts(found: Sequence[Point]) -> list[Verdict]:
    """Whether the default of `ranking.diversity` is the chosen point; none without points."""
    if not found:
        return []
    point, default = chosen(found), Settings().ranking.diversity
    change = next(p.change for p in found if p.diversity == point)
    goal = f"the default diversity is the largest that loses less than {MOST_LOST:.0%} of nDCG"
    why = f"default {default:g}, chosen {point:g} at {words(change)}"
    return [Verdict(goal, default == point, why)]


def text(found: Sequence[Point]) -> str:
    """Markdown: one line a diversity; empty where nothing was run."""
    if not found:
        return ""
    head = ["diversity", "nDCG@10", "against none", "variety of a list", "items in any list"]
    lines = [head, ["---"] * len(head)]
    for point in found:
        change = words(point.change) if point.diversity else ""
        figures = [f"{point.ndcg:.4f}", change, f"{point.variety:.3f}", f"{point.coverage:.1%}"]
        lines.append([f"{point.diversity:g}", *figures])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _judged(lists: dict[float, Moments], texts: Tensor) -> Judged:
    figures, coverage = {}, {}
    for diversity, found in lists.items():
        rows = found.lists["adapted"][:, : CUTOFFS[0]]
        ndcg = found.figures("adapted", CUTOFFS[0])[:, 0]
        figures[f"{diversity:g}"] = np.stack([ndcg, variety(rows, texts.numpy())], 1)
        coverage[f"{diversity:g}"] = len(np.unique(rows[rows >= 0])) / len(texts)
    one = next(iter(lists.values()))
    return Judged(one.users, one.shots, np.zeros(len(one.users), bool), figures, coverage, {})


def variety(rows: Array, texts: Array) -> Array:
    """Mean over pairs of 1 - cosine [m] of full lists [m, k] of items with unit texts [N, T].

    Intra-list diversity (Ziegler et al., "Improving Recommendation Lists Through Topic
    Diversification", 2005).
    """
    k = rows.shape[1]
    sums = texts[rows].sum(1)  # [m, T]
    alike = (np.square(sums).sum(1) - k) / (k * (k - 1))
    return np.asarray(1 - alike)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the frontier and the chosen point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning.frontier")
    parser.add_argument("--steps", type=int, help="outer steps; default: the recipe's")
    parser.add_argument("--positions", type=int, default=POSITIONS, help="lists that are judged")
    parser.add_argument("--folder", type=Path, default=Path("var/evaluate"), help="of what was run")
    asked = parser.parse_args(argv)
    try:
        with reporter() as shown:
            found = frontier(asked.folder, asked.steps, shown, asked.positions)
    except InnerloopError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    told = "\n".join(verdict.line() for verdict in verdicts(found))
    sys.stdout.write(f"{text(found)}\n\n{told}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
