"""Where curves go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adapters.outer_loop import Progress
from adapters.report import Report
from stream import curves
from stream.curves import KEY, Curves, TensorBoard


class Memory:
    """Curves that are kept in memory."""

    def __init__(self) -> None:
        self.points: list[tuple[str, float, int]] = []
        self.closed = False

    def curve(self, values: Mapping[str, float], step: int) -> None:
        """Points of curves."""
        self.points += [(name, value, step) for name, value in values.items()]

    def figures(self, values: Mapping[str, float]) -> None:
        """Results."""

    def close(self) -> None:
        """The end."""
        self.closed = True


def progress(step: int, validation: float | None = None) -> Progress:
    """What the outer loop says after a step."""
    return Progress(step, 0.5, {"meta": 2.0, "few": 3.0, "total": 3.5}, 9.0, 0.01, validation)


def missing() -> Any:
    """The import of a package that is not there."""
    raise ModuleNotFoundError("No module named 'wandb'")


class Refusing:
    """A package that cannot sign in."""

    def init(self, **_: Any) -> Any:
        """Begin a run."""
        raise RuntimeError("key refused")


class Wandb:
    """What is used of the package `wandb`, in memory; it is its own run."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, float], int]] = []
        self.summary: dict[str, float] = {}
        self.finished = False

    def init(self, **options: Any) -> Wandb:
        """Begin the run."""
        self.options = options
        return self

    def log(self, values: dict[str, float], *, step: int) -> None:
        """Points of curves."""
        self.logged.append((values, step))

    def finish(self) -> None:
        """The end of the run."""
        self.finished = True


def test_all_writers_get_the_same() -> None:
    """Losses and the rate at every step, the validation loss where there was a check."""
    first, second = Memory(), Memory()
    with Curves([first, second]) as written:
        written.step(progress(1))
        written.step(progress(2, validation=1.5))
        written.report(Report(()))
    assert first.points == second.points
    assert ("loss/meta", 2.0, 1) in first.points
    assert [p for p in first.points if p[0] == "loss/validation"] == [("loss/validation", 1.5, 2)]
    assert first.closed
    assert second.closed


def test_without_a_key_there_is_tensorboard_alone(tmp_path: Path) -> None:
    """Nobody is asked for Weights & Biases, and its package is not looked for."""
    said: list[str] = []
    (writer,) = curves.writers(tmp_path, 0, {}, said.append, {}, missing)
    writer.close()
    assert isinstance(writer, TensorBoard)
    assert said == []


@pytest.mark.parametrize(
    ("load", "line"), [(missing, "innerloop[wandb]"), (Refusing, "key refused")]
)
def test_what_keeps_curves_away_is_said(tmp_path: Path, load: Any, line: str) -> None:
    """A package that is missing or refuses is one line; the training goes on with TensorBoard."""
    said: list[str] = []
    (writer,) = curves.writers(tmp_path, 0, {}, said.append, {KEY: "k"}, load)
    writer.close()
    assert isinstance(writer, TensorBoard)
    assert line in " ".join(said)


def test_weights_and_biases_gets_curves_beside_tensorboard(tmp_path: Path) -> None:
    """With a key and the package, curves go to both; the run is named after its folder."""
    package, said = Wandb(), list[str]()
    written = curves.writers(tmp_path, 0, {"seed": 3}, said.append, {KEY: "k"}, lambda: package)
    with Curves(written) as both:
        both.step(progress(2, validation=1.5))
        written[1].figures({"ndcg/all/adapted": 0.1})
    assert said == []
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert package.options["config"] == {"seed": 3}
    assert (package.options["id"], package.options["resume"]) == (tmp_path.name, "allow")
    assert package.logged[0][1] == 2
    assert package.logged[0][0].items() >= {"loss/validation": 1.5, "loss/meta": 2.0}.items()
    assert package.summary == {"ndcg/all/adapted": 0.1}
    assert package.finished


def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """Points after the checkpoint, which are made once more, are there once."""
    for begun, steps in ((0, range(1, 7)), (4, range(5, 9))):
        writer = TensorBoard(tmp_path, begun)
        for step in steps:
            writer.curve({"loss/meta": float(begun)}, step)
        writer.close()
    found = EventAccumulator(str(tmp_path)).Reload().Scalars("loss/meta")
    assert [(p.step, p.value) for p in found] == [(s, 0.0 if s < 5 else 4.0) for s in range(1, 9)]
