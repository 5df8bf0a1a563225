"""Trainings of `make evaluate` that run at the same time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.learning import side_by_side
from benchmarks.learning.kept import Judged, Shelf
from benchmarks.learning.rows import Row
from benchmarks.learning.runs import Plan, Runs, Task
from benchmarks.learning.sets import DataSet
from stream.errors import DataError
from stream.progress import Reporter
from tests.unit.small_training import write_data

ROWS = [
    Row("own", variants=("adapted",), main=True),
    Row("own again", variants=("adapted",), judged=True),
    Row("GRU", {"learning.kind": "gru"}, variants=("adapted",)),
]


def test_what_is_missing_is_told_apart_by_what_is_trained(tmp_path: Path) -> None:
    """Rows with the same settings and seed are one task; what is kept is none."""
    data, plan = DataSet("small", "none", "none"), Plan(2, 1, None, 10, tmp_path)
    own, again, gru = ROWS
    runs, shelf = Runs(data, plan, Reporter()), Shelf(tmp_path / data.name)
    assert runs.missing(ROWS) == [
        Task(),
        Task((own, again), 0),
        Task((own, again), 1),
        Task((gru,)),
    ]
    for name in ("baselines", "own again, {}, seed 1", "GRU, {'learning.kind': 'gru'}, seed 0"):
        shelf.get(f"{name}, steps None, 10 positions", judged)
    assert runs.missing(ROWS) == [Task((own, again), 0), Task((own,), 1)]


def test_runs_are_the_same_side_by_side(tmp_path: Path) -> None:
    """What two processes make is what one makes, to the last digit, and nothing is made twice."""
    write_data(tmp_path)
    files = str(tmp_path / "events.jsonl"), str(tmp_path / "items.jsonl")
    data = DataSet("small", *files, fit_share=0.5, test_share=0.3)
    rows = ROWS[:2]
    told = Told()
    plan = Plan(1, 1, 1, 200, tmp_path / "two")
    side_by_side.make(data, plan, rows, 2, told)
    assert Runs(data, plan, Reporter()).missing(rows) == []
    assert "2 trainings" in told.lines[0]
    assert sorted(line.rsplit(":", 1)[0] for line in told.lines[1:]) == [
        "small: baselines",
        "small: own and own again, seed 0",
    ]
    one = Runs(data, replace(plan, folder=tmp_path / "one"), Reporter()).result(rows)
    two = Runs(data, plan, Reporter()).result(rows)
    assert one.judged.notes == two.judged.notes
    assert one.ndcg.keys() == two.ndcg.keys()
    for name, figures in one.ndcg.items():
        assert np.array_equal(figures, two.ndcg[name]), name


def test_a_fault_in_a_process_is_told_as_in_one(tmp_path: Path) -> None:
    """Missing data is said with its remedy, wherever the training runs."""
    data = DataSet("absent", str(tmp_path / "no.jsonl"), str(tmp_path / "no-items.jsonl"))
    with pytest.raises(DataError, match=r"no.*\.jsonl"):
        side_by_side.make(data, Plan(1, 1, 1, 10, tmp_path), ROWS, 2, Reporter())


class Told(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        """The line, kept."""
        self.lines.append(line)


def judged() -> Judged:
    """A run of one position."""
    figures = {"adapted@10": np.ones((1, 3), np.float32)}
    return Judged(np.zeros(1), np.zeros(1), np.zeros(1, bool), figures, {"adapted": 0.5}, {})
