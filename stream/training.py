"""From files to a bundle: read, export, encode, meta-train, fit the experts, prove, save.

The log is cut by event time. The encoder learns from the first part, without the held-out users,
whose newest events there say when to stop; the expert weights from all users in the second part;
the figures come from users the encoder never saw in the third. Nothing later than a cut is
seen before it.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters import episodes, fit_experts, interplay
from adapters.episodes import Log
from adapters.evaluate import variant_meta
from adapters.fit_experts import FitOptions
from adapters.inheritance import Ancestor
from adapters.meta_train import Trained
from adapters.report import Report
from adapters.signals import bucket_start
from adapters.team import ALONE, Team
from adapters.types import Meta, ModelConfig
from export.bundle import Bundle
from stream import (
    bundles,
    config,
    measuring,
    parents,
    recipes,
    training_backbone,
    training_bundle,
    training_data,
)
from stream.errors import ConfigError, DataError
from stream.files import OnBad
from stream.messages import Item
from stream.parents import Parent, Start
from stream.progress import Advance, Reporter
from stream.run_folder import RunFolder
from stream.threads import one_thread
from stream.training_bundle import catalogue_at
from stream.training_data import Data, FromKafka
from stream.training_loop import Job, OnStep, outer_loop
from stream.training_text import Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to train on, for how long, and where to."""

    out: str
    settings: config.Settings
    events: Sequence[str] = ()  # files
    items: Sequence[str] = ()  # files
    kafka: FromKafka | None = None  # the topics in place of files
    parent: str | None = None  # address, `champion` or `none`; see `stream.parents.find`
    start: Start = "parent"  # where the outer loop begins if there is a parent
    name: str = "innerloop"
    budget_s: float | None = None  # of wall time for the outer loop; None = see `learning.steps`
    until: float | None = None  # unix seconds: later events are left out altogether
    backbone: Path | None = None  # a folder with a BERT; None = the one that is packaged
    seed: int = 0
    train_share: float = 0.8  # of the events, by time
    test_share: float = 0.1  # of the events, the last ones
    test_events: int = 4_000  # at most, of files; from Kafka the gate judges on all of them
    held_out: float = 0.2  # of the users
    cache: Path | None = None  # of exported encoders and vectors; None = the user's cache
    on_bad: OnBad | None = None
    report: bool = True  # evaluate on later users; without it the report is empty


_KEEP = (
    "Name one with --parent (promote a first one for --from-kafka), or leave --experts-only out."
)


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


def train(
    request: Request,
    reporter: Reporter,
    on_step: OnStep | None = None,
    folder: RunFolder | None = None,
    team: Team = ALONE,
    device: str = "cpu",
) -> Outcome:
    """Run all phases; `on_step` is told of the outer loop's progress, for curves.

    `folder` keeps what the run depends on and checkpoints of the outer loop, and says where a run
    that was broken off goes on. The other processes of a `team` are to call `follow`. `device` is
    that of the outer loop. Raises `DataError` for files and topics that cannot be read or hold too
    little, `BundleError` when the backbone, its export, the parent or the address of the bundle is
    refused, `ResumeError` when the folder is that of another run, `ConfigError` when neither this
    training nor a parent has weights.
    """
    data = training_data.read(request, reporter, folder)
    items = data.items
    model = recipes.model_config(request.settings.learning, data.columns.action_names)
    parent = _parent(request, model, reporter, folder)
    _require_weights(request, parent)
    drawn = training_data.held_out(data, request.held_out, request.seed)
    cuts = cut(data.log, model.bucket, request, drawn)
    text, further = training_backbone.read(request, items, cuts, reporter, folder)
    if folder is not None:
        folder.begin(training_data.about(request, data, text.rows, parent), request.settings)
        reporter.say(f"run: {folder.path}")
    job = Job(
        cuts=cuts,
        rows=text.rows,
        model=model,
        ancestor=_ancestor(parent, cuts, text, request, reporter),
        snapshot=None if folder is None else folder.snapshot,
        tuned=training_backbone.to_tune(request, text, items, reporter),
    )
    trained = outer_loop(
        team.agreed(job),
        request,
        reporter,
        on_step,
        keep=None if folder is None else folder.keep,
        team=team,
        device=device,
    )
    trained, text = training_backbone.with_tuned(
        request, trained, text, items, cuts, reporter, folder
    )
    with one_thread():
        meta, fitted = fit_weights(trained, text, items, cuts, request, reporter)
        report = Report(())
        if request.report:
            with reporter.phase("evaluate on later users") as advance:
                report = prove(meta, trained, text, items, cuts, request, advance)
    metrics = {
        "report": report.to_dict(),
        "training": trained.metrics,
        "backbone": {**further, "tuned": request.settings.learning.tune_backbone},
        "experts": fitted,
        **_protocol(data, cuts, team),
        "seconds": dict(reporter.seconds),
        "seed": request.seed,
    }
    with reporter.phase("save the bundle"):
        made = training_bundle.bundle(request, meta, trained, text, data, metrics, parent)
        saved = bundles.save(made, request.out)
    metrics |= {"seconds": dict(reporter.seconds), "peak_memory_mb": peak_memory_mb()}
    return Outcome(bundle=saved, report=report, metrics=metrics)


def _protocol(data: Data, cuts: Cuts, team: Team) -> dict[str, Any]:
    """What the figures rest on."""
    return {
        "cuts": {
            "fit": cuts.fit,
            "test": cuts.test,
            "held_out": len(cuts.held_out),
            "held_out_by": "seed" if data.window is None else "hash",
        },
        "left_out": {} if data.left is None else data.left.to_dict(),
        "processes": team.size,
    }


def peak_memory_mb() -> float:
    """The most that this process has held in memory since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cut(log: Log, bucket: float, request: Request, drawn: NDArray[np.int64] | None = None) -> Cuts:
    """Cut at starts of buckets of event time. Raises `DataError` where a part would be empty.

    `drawn` are the users who are held out; None = by the seed.
    """
    events = len(log)
    most = request.test_events if request.kafka is None else events
    last = max(int(events * (1 - request.test_share)), events - most)
    at = [int(events * request.train_share), last]
    fit, test = (float(t) for t in bucket_start(log.times[at], bucket))
    first, rest = episodes.split_time(log, fit)
    if not len(first) or fit >= test:
        raise DataError(
            f"all events lie within {log.times[-1] - log.times[0]:.0f} s: too little time to cut",
            remedy="Bring a longer log.",
        )
    if drawn is None:
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


def _parent(
    request: Request, model: ModelConfig, reporter: Reporter, folder: RunFolder | None
) -> Parent | None:
    """The model that goes before; of a training from files only one that is named."""
    if request.kafka is None and request.parent is None:
        return None
    parent = parents.find(request.parent, request.settings, folder)
    if parent is not None:
        parents.require_fit(parent, model)
        reporter.say(f"parent: {parent.version}, counters go on from it")
    return parent


def _require_weights(request: Request, parent: Parent | None) -> None:
    """Before texts are encoded, which takes minutes: a model without training needs a parent's."""
    begins = parent is None or request.start == "base"
    if begins and request.settings.learning.steps == 0:
        raise ConfigError("nothing is trained, and no parent has weights to keep", remedy=_KEEP)


def _ancestor(
    parent: Parent | None, cuts: Cuts, text: Text, request: Request, reporter: Reporter
) -> Ancestor | None:
    """Where the outer loop begins; None = at the base."""
    if parent is None or request.start == "base":
        return None
    if request.settings.learning.steps == 0:
        parents.require_texts(parent, text.encoder.encode)
    parents.refuse_leakage(parent, cuts.fit)
    if parents.met_held_out(parent):
        reporter.say("the parent has met users who are held out now: figures may be a bit too good")
    return parents.ancestor(parent, text.rows.ids)


def fit_weights(
    trained: Trained,
    text: Text,
    items: Sequence[Item],
    cuts: Cuts,
    request: Request,
    reporter: Reporter,
    users: NDArray[np.int64] | None = None,
) -> tuple[Meta, dict[str, Any]]:
    """The model with expert weights of `users` (None = all) in the second part, and figures."""
    with reporter.phase("fit the experts") as advance:
        seen, _ = episodes.split_time(cuts.log, cuts.test)
        prior, catalogue = catalogue_at(trained.meta, trained, text, items, seen, cuts.fit)
        fitted = fit_experts.fit(
            trained.meta,
            seen,
            cuts.fit,
            catalogue,
            prior,
            users,
            FitOptions(mask_seen=request.settings.ranking.exclude_seen),
            seed=request.seed,
            progress=lambda share: advance(share, ""),
        )
    figures = {
        "positions": fitted.positions,
        "loss": fitted.loss,
        "loss_default": fitted.loss_default,
        "zero_ndcg": fitted.zero_ndcg,
        "own_zero": fitted.own_zero,
        "interplay": interplay.present(fitted.meta),
    }
    alone = not request.settings.learning.experts
    return variant_meta(fitted.meta, "encoder only") if alone else fitted.meta, figures
