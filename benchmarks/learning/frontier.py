"""Accuracy against variety: what `ranking.diversity` costs and brings, on validation positions.

`python -m benchmarks.learning.frontier` trains on MovieTweetings; the test slice is not touched.
The chosen point is the most variety of which we can say that it loses less than MOST_LOST of
nDCG@10: the whole interval lies above that loss, as in the other goals that ask for no loss.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from adapters import list_metrics
from adapters.evaluate import Moments
from adapters.report import Figure, compare, per_user
from benchmarks.learning import world
from benchmarks.learning.goals import Verdict, words
from benchmarks.learning.kept import CUTOFFS, Judged, Shelf
from benchmarks.learning.sets import SETS
from benchmarks.tables import markdown
from stream.config import Settings
from stream.errors import InnerloopError
from stream.progress import Reporter, reporter

DIVERSITIES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)

MOST_LOST = 0.01
"""Share of nDCG@10 that variety may cost."""

APART = 2.0
"""The most variety there is: results are kept as figures between 0 and 1."""

POSITIONS = 4_000
"""Lists of either half of the users that are judged, at most."""

SEEDS = 3
"""Models: what variety costs differs from one to the next by about as much as may be lost."""


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the re-ranker, figures of the first ten places."""

    diversity: float
    ndcg: float
    change: Figure  # of nDCG, relative to no diversity
    variety: float  # mean over pairs of a list's items of 1 - cosine of their texts
    coverage: float  # share of the catalogue that is in any list


def frontier(
    folder: Path,
    steps: int | None,
    shown: Reporter,
    seeds: int = SEEDS,
    positions: int = POSITIONS,
) -> list[Point]:
    """All points, means of the seeds; what was run before is read from `folder`.

    Raises `DataError` where the data is missing.
    """
    data = SETS["movietweetings"]

    def make(seed: int) -> Judged:
        built = world.build(data, positions, shown)
        shown.say(f"{data.name}: frontier of variety, seed {seed}")
        return _judged(*world.varied(built, DIVERSITIES, seed, steps, shown))

    shelf, about = Shelf(folder / data.name), f"steps {steps}, {positions} positions"
    return points(
        [
            shelf.get(f"frontier, {DIVERSITIES}, seed {seed}, {about}", partial(make, seed))
            for seed in range(seeds)
        ]
    )


def points(found: Sequence[Judged]) -> list[Point]:
    """The figures of each diversity, means of runs on the same positions.

    The first diversity is what the others are compared with.
    """
    users, names = found[0].users, list(found[0].coverage)
    figures = {name: np.mean([run.figures[name] for run in found], axis=0) for name in names}
    means = {name: per_user(users, both).mean(0) for name, both in figures.items()}
    plain = figures[names[0]][:, 0]
    return [
        Point(
            diversity=float(name),
            ndcg=float(means[name][0]),
            change=compare(users, figures[name][:, 0], plain),
            variety=APART * float(means[name][1]),
            coverage=float(np.mean([run.coverage[name] for run in found])),
        )
        for name in names
    ]


def chosen(found: Sequence[Point]) -> float:
    """The largest diversity up to which, going up from 0, no point may lose MOST_LOST."""
    best = found[0].diversity
    for point in found:
        if point.change.low <= -MOST_LOST:
            break
        best = point.diversity
    return best


def verdicts(found: Sequence[Point]) -> list[Verdict]:
    """Whether the default of `ranking.diversity` is the chosen point; none without points."""
    if not found:
        return []
    point, default = chosen(found), Settings().ranking.diversity
    change = next(p.change for p in found if p.diversity == point)
    goal = f"the default diversity is the most that surely loses less than {MOST_LOST:.0%} of nDCG"
    why = f"default {default:g}, chosen {point:g} at {words(change)}"
    return [Verdict(goal, default == point, why)]


def text(found: Sequence[Point]) -> str:
    """Markdown: one line a diversity; empty where nothing was run."""
    if not found:
        return ""
    head = ["diversity", "nDCG@10", "against none", "variety of a list", "items in any list"]
    rows = []
    for point in found:
        change = words(point.change) if point.diversity else ""
        figures = [f"{point.ndcg:.4f}", change, f"{point.variety:.3f}", f"{point.coverage:.1%}"]
        rows.append([f"{point.diversity:g}", *figures])
    return markdown(head, rows)


def _judged(halves: list[dict[float, Moments]], texts: Tensor) -> Judged:
    """The figures of both halves of the users, one behind the other."""
    figures, coverage = {}, {}
    for diversity in halves[0]:
        parts = [half[diversity] for half in halves]
        rows = np.concatenate([part.lists["adapted"][:, : CUTOFFS[0]] for part in parts])
        ndcg = np.concatenate([part.figures("adapted", CUTOFFS[0])[:, 0] for part in parts])
        apart = list_metrics.variety(rows, texts) / APART
        figures[f"{diversity:g}"] = np.stack([ndcg, apart], 1)
        coverage[f"{diversity:g}"] = list_metrics.coverage(rows, len(texts))
    first = [next(iter(half.values())) for half in halves]
    users, shots = (np.concatenate([getattr(m, n) for m in first]) for n in ("users", "shots"))
    return Judged(users, shots, np.zeros(len(users), bool), figures, coverage, {})


def main(argv: Sequence[str] | None = None) -> int:
    """Print the frontier and the chosen point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning.frontier")
    parser.add_argument("--steps", type=int, help="outer steps; default: the recipe's")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="models")
    parser.add_argument("--positions", type=int, default=POSITIONS, help="lists that are judged")
    parser.add_argument("--folder", type=Path, default=Path("var/evaluate"), help="of what was run")
    asked = parser.parse_args(argv)
    try:
        with reporter() as shown:
            found = frontier(asked.folder, asked.steps, shown, asked.seeds, asked.positions)
    except InnerloopError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    told = "\n".join(verdict.line() for verdict in verdicts(found))
    sys.stdout.write(f"{text(found)}\n\n{told}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
