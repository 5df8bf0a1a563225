"""Runs of `make evaluate` that are kept: made once, read back, small enough to be committed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.learning import goals, tables
from benchmarks.learning.kept import Judged, Shelf
from benchmarks.learning.rows import OWN, ROWS, Row
from benchmarks.learning.runs import Plan, Runs
from benchmarks.learning.sets import SETS
from stream.errors import DataError
from stream.progress import Reporter


def judged(seed: int, users: int = 300) -> Judged:
    """Made-up figures at 10,000 positions, most of them zero as in real lists."""
    rng = np.random.default_rng(seed)
    hits = rng.random((10_000, 3)) * (rng.random((10_000, 1)) < 0.2)
    return Judged(
        users=np.sort(np.random.default_rng(0).integers(0, users, 10_000)),
        shots=np.arange(10_000) % 70,
        new=np.arange(10_000) % 9 == 0,
        figures={"adapted@10": hits.astype(np.float32)},
        coverage={"adapted": 0.25},
        notes={"EASE": "penalty 100"},
        next_hit={"adapted": hits[:, 0] > 0.5},
    )


def test_a_run_is_made_once_and_read_back(tmp_path: Path) -> None:
    """The second look makes nothing; figures come back to five digits, the rest as it was."""
    shelf, made = Shelf(tmp_path), judged(1)
    first = shelf.get("GRU, seed 1", lambda: made)
    again = shelf.get("GRU, seed 1", lambda: pytest.fail("made twice"))
    for found in (first, again):
        assert np.array_equal(found.users, made.users)
        assert np.array_equal(found.new, made.new)
        np.testing.assert_allclose(
            found.figures["adapted@10"], made.figures["adapted@10"], atol=1e-5
        )
        assert np.array_equal(found.next_hit["adapted"], made.next_hit["adapted"])
        assert (found.coverage, found.notes) == (made.coverage, made.notes)


@pytest.mark.parametrize("wrong", [1.2, -0.1, np.nan])
def test_figures_that_would_be_kept_wrongly_are_refused(tmp_path: Path, wrong: float) -> None:
    """Figures are kept as shares of one: anything else would come back as another number."""
    made = judged(1)
    made.figures["adapted@10"][5, 0] = wrong
    with pytest.raises(ValueError, match="adapted@10"):
        Shelf(tmp_path).get("GRU, seed 1", lambda: made)
    assert not list(tmp_path.glob("gru*"))


def test_a_run_without_its_positions_is_told(tmp_path: Path) -> None:
    """A run that was copied alone names the file that it needs."""
    shelf = Shelf(tmp_path)
    shelf.get("GRU, seed 1", lambda: judged(1))
    (positions,) = tmp_path.glob("positions-*.npz")
    positions.unlink()
    with pytest.raises(DataError, match=positions.name):
        shelf.read("GRU, seed 1")


def test_figures_of_other_positions_are_not_paired(tmp_path: Path) -> None:
    """Kept runs of two states of the data are told apart, with the remedy."""
    data, plan = SETS["movietweetings"], Plan(1, 1, None, 10, tmp_path)
    runs, shelf = Runs(data, plan, Reporter()), Shelf(tmp_path / data.name)
    shelf.get("baselines, steps None, 10 positions", lambda: replace(judged(1), notes={}))
    shelf.get("GRU, {}, seed 0, steps None, 10 positions", lambda: judged(3, users=200))
    row = Row("GRU", variants=("adapted",))
    with pytest.raises(DataError, match="different positions"):
        runs.result([row])


def test_rows_with_fewer_seeds_are_compared_with_the_same_seeds(tmp_path: Path) -> None:
    """What one seed of the defaults is ahead of the others is no merit of a changed setting."""
    data, plan = SETS["movietweetings"], Plan(2, 1, None, 10, tmp_path)
    shelf, about = Shelf(tmp_path / data.name), "steps None, 10 positions"
    shelf.get(f"baselines, {about}", lambda: level(0.1, note="0.1 on validation"))
    shelf.get(f"fast weight, {{}}, seed 0, {about}", lambda: level(0.2))
    shelf.get(f"fast weight, {{}}, seed 1, {about}", lambda: level(0.4))
    shelf.get(f"MAML, {{'learning.kind': 'maml'}}, seed 0, {about}", lambda: level(0.16))
    own = Row(OWN, variants=("adapted", "encoder only"), main=True)
    maml = next(row for row in ROWS if row.name == "MAML")
    found = Runs(data, plan, Reporter()).result([own, maml])
    assert goals.ahead(found, "MAML").mean == pytest.approx(0.25, abs=1e-3)
    assert goals.ahead(found, "EASE").mean == pytest.approx(2.0, abs=1e-3)
    (line,) = tables.ablations([found]).splitlines()[2:]
    assert line == "| MAML | 1 | +25.0% (+25.0% to +25.0%) | +25.0% (+25.0% to +25.0%) |"


def level(ndcg: float, note: str = "") -> Judged:
    """A run in which every list has this nDCG."""
    made = judged(1)
    figures = np.full((len(made.users), 3), ndcg, np.float32)
    names = ["EASE@10"] if note else ["adapted@10", "encoder only@10"]
    notes = {"EASE": note} if note else {}
    return replace(made, figures=dict.fromkeys(names, figures), notes=notes, next_hit={})


def test_runs_at_the_same_positions_share_them(tmp_path: Path) -> None:
    """Positions stand once for all runs, others apart; a run is a few tens of kB."""
    shelf = Shelf(tmp_path)
    for seed in (1, 2):
        shelf.get(f"GRU, seed {seed}", lambda seed=seed: judged(seed))  # type: ignore[misc]
    shelf.get("GRU, other users", lambda: judged(3, users=200))
    assert len(list(tmp_path.glob("positions-*.npz"))) == 2
    assert all(path.stat().st_size < 40_000 for path in tmp_path.glob("gru*.npz"))
