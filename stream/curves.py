"""Curves of a training run: TensorBoard always, Weights & Biases where its key is set."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from adapters.outer_loop import Progress
    from adapters.report import Report

KEY = "WANDB_API_KEY"


class Writer(Protocol):
    """Where curves go."""

    def curve(self, values: Mapping[str, float], step: int) -> None:
        """Points of curves, at an outer step."""

    def figures(self, values: Mapping[str, float]) -> None:
        """Results of the whole run."""

    def close(self) -> None:
        """Write everything."""


class TensorBoard:
    """Event files in a run's folder; points after `step` of an earlier attempt are left out."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def curve(self, values: Mapping[str, float], step: int) -> None:
        """Points of curves, at an outer step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def figures(self, values: Mapping[str, float]) -> None:
        """Results of the whole run, as curves of one point."""
        self.curve(values, 0)

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the package `wandb`, which is handed in; its own variables say project and host."""

    def __init__(self, wandb: Any, folder: Path, facts: Mapping[str, Any]) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "innerloop"),
            id=folder.name,
            name=folder.name,
            dir=str(folder),
            config=dict(facts),
            resume="allow",
        )

    def curve(self, values: Mapping[str, float], step: int) -> None:
        """Points of curves, at an outer step."""
        self._run.log(dict(values), step=step)

    def figures(self, values: Mapping[str, float]) -> None:
        """Results of the whole run."""
        self._run.summary.update(dict(values))

    def close(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()


def writers(
    folder: Path,
    step: int,
    facts: Mapping[str, Any],
    say: Callable[[str], None],
    environment: Mapping[str, str] = os.environ,
    load: Callable[[], Any] = lambda: import_module("wandb"),
) -> list[Writer]:
    """TensorBoard, and Weights & Biases where it is wanted and works; `say` is told if it does not.

    `step` is where the run goes on, `facts` what it was started with.
    """
    chosen: list[Writer] = [TensorBoard(folder, step)]
    if environment.get(KEY):
        try:
            chosen.append(WeightsAndBiases(load(), folder, facts))
        except ImportError:
            say(f"{KEY} is set, but its package is missing: pip install 'innerloop[wandb]'")
        except Exception as error:  # nothing that happens to curves may end a training
            say(f"Weights & Biases does not take curves: {error}")
    return chosen


class Curves:
    """Sends what happens to all writers."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = writers

    def __enter__(self) -> Curves:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all writers."""
        for writer in self._writers:
            writer.close()

    def step(self, now: Progress) -> None:
        """Losses and learning rate of the outer loop."""
        values = {f"loss/{name}": value for name, value in now.losses.items()}
        values["learning_rate"] = now.rate
        if now.validation is not None:
            values["loss/validation"] = now.validation
        for writer in self._writers:
            writer.curve(values, now.step)

    def report(self, report: Report) -> None:
        """nDCG of every variant in every cohort."""
        values = {f"ndcg/{row.cohort}/{row.variant}": row.ndcg.mean for row in report.rows}
        for writer in self._writers:
            writer.figures(values)
