"""The picture of an evaluation."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from adapters.report import Lists, Report, by_shots, summarise
from stream import picture
from stream.errors import DataError, MissingPart


@pytest.fixture(scope="module")
def report() -> Report:
    """Users at 0 and 5 shots; the model is at .8 and .4, popularity at .5 everywhere."""
    users, shots = np.arange(80), np.repeat([0, 5], 40)
    rows = np.zeros((80, 1), int)
    level = {"adapted": np.where(shots == 0, 0.8, 0.4), "popularity": np.full(80, 0.5)}
    lists = {name: Lists(figures={"ndcg@10": x}, rows=rows) for name, x in level.items()}
    cohorts = [("all", shots >= 0), *by_shots(shots)]
    return summarise(users, cohorts, lists, 1)


def test_every_variant_is_drawn_in_every_cohort(report: Report) -> None:
    """Points stand at the means by shots, cohorts that are empty are left out."""
    (axes,) = picture.figure(report, "a title").axes
    handles, labels = axes.get_legend_handles_labels()
    means = {name: list(h.lines[0].get_ydata()) for h, name in zip(handles, labels, strict=True)}
    assert means == {"adapted": pytest.approx([0.8, 0.4]), "popularity": pytest.approx([0.5, 0.5])}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0\n(40)", "4-7\n(40)"]
    assert axes.get_title() == "a title"


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_pictures_are_files_of_their_kind(report: Report, tmp_path: Path, kind: str) -> None:
    """The ending says what is written."""
    path = tmp_path / f"shots.{kind}"
    picture.check(path)
    picture.save(report, path, "a title")
    assert path.read_bytes()[:5] == {"svg": b"<?xml", "png": b"\x89PNG\r"}[kind]


def test_a_place_that_cannot_be_written_is_one_line(report: Report, tmp_path: Path) -> None:
    """A folder of the picture's name is refused with a remedy."""
    (tmp_path / "shots.svg").mkdir()
    with pytest.raises(DataError, match="--picture"):
        picture.save(report, tmp_path / "shots.svg", "a title")


def test_without_the_library_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where matplotlib is not installed the error says how to get it."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPart, match=r"innerloop\[picture\]"):
        picture.check(tmp_path / "shots.svg")
