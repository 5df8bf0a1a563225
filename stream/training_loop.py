"""The outer loop of a training, in one process or in each of a team."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adapters import episodes, meta_train
from adapters.inheritance import Ancestor, InheritanceError
from adapters.meta_train import Trained
from adapters.outer_loop import DivergedError, Keep, Progress, Snapshot, SnapshotError
from adapters.team import ALONE, Team
from adapters.tuning import TunedTexts
from adapters.types import ModelConfig
from stream import recipes
from stream.errors import BundleError, DataError, Deserted, ResumeError
from stream.item_encoder import ItemRows
from stream.progress import Advance, Reporter
from stream.threads import threads

if TYPE_CHECKING:
    from stream.training import Cuts, Request

OnStep = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the outer loop depends on beside the request; it can be sent to other processes."""

    cuts: Cuts
    rows: ItemRows
    model: ModelConfig
    ancestor: Ancestor | None = None
    snapshot: Snapshot | None = None  # where a run that was broken off goes on
    tuned: TunedTexts | None = None  # what is trained of the backbone


def outer_loop(
    job: Job,
    request: Request,
    reporter: Reporter,
    on_step: OnStep | None = None,
    *,
    keep: Keep | None = None,
    team: Team = ALONE,
    device: str = "cpu",
) -> Trained:
    """Item tower and adapter from the first part of the log.

    Raises `DataError` where it holds too little, `ResumeError` where the snapshot is of another
    model, `BundleError` where the parent is.
    """
    first, rest = episodes.split_time(job.cuts.log, job.cuts.fit)
    episodes.refuse_leakage(first, rest)
    count = request.settings.model.threads or 1  # one: the same model on any number of cores
    with (
        reporter.phase("meta-train the inner loop") as advance,
        threads(count),
        _refusals(),
    ):
        return meta_train.train(
            first,
            job.rows.features(np.full(len(job.rows), -1)),
            job.model,
            budget_s=request.budget_s,
            recipe=recipes.recipe(request.settings, device),
            seed=request.seed,
            held_out=job.cuts.held_out,
            progress=_following(advance, on_step),
            keep=keep,
            resume=job.snapshot,
            device=device,
            ancestor=job.ancestor,
            team=team,
            tuned=job.tuned,
        )


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns what the outer loop refuses into errors of the command line."""
    try:
        yield
    except SnapshotError as error:
        raise ResumeError(str(error)) from None
    except InheritanceError as error:
        raise BundleError(
            f"the parent cannot be gone on from: {error}",
            remedy="Repeat its settings of `learning`, or begin at the base with --start base.",
        ) from None
    except DivergedError as error:
        raise DataError(
            f"the training has diverged: {error}",
            remedy="Lower learning.learning_rate, or set learning.mixed_precision=never.",
        ) from None
    except ValueError as error:
        raise DataError(f"too little to learn from: {error}") from None


def _following(advance: Advance, on_step: OnStep | None) -> OnStep:
    """Shows the progress of the outer loop, with the last validation loss."""
    checked = ""

    def progress(now: Progress) -> None:
        nonlocal checked
        if now.validation is not None:
            checked = f", validation {now.validation:.3f}"
        losses = ", ".join(f"{name} {value:.3f}" for name, value in now.losses.items())
        advance(now.fraction, f"{losses}{checked}, at most {now.seconds_left:.0f} s left")
        if on_step is not None:
            on_step(now)

    return progress


def follow(request: Request, reporter: Reporter, team: Team, device: str = "cpu") -> None:
    """Take part in the outer loop of a training that the first process of the team runs.

    Raises `Deserted` where that one ends before.
    """
    try:
        job: Job | None = team.agreed(None)
    except RuntimeError:  # the other end of the connection is gone
        raise Deserted from None
    if job is not None:
        outer_loop(job, request, reporter, team=team, device=device)
