"""Experts fitted anew between windows of the test: what each window's lists may know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from adapters.episodes import Log
from adapters.evaluate import Moments
from benchmarks.learning import world
from benchmarks.learning.rows import FOLLOWING, OWN, ROWS
from benchmarks.learning.sets import DataSet
from benchmarks.learning.world import World
from stream.progress import Reporter
from tests.unit.small_training import write_data

WINDOWS = 3


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A small log in which the last third is the test."""
    home = tmp_path_factory.mktemp("home")
    write_data(home)
    files = str(home / "events.jsonl"), str(home / "items.jsonl")
    data = DataSet("small", *files, fit_share=0.5, test_share=0.3)
    return world.build(data, 10_000, Reporter())


def run(built: World, name: str) -> Moments:
    """A row with hardly any training, which makes the lists of all positions."""
    row = next(row for row in ROWS if row.name == name)
    windows = min(row.windows, WINDOWS)
    asked = replace(row, variants=("adapted",), windows=windows)
    return world.run(built, asked, 0, 1, Reporter())


def edges(built: World) -> list[int]:
    """Places in the log near which the second window and the last begin."""
    first = int(np.searchsorted(built.cuts.log.times, built.cuts.test))
    width = (len(built.cuts.log) - first) // WINDOWS
    return [first + width, len(built.cuts.log) - width]


def test_windows_know_what_came_before_them_alone(built: World) -> None:
    """The first is served by the weights of the fit, later ones by others.

    What happens in the last window changes no list of those before it.
    """
    fixed, found = run(built, OWN), run(built, FOLLOWING)
    second, last = edges(built)
    early, later = found.events < second - 20, found.events >= second + 20
    assert min(early.sum(), later.sum()) > 20
    same = (fixed.lists["adapted"] == found.lists["adapted"]).all(1)
    assert same[early].all()
    assert not same[later].all()
    log = built.cuts.log
    items = log.items.copy()
    items[last:] = np.random.default_rng(1).permutation(items[last:])
    changed = replace(built, cuts=replace(built.cuts, log=with_items(log, items)))
    other = run(changed, FOLLOWING)
    for moments, theirs in ((found, other), (other, found)):
        inside = (moments.events < last - 60) & np.isin(moments.events, theirs.events)
        again = np.isin(theirs.events, moments.events[inside])
        assert inside.sum() > 20
        np.testing.assert_array_equal(
            moments.lists["adapted"][inside], theirs.lists["adapted"][again]
        )


def with_items(log: Log, items: np.ndarray) -> Log:
    """The log with other items taken."""
    return replace(log, items=items)
