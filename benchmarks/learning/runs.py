"""All runs on one data set: those that are missing are made, the others are read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from adapters import list_metrics
from adapters.evaluate import Moments
from adapters.meta_train import Trained
from benchmarks.learning import world
from benchmarks.learning.goals import SetResult, Table
from benchmarks.learning.kept import CUTOFFS, Judged, Shelf
from benchmarks.learning.rows import Row
from benchmarks.learning.sets import DataSet
from benchmarks.learning.world import World
from stream.errors import DataError
from stream.progress import Reporter


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is run."""

    seeds: int  # of rows that goals ask for
    ablation_seeds: int  # of the others
    steps: int | None  # outer steps; None = the recipe's
    positions: int  # lists that are judged
    folder: Path


class Runs:
    """The runs of one data set, which is read when the first run is missing."""

    def __init__(self, data: DataSet, plan: Plan, reporter: Reporter) -> None:
        self._data = data
        self._plan = plan
        self._reporter = reporter
        self._shelf = Shelf(plan.folder / data.name)
        self._about = f"steps {plan.steps}, {plan.positions} positions"
        self._trainings: dict[int, Trained] = {}  # by seed, of the rows with all defaults

    def result(self, rows: list[Row]) -> SetResult:
        """The figures of these rows and of the baselines, means of their seeds."""
        simple = self._shelf.get(f"baselines, {self._about}", self._baselines)
        ndcg: Table = {}
        next_hit: Table = {}
        all_runs: list[Judged] = []
        commits = {simple.commit}
        for row in rows:
            count = row.seeds(self._plan.seeds, self._plan.ablation_seeds)
            runs = [self._row(row, seed) for seed in range(count)]
            commits |= {run.commit for run in runs}
            all_runs += runs
            for variant in row.variants:
                name = row.name if variant == "adapted" else f"{row.name}, {variant}"
                ndcg[name] = np.mean([run.figures[f"{variant}@10"][:, 0] for run in runs], axis=0)
                if all(variant in run.next_hit for run in runs):
                    next_hit[name] = np.mean([run.next_hit[variant] for run in runs], axis=0)
        _same_positions(self._data.name, simple, all_runs)
        for family in simple.notes:
            ndcg[family] = simple.figures[f"{family}@10"][:, 0]
        best = max(simple.notes, key=lambda family: float(simple.notes[family].split()[0]))
        return SetResult(self._data.name, simple, ndcg, next_hit, best, tuple(sorted(commits)))

    @cached_property
    def _world(self) -> World:
        return world.build(self._data, self._plan.positions, self._reporter)

    def _row(self, row: Row, seed: int) -> Judged:
        name = f"{row.name}, {dict(row.settings)}, seed {seed}, {self._about}"
        return self._shelf.get(name, partial(self._train, row, seed))

    def _train(self, row: Row, seed: int) -> Judged:
        self._reporter.say(f"{self._data.name}: {row.name}, seed {seed}")
        settings = {"learning.steps": self._plan.steps, **row.settings}
        request = world.request_of(self._data, settings, seed)
        trained = self._trainings.get(seed)  # of a row without settings: others share it
        if row.settings or trained is None:
            trained = world.train(self._world, request, self._reporter)
        if not row.settings:
            self._trainings[seed] = trained
        found = world.run(self._world, row, request, trained, self._reporter)
        return self._judged(found, {})

    def _baselines(self) -> Judged:
        found, chosen = world.simple(self._world, self._reporter)
        notes = {c.family: f"{c.ndcg:.5f} on validation; {c.point}" for c in chosen}
        return self._judged(found, notes)

    def _judged(self, found: Moments, notes: dict[str, str]) -> Judged:
        figures = {f"{v}@{k}": found.figures(v, k) for v in found.lists for k in CUTOFFS}
        hits = {variant: found.next_hit(variant, CUTOFFS[0]) for variant in found.lists}
        coverage = {variant: self._coverage(rows) for variant, rows in found.lists.items()}
        new = world.news(self._world, found)
        return Judged(found.users, found.shots, new, figures, coverage, notes, next_hit=hits)

    def _coverage(self, rows: np.ndarray) -> float:
        return list_metrics.coverage(rows[:, : CUTOFFS[0]], len(self._world.items))


def _same_positions(name: str, first: Judged, others: list[Judged]) -> None:
    """Figures of different positions cannot be paired. Raises `DataError`."""
    for run in others:
        same = (np.array_equal(run.users, first.users), np.array_equal(run.shots, first.shots))
        if not all(same):
            raise DataError(
                f"{name}: kept runs were judged at different positions",
                remedy="Keep those of one state of the data, or name another --folder.",
            )
