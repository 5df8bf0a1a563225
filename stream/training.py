"""From files to a bundle: read, export, encode, meta-train, fit the experts, prove, save.

The log is cut by event time. The encoder learns from the first part, without the held-out users,
whose newest events there say when to stop; the expert weights from held-out users in the second
part; the figures come from users the encoder never saw in the third. Nothing later than a cut is
seen before it.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from adapters import episodes, fit_experts, meta_train
from adapters.episodes import Log
from adapters.evaluate import variant_meta
from adapters.fit_experts import FitOptions
from adapters.meta_train import Trained
from adapters.outer_loop import Progress, SnapshotError
from adapters.report import Report
from adapters.signals import bucket_start
from adapters.types import Meta, ModelConfig
from export.bundle import Bundle
from stream import bundles, config, datasets, measuring, recipes, training_bundle
from stream.columns import Columns
from stream.errors import DataError, ResumeError
from stream.files import OnBad
from stream.item_encoder import ItemRows
from stream.messages import Item
from stream.progress import Advance, Reporter
from stream.run_folder import About, RunFolder
from stream.training_bundle import catalogue_at
from stream.training_text import Text, read_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to train on, for how long, and where to."""

    events: Sequence[str]
    items: Sequence[str]
    out: str
    settings: config.Settings
    name: str = "innerloop"
    budget_s: float | None = None  # of wall time for the outer loop; None = see `learning.steps`
    until: float | None = None  # unix seconds: later events are left out altogether
    backbone: Path | None = None  # a folder with a BERT; None = the one that is packaged
    seed: int = 0
    train_share: float = 0.8  # of the events, by time
    test_share: float = 0.1  # of the events, the last ones
    test_events: int = 4_000  # at most: measuring is not to take longer than training
    held_out: float = 0.2  # of the users
    cache: Path | None = None  # of exported encoders and vectors; None = the user's cache
    on_bad: OnBad | None = None
    report: bool = True  # evaluate on later users; without it the report is empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A bundle that was saved, and the figures behind it."""

    bundle: Bundle
    report: Report
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """A log in three parts by time, and who is held out of the first."""

    log: Log
    fit: float  # unix seconds: the second part begins
    test: float  # the third part begins
    held_out: NDArray[np.int64]  # drawn users, and all who first appear after `fit`


OnStep = Callable[[Progress], None]


def train(
    request: Request,
    reporter: Reporter,
    on_step: OnStep | None = None,
    folder: RunFolder | None = None,
) -> Outcome:
    """Run all phases; `on_step` is told of the outer loop's progress, for curves.

    `folder` keeps what the run depends on and checkpoints of the outer loop, and says where a run
    that was broken off goes on. Raises `DataError` for files that cannot be read or hold too
    little, `BundleError` when the backbone, its export or the address of the bundle is refused,
    `ResumeError` when the folder is that of another run.
    """
    messages = datasets.messages_for([*request.events, *request.items], request.settings.messages)
    with reporter.phase("read events and items"):
        items = datasets.read_items(request.items, messages, request.on_bad)
        columns = datasets.read_events(request.events, messages, request.on_bad, request.until)
        log = datasets.to_log(columns, [item.item for item in items], request.settings.state)
    _say_size(reporter, columns, items)
    text = read_text(request, items, reporter)
    model = recipes.model_config(request.settings.learning, columns.action_names)
    cuts = cut(log, model.bucket, request)
    if folder is not None:
        folder.begin(_about(request, log, text.rows), request.settings)
        reporter.say(f"run: {folder.path}")
    trained = outer_loop(cuts, text.rows, model, request, reporter, on_step, folder)
    with one_thread():
        meta, fitted = fit_weights(trained, text, items, cuts, request, reporter)
        report = Report(())
        if request.report:
            with reporter.phase("evaluate on later users") as advance:
                report = prove(meta, trained, text, items, cuts, request, advance)
    metrics = {
        "report": report.to_dict(),
        "training": trained.metrics,
        "experts": fitted,
        "cuts": {"fit": cuts.fit, "test": cuts.test, "held_out": len(cuts.held_out)},
        "seconds": dict(reporter.seconds),
        "seed": request.seed,
    }
    with reporter.phase("save the bundle"):
        made = training_bundle.bundle(request, meta, trained, text, log, messages, metrics)
        saved = bundles.save(made, request.out)
    metrics |= {"seconds": dict(reporter.seconds), "peak_memory_mb": peak_memory_mb()}
    return Outcome(bundle=saved, report=report, metrics=metrics)


def peak_memory_mb() -> float:
    """The most that this process has held in memory since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one_thread() -> AbstractContextManager[None]:
    """One torch thread: many small products wait for each other's threads longer than they run."""
    return threads(1)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cut(log: Log, bucket: float, request: Request) -> Cuts:
    """Cut at starts of buckets of event time. Raises `DataError` where a part would be empty."""
    events = len(log)
    last = max(int(events * (1 - request.test_share)), events - request.test_events)
    at = [int(events * request.train_share), last]
    fit, test = (float(t) for t in bucket_start(log.times[at], bucket))
    first, rest = episodes.split_time(log, fit)
    if not len(first) or fit >= test:
        raise DataError(
            f"all events lie within {log.times[-1] - log.times[0]:.0f} s: too little time to cut",
            remedy="Bring a longer log.",
        )
    drawn = episodes.draw_users(log, request.held_out, request.seed)
    new = np.setdiff1d(rest.users, first.users)
    return Cuts(log=log, fit=fit, test=test, held_out=np.union1d(drawn, new))


def prove(
    meta: Meta,
    trained: Trained,
    text: Text,
    items: Sequence[Item],
    cuts: Cuts,
    request: Request,
    advance: Advance,
) -> Report:
    """The table on held-out users in the last part: predict, then learn."""
    prior, catalogue = catalogue_at(meta, trained, text, items, cuts.log, cuts.test)
    options = measuring.options(request.settings, cuts.held_out)
    return measuring.report(meta, cuts.log, cuts.test, catalogue, prior, options, advance)


# -- phases -------------------------------------------------------------------------------------


def outer_loop(
    cuts: Cuts,
    rows: ItemRows,
    model: ModelConfig,
    request: Request,
    reporter: Reporter,
    on_step: OnStep | None,
    folder: RunFolder | None = None,
) -> Trained:
    """Item tower and adapter from the first part.

    Raises `DataError` where it holds too little, `ResumeError` where the folder's checkpoint is
    of another model.
    """
    first, rest = episodes.split_time(cuts.log, cuts.fit)
    episodes.refuse_leakage(first, rest)
    count = request.settings.model.threads or 1  # one: the same model on any number of cores
    with reporter.phase("meta-train the inner loop") as advance, threads(count):
        try:
            return meta_train.train(
                first,
                rows.features(np.full(len(rows), -1)),
                model,
                budget_s=request.budget_s,
                recipe=recipes.recipe(request.settings),
                seed=request.seed,
                held_out=cuts.held_out,
                progress=_following(advance, on_step),
                keep=None if folder is None else folder.keep,
                resume=None if folder is None else folder.snapshot,
            )
        except SnapshotError as error:
            raise ResumeError(str(error)) from None
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


def _about(request: Request, log: Log, rows: ItemRows) -> About:
    """What the run depends on, and a digest of all that was read."""
    digest = xxhash.xxh3_128()
    columns = (log.users, log.items, log.actions, log.values, log.times)
    for column in (*columns, rows.hashes, rows.content, rows.created, rows.text, rows.dense):
        digest.update(b"" if column is None else np.ascontiguousarray(column).tobytes())
    first, last = (datetime.fromtimestamp(log.times[i], UTC).isoformat() for i in (0, -1))
    return About(
        name=request.name,
        events=list(request.events),
        items=list(request.items),
        seed=request.seed,
        budget_s=request.budget_s,
        first=first,
        last=last,
        interactions=len(log),
        users=len(np.unique(log.users)),
        catalogue=len(rows),
        data_digest=digest.hexdigest(),
    )


def fit_weights(
    trained: Trained,
    text: Text,
    items: Sequence[Item],
    cuts: Cuts,
    request: Request,
    reporter: Reporter,
) -> tuple[Meta, dict[str, Any]]:
    """The model with expert weights from held-out users in the second part, and figures."""
    with reporter.phase("fit the experts"):
        seen, _ = episodes.split_time(cuts.log, cuts.test)
        prior, catalogue = catalogue_at(trained.meta, trained, text, items, seen, cuts.fit)
        fitted = fit_experts.fit(
            trained.meta,
            seen,
            cuts.fit,
            catalogue,
            prior,
            None,
            FitOptions(mask_seen=request.settings.ranking.exclude_seen),
            seed=request.seed,
        )
    figures = {
        "positions": fitted.positions,
        "loss": fitted.loss,
        "loss_default": fitted.loss_default,
        "zero_ndcg": fitted.zero_ndcg,
        "own_zero": fitted.own_zero,
    }
    alone = not request.settings.learning.experts
    return variant_meta(fitted.meta, "encoder only") if alone else fitted.meta, figures


def _say_size(reporter: Reporter, columns: Columns, items: Sequence[Item]) -> None:
    reporter.say(
        f"{len(columns):,} interactions of {len(columns.user_ids):,} users with "
        f"{len(columns.item_ids):,} items; {len(items):,} items in the catalogue"
    )
