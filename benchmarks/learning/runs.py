"""All runs on one data set: those that are missing are made, the others are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np

from adapters import list_metrics
from adapters.evaluate import Moments
from adapters.meta_train import Trained
from benchmarks.learning import world
from benchmarks.learning.goals import SetResult, Table
from benchmarks.learning.kept import CUTOFFS, Judged, Shelf
from benchmarks.learning.rows import OWN, Row
from benchmarks.learning.sets import DataSet
from benchmarks.learning.world import World
from stream.errors import DataError
from stream.progress import Reporter
from stream.training import Request


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is run."""

    seeds: int  # of rows that goals ask for
    ablation_seeds: int  # of the others
    steps: int | None  # outer steps; None = the recipe's
    positions: int  # lists that are judged
    folder: Path


@dataclass(frozen=True, slots=True)
class Task:
    """What is made in one go: rows that share a training, or the baselines where there are none."""

    rows: tuple[Row, ...] = ()
    seed: int = 0

    def words(self) -> str:
        """What this is, for people."""
        names = " and ".join(row.name for row in self.rows)
        return f"{names}, seed {self.seed}" if names else "baselines"


class Runs:
    """The runs of one data set, which is read when the first run is missing."""

    def __init__(self, data: DataSet, plan: Plan, reporter: Reporter) -> None:
        self._data = data
        self._plan = plan
        self._reporter = reporter
        self._shelf = Shelf(plan.folder / data.name)
        self._about = f"steps {plan.steps}, {plan.positions} positions"

    def missing(self, rows: list[Row]) -> list[Task]:
        """What the baselines and these rows lack, in the order of the rows."""
        together: dict[str, Task] = {}  # by what is trained
        for row in rows:
            for seed in self._seeds(row):
                if not self._shelf.has(self._name(row, seed)):
                    trained = f"{dict(row.settings)}, {seed}"
                    others = together.get(trained, Task((), seed)).rows
                    together[trained] = Task((*others, row), seed)
        simple = [] if self._shelf.has(self._simple) else [Task()]
        return [*simple, *together.values()]

    def make(self, task: Task) -> None:
        """Make what is missing of a task, and keep it. Raises `DataError` without the data."""
        if not task.rows:
            self._shelf.get(self._simple, self._baselines)
            return
        settings = {"learning.steps": self._plan.steps, **task.rows[0].settings}
        request = world.request_of(self._data, settings, task.seed)
        trained = cache(lambda: world.train(self._world, request, self._reporter))
        for row in task.rows:
            make = partial(self._run, row, request, trained)
            self._shelf.get(self._name(row, task.seed), make)

    def result(self, rows: list[Row]) -> SetResult:
        """The figures of these rows and of the baselines, means of their seeds."""
        for task in self.missing(rows):
            self._reporter.say(f"{self._data.name}: {task.words()}")
            self.make(task)
        simple = self._shelf.read(self._simple)
        ndcg: Table = {}
        next_hit: Table = {}
        seeds: dict[str, int] = {}
        own: list[Judged] = []
        all_runs: list[Judged] = []
        commits = {simple.commit}
        for row in rows:
            runs = [self._shelf.read(self._name(row, seed)) for seed in self._seeds(row)]
            own = runs if row.name == OWN else own
            commits |= {run.commit for run in runs}
            all_runs += runs
            found = _means(row, runs)
            ndcg |= found
            seeds |= dict.fromkeys(found, len(runs))
            for variant in row.variants:
                if all(variant in run.next_hit for run in runs):
                    hits = [run.next_hit[variant] for run in runs]
                    next_hit[row.label(variant)] = np.mean(hits, axis=0)
        _same_positions(self._data.name, simple, all_runs)
        for family in simple.notes:
            ndcg[family] = simple.figures[f"{family}@10"][:, 0]
        best = max(simple.notes, key=lambda family: float(simple.notes[family].split()[0]))
        defaults = {
            count: _means(row, own[:count])
            for row in rows
            if row.name == OWN
            for count in set(seeds.values())
        }
        made = tuple(sorted(commits))
        return SetResult(self._data.name, simple, ndcg, next_hit, best, made, seeds, defaults)

    def _seeds(self, row: Row) -> range:
        return range(row.seeds(self._plan.seeds, self._plan.ablation_seeds))

    @property
    def _simple(self) -> str:
        return f"baselines, {self._about}"

    def _name(self, row: Row, seed: int) -> str:
        return f"{row.name}, {dict(row.settings)}, seed {seed}, {self._about}"

    @cached_property
    def _world(self) -> World:
        return world.build(self._data, self._plan.positions, self._reporter)

    def _run(self, row: Row, request: Request, trained: Callable[[], Trained]) -> Judged:
        found = world.run(self._world, row, request, trained(), self._reporter)
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


def _means(row: Row, runs: list[Judged]) -> Table:
    """nDCG@10 of each variant of a row, mean of its runs."""
    return {
        row.label(variant): np.mean([run.figures[f"{variant}@10"][:, 0] for run in runs], axis=0)
        for variant in row.variants
    }


def _same_positions(name: str, first: Judged, others: list[Judged]) -> None:
    """Figures of different positions cannot be paired. Raises `DataError`."""
    for run in others:
        same = (np.array_equal(run.users, first.users), np.array_equal(run.shots, first.shots))
        if not all(same):
            raise DataError(
                f"{name}: kept runs were judged at different positions",
                remedy="Keep those of one state of the data, or name another --folder.",
            )
