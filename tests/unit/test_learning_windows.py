"""Experts fitted anew between windows of the test: what each window's lists may know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from adapters.evaluate import Moments
from benchmarks.learning import world
from benchmarks.learning.rows import FOLLOWING, OWN, ROWS
from benchmarks.learning.sets import DataSet
from benchmarks.learning.world import World
from stream import training
from stream.progress import Reporter
from tests.unit.small_training import write_data

WINDOWS = 2


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
    request = world.request_of(built.data, {"learning.steps": 1}, 0)
    return world.run(built, asked, request, world.train(built, request, Reporter()), Reporter())


def test_weights_fitted_anew_know_what_came_before_their_window_alone(built: World) -> None:
    """The first window is served by the weights of the fit, the second by others.

    What happens late in a window changes no earlier list of it.
    """
    log = built.cuts.log
    first = int(np.searchsorted(log.times, built.cuts.test))
    middle, late = first + (len(log) - first) // 2, first + (len(log) - first) * 3 // 4
    fixed, found = run(built, OWN), run(built, FOLLOWING)
    same = (fixed.lists["adapted"] == found.lists["adapted"]).all(1)
    before, after = found.events < middle - 20, found.events >= middle + 20
    assert min(before.sum(), after.sum()) > 20
    assert same[before].all()
    assert not same[after].all()
    items = log.items.copy()
    items[late:] = np.random.default_rng(1).permutation(items[late:])
    other = run(replace(built, cuts=replace(built.cuts, log=replace(log, items=items))), FOLLOWING)
    one, two = (lists_before(moments, late - 20) for moments in (found, other))
    both = sorted(one.keys() & two.keys())
    assert both[-1] > middle + 20
    assert [one[event] for event in both] == [two[event] for event in both]


def test_weights_may_be_those_of_some_users(built: World) -> None:
    """Who is judged in the part that is fitted on can be left out of the fit."""
    request = world.request_of(built.data, {"learning.steps": 1}, 0)
    trained = world.train(built, request, Reporter())
    halves = np.array_split(np.unique(built.cuts.log.users), 2)
    counts = []
    for users in (None, *halves):
        _, figures = training.fit_weights(
            trained, built.text, built.items, built.cuts, request, Reporter(), users
        )
        counts.append(figures["positions"])
    assert min(counts) > 0
    assert max(counts[1:]) < counts[0]


def lists_before(moments: Moments, place: int) -> dict[int, list[int]]:
    """The lists at events before this place in the log; an event may have none in another log."""
    early = moments.events < place
    rows = moments.lists["adapted"][early].tolist()
    return dict(zip(moments.events[early].tolist(), rows, strict=True))
