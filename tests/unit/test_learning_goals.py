"""Verdicts follow from the figures, and what was run is not run again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.learning import goals
from benchmarks.learning.goals import SetResult, Verdict
from benchmarks.learning.kept import Judged, Shelf
from benchmarks.learning.rows import OWN, ROWS, Row
from stream import config

USERS = 600


def judged() -> Judged:
    """One position for each of 600 users, a third of them at 0, 2 and 20 shots."""
    shots = np.repeat([0, 2, 20], USERS // 3)
    return Judged(np.arange(USERS), shots, np.arange(USERS) % 4 == 0, {}, {}, {})


def result(name: str, **levels: float) -> SetResult:
    """A set in which every row has this level of nDCG, with the same noise for all."""
    noise = np.random.default_rng(0).normal(0, 0.02, USERS)
    ndcg = {row.replace("_", " "): level + noise for row, level in levels.items()}
    ndcg = {row.replace(" off", ", steps off"): value for row, value in ndcg.items()}
    return SetResult(name, judged(), ndcg, ndcg, "EASE")


def told(verdicts: list[Verdict], word: str) -> Verdict:
    """The verdict on the goal with this word."""
    return next(verdict for verdict in verdicts if word in verdict.goal)


@pytest.mark.parametrize(
    ("levels", "met"),
    [
        ((0.22, 0.22, 0.201), True),
        ((0.22, 0.203, 0.203), False),  # ahead by 5% on one set alone
        ((0.22, 0.22, 0.19), False),  # behind on the third
    ],
)
def test_the_best_baseline_must_be_beaten_on_two_sets(levels: tuple[float, ...], met: bool) -> None:
    """Ahead by 5% on two, and not below on the third."""
    sets = [
        result(f"set {i}", **{OWN.replace(" ", "_"): level}, EASE=0.2, fast_weight_off=0.1)
        for i, level in enumerate(levels)
    ]
    assert told(goals.verdicts(sets), "best simple").met is met


@pytest.mark.parametrize(("own", "ids", "met"), [(0.4, 0.16, True), (0.4, 0.24, False)])
def test_new_items_must_be_hit_twice_as_often(own: float, ids: float, met: bool) -> None:
    """What counts is the very next item, where it is new; others do not dilute it."""
    place = np.arange(USERS) // 4 / (USERS / 4)
    hits = {
        name: np.where(judged().new, place < share, True)
        for name, share in (("fast weight", own), ("id only", ids))
    }
    level = np.full(USERS, 0.2)
    found = SetResult("news", judged(), {OWN: level, "EASE": level}, hits, "EASE")
    verdict = told(goals.verdicts([found]), "less than a day old")
    assert verdict.met is met
    assert f"{own:.3f} against {ids:.3f}" in verdict.why


def test_a_cohort_that_loses_is_named() -> None:
    """A mean that is ahead does not hide that newcomers get worse lists."""
    own = result("films", fast_weight=0.25, EASE=0.2, fast_weight_off=0.1)
    many = np.repeat(np.arange(3), USERS)
    shots = np.repeat([0, 2, 20], USERS)
    level = np.where(shots == 0, 0.15, 0.4)
    wide = Judged(np.tile(np.arange(USERS), 3), shots, many > 9, {}, {}, {})
    ndcg = {OWN: level, "EASE": np.full(len(shots), 0.2), f"{OWN}, steps off": level}
    lost = SetResult("news", wide, ndcg, ndcg, "EASE")
    verdict = told(goals.verdicts([own, own, lost]), "best simple")
    assert verdict.met is False
    assert "news at 0 shots" in verdict.why


def test_rows_that_were_not_run_give_no_verdict() -> None:
    """A quick run on one set says what it found and claims nothing."""
    found = goals.verdicts([result("films", fast_weight=0.25, EASE=0.2, fast_weight_off=0.1)])
    assert all(verdict.met is None for verdict in found)


def test_what_was_run_is_not_run_again(tmp_path: Path) -> None:
    """A result is made once; one that was broken off leaves nothing behind."""
    shelf, calls = Shelf(tmp_path), 0

    def fails() -> Judged:
        raise KeyboardInterrupt

    def make() -> Judged:
        nonlocal calls
        calls += 1
        found = judged()
        found.figures["adapted@10"] = np.ones((USERS, 3))
        return found

    with pytest.raises(KeyboardInterrupt):
        shelf.get("row", fails)
    first, second = shelf.get("row", make), shelf.get("row", make)
    assert calls == 1
    np.testing.assert_array_equal(first.figures["adapted@10"], second.figures["adapted@10"])
    np.testing.assert_array_equal(first.shots, second.shots)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_a_line_of_configuration(row: Row) -> None:
    """The settings of each row are ones that a user can give."""
    config.load(None, dict(row.settings))
