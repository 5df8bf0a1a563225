"""Two ideas beyond the recipe, tried on the validation slice: does it pay to follow the stream?

`python -m benchmarks.learning.following`. Weights: the experts' weights, shared by all users, are
fitted anew from the latest events before each window, against those that were fitted once. Items:
an item's vector moves towards what its first users took before, by n / (n + n0) after n of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapters import episodes, evaluate
from adapters.episodes import Log
from adapters.evaluate import Moments, Options
from adapters.meta_train import Trained
from adapters.positions import Sequences, histories
from adapters.report import compare
from adapters.types import Catalogue, Meta
from benchmarks.learning import tables, world
from benchmarks.learning.goals import words
from benchmarks.learning.kept import Array
from benchmarks.learning.sets import SETS
from benchmarks.learning.world import World
from benchmarks.tables import markdown
from stream import training
from stream.errors import InnerloopError
from stream.progress import Reporter, reporter
from stream.training import Request

FIRST = 0.4
"""Share of the slice on which the weights that stay are fitted; windows follow it."""

WINDOWS = 6
"""Of equal numbers of events."""

PATIENCE = (1.0, 4.0, 16.0)
"""n0: after so many users an item's vector has gone half of the way."""

BEFORE = 8
"""Latest items of a new item's user that its vector moves towards."""

FEWEST = 30
"""Users of whom a difference is told."""

FIXED = "as served"


@dataclass(frozen=True, slots=True)
class Window:
    """The lists of all variants at the same positions."""

    fresh: Array  # [m] bool: the next item was first met after training
    lists: dict[str, Moments]


def windows(built: World, trained: Trained, request: Request, shown: Reporter) -> list[Window]:
    """All windows of the slice between training and test."""
    log, _ = episodes.split_time(built.cuts.log, built.cuts.test)
    times = log.times[log.times >= built.cuts.fit]
    edges = times[(np.linspace(FIRST, 1, WINDOWS + 1) * (len(times) - 1)).astype(int)]
    width = int(FIRST * len(times))

    def fitted(begin: float, end: float) -> Meta:
        own = replace(built.cuts, log=log, fit=float(begin), test=float(end))
        return training.fit_weights(trained, built.text, built.items, own, request, shown)[0]

    options = Options(k=10, mask_seen=not built.data.repeats, variants=("adapted",))
    met = np.full(len(built.items), np.inf)
    np.minimum.at(met, log.items[log.items >= 0], log.times[log.items >= 0])
    fixed, found = fitted(built.cuts.fit, edges[0]), []
    for start, end in pairwise(edges):
        upto, _ = episodes.split_time(log, float(end))
        latest = log.times[log.times < start][-width]
        prior, catalogue = training.catalogue_at(
            fixed, trained, built.text, built.items, upto, built.cuts.fit
        )
        past, _ = episodes.split_time(log, float(start))
        tried: dict[str, tuple[Meta, Catalogue]] = {
            FIXED: (fixed, catalogue),
            "weights of the latest events": (fitted(latest, start), catalogue),
            "weights of all events since training": (fitted(built.cuts.fit, start), catalogue),
        }
        for n0 in PATIENCE:
            vectors = moved(catalogue.vectors, past, built.cuts.fit, n0)
            tried[f"items move, n0 {n0:g}"] = (fixed, replace(catalogue, vectors=vectors))
        with torch.inference_mode():
            judged = {
                name: evaluate.positions(meta, upto, float(start), items, prior, options, None)
                for name, (meta, items) in tried.items()
            }
        fresh = met[judged[FIXED].relevant[:, 0]] >= built.cuts.fit
        found.append(Window(fresh, judged))
    return found


def moved(vectors: Tensor, past: Log, since: float, n0: float) -> Tensor:
    """Item vectors [N, d] after the positive events of `past` from `since` on.

    Each event pulls its item towards the mean of what its user took last before it. Items that
    training knew well hardly move: their events from before count as patience, too.
    """
    seq = Sequences.of(past)
    late = np.flatnonzero((past.times >= since) & (past.items >= 0) & (past.values > 0))
    history = histories(seq, late, "request", BEFORE, 0.0)
    rows = torch.where(history.values > 0, history.items, -1)
    known = (rows >= 0).any(1)
    towards = _mean(vectors, rows[known])
    items = torch.from_numpy(past.items[late])[known]
    pull = torch.zeros_like(vectors).index_add_(0, items, towards)
    count = torch.bincount(items, minlength=len(vectors)).float()
    early = past.items[(past.times < since) & (past.items >= 0) & (past.values > 0)]
    held = torch.bincount(torch.from_numpy(early), minlength=len(vectors)).float()
    share = count / (count + held + n0)
    length = vectors.norm(dim=1, keepdim=True)
    target = functional.normalize(pull, dim=1) * length
    mixed = vectors + share[:, None] * torch.where(count[:, None] > 0, target - vectors, 0.0)
    return functional.normalize(mixed, dim=1) * length


def _mean(vectors: Tensor, rows: Tensor) -> Tensor:
    there = (rows >= 0).float()[..., None]
    total = (vectors[rows.clamp(min=0)] * there).sum(1)
    return total / there.sum(1).clamp(min=1)


def table(runs: Sequence[Sequence[Window]]) -> str:
    """Markdown: nDCG@10 of each variant, means of the seeds, and its lead over what is served."""
    columns = [_joined(run) for run in runs]
    users, fresh = columns[0][0], columns[0][1]
    figures = {
        name: np.mean([figures[name] for _, _, figures in columns], axis=0)
        for name in columns[0][2]
    }
    head = ["variant", "all", "ahead by", "items met since training", "ahead by"]
    rows = []
    for name, ndcg in figures.items():
        cells = [name]
        for inside in (np.ones(len(users), bool), fresh):
            own, base = ndcg[inside], figures[FIXED][inside]
            many = len(np.unique(users[inside])) >= FEWEST
            ahead = words(compare(users[inside], own, base)) if many and name != FIXED else ""
            cells += [tables.mean(users, ndcg, inside), ahead]
        rows.append(cells)
    counts = [f"{len(users):,} lists", "", f"{int(fresh.sum()):,} lists", ""]
    rows.append(["", *counts])
    return markdown(head, rows)


def _joined(run: Sequence[Window]) -> tuple[Array, Array, dict[str, Array]]:
    def all_of(column: Callable[[Window], Array]) -> Array:
        return np.concatenate([column(window) for window in run])

    def ndcg(name: str) -> Array:
        return all_of(lambda window: window.lists[name].figures("adapted", 10)[:, 0])

    names = list(run[0].lists)
    users = all_of(lambda window: window.lists[FIXED].users)
    return users, all_of(lambda window: window.fresh), {name: ndcg(name) for name in names}


def main(argv: Sequence[str] | None = None) -> int:
    """Train, judge and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning.following")
    parser.add_argument("--set", choices=SETS, default="movietweetings")
    parser.add_argument("--steps", type=int, help="outer steps; default: the recipe's")
    parser.add_argument("--seeds", type=int, default=3, help="models")
    asked = parser.parse_args(argv)
    try:
        with reporter() as shown:
            built, runs = world.build(SETS[asked.set], 10_000, shown), []
            for seed in range(asked.seeds):
                request = world.request_of(built.data, {"learning.steps": asked.steps}, seed)
                trained = world.train(built, request, shown)
                with training.one_thread():
                    runs.append(windows(built, trained, request, shown))
    except InnerloopError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"{table(runs)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
