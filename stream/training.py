"""From files to a bundle: read, export, encode, meta-train, fit the experts, prove, save.

The log is cut by event time. The encoder learns from the first part, without the held-out users;
the expert weights from held-out users in the second part; the figures come from users the encoder
never saw in the third. Nothing later than a cut is seen before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adapters import backbone, episodes, fit_experts, meta_train
from adapters.backbone import BackboneError
from adapters.episodes import Log
from adapters.evaluate import variant_meta
from adapters.experts import Prior, prior_from_log
from adapters.fit_experts import FitOptions
from adapters.meta_train import Trained
from adapters.report import Report
from adapters.signals import bucket_start
from adapters.types import Catalogue, Meta, ModelConfig
from export import parity, to_onnx
from export.bundle import FORMAT_VERSION, Bundle, EncoderEntry, Manifest, Window
from export.bundle_tensors import Items
from export.encoder import EncoderFiles, OnnxEncoder
from export.parity import Parity, Probe
from stream import bundles, config, datasets, measuring, recipes
from stream.catalogue import CatalogueTable
from stream.columns import Columns
from stream.errors import DataError
from stream.files import OnBad
from stream.item_encoder import ItemEncoder, ItemRows, common_dense_field
from stream.messages import Item, item_text
from stream.progress import Advance, Reporter
from stream.vector_file import FileVectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to train on, for how long, and where to."""

    events: Sequence[str]
    items: Sequence[str]
    out: str
    settings: config.Settings
    name: str = "innerloop"
    budget_s: float | None = 30.0
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
class Text:
    """Items as the backbone reads them."""

    rows: ItemRows
    encoder: ItemEncoder
    files: EncoderFiles
    parity: Parity
    probe: Probe
    dense: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """A log in three parts by time, and who is held out of the first."""

    log: Log
    fit: float  # unix seconds: the second part begins
    test: float  # the third part begins
    held_out: NDArray[np.int64]  # drawn users, and all who first appear after `fit`


OnStep = Callable[[meta_train.Progress], None]


def train(request: Request, reporter: Reporter, on_step: OnStep | None = None) -> Outcome:
    """Run all phases; `on_step` is told of the outer loop's progress, for curves.

    Raises `DataError` for files that cannot be read or hold too little, `BundleError` when the
    backbone, its export or the address of the bundle is refused.
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
    trained = outer_loop(cuts, text.rows, model, request, reporter, on_step)
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
        bundle = _bundle(request, meta, trained, text, log, messages, metrics)
        saved = bundles.save(bundle, request.out)
    return Outcome(bundle=saved, report=report, metrics=metrics)


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: many small products wait for each other's threads longer than they run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read_text(request: Request, items: Sequence[Item], reporter: Reporter) -> Text:
    """Export the backbone, hold the export against it, and encode all items through it."""
    with reporter.phase("export the backbone"), bundles.refusals():
        bert = _backbone(request.backbone)
        folder = None if request.cache is None else request.cache / "encoders"
        files = to_onnx.cached(bert, folder)
        model = request.settings.model
        encoder = OnnxEncoder(files, device=model.device, threads=model.threads)
        probe, figures = _probe(bert, encoder, items)
    folder = None if request.cache is None else request.cache / "vectors"
    cache, dense = FileVectors(files.sha, files.dim, folder), common_dense_field(items)
    reader = ItemEncoder(encoder, cache, dense)
    with reporter.phase("encode items") as advance:
        rows = reader.rows(items, _counting(advance, len(items)))
        cache.save()
    name = None if dense is None else dense.name
    return Text(rows=rows, encoder=reader, files=files, parity=figures, probe=probe, dense=name)


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


def catalogue_at(
    meta: Meta, trained: Trained, text: Text, items: Sequence[Item], log: Log, until: float
) -> tuple[Prior, Catalogue]:
    """What is known of all items from the events before `until` (unix seconds)."""
    prior = _prior(meta.config, log, len(items), until)
    return prior, _catalogue(meta, trained, text, items, prior)


# -- phases -------------------------------------------------------------------------------------


def _backbone(folder: Path | None) -> backbone.Backbone:
    try:
        return backbone.load(folder)
    except BackboneError as error:
        raise DataError(
            str(error), remedy="Name a folder with a BERT as --backbone, or leave it out."
        ) from None


def _probe(
    bert: backbone.Backbone, encoder: OnnxEncoder, items: Sequence[Item]
) -> tuple[Probe, Parity]:
    texts = parity.probe_texts([item_text(item.fields) for item in items])
    texts = texts if len(texts) > 1 else (*texts, "a film", "a book")
    expected = backbone.encode(bert, texts).numpy()
    figures = parity.compare(expected, encoder.encode(texts))
    parity.require(figures)
    return Probe(texts=texts, vectors=expected), figures


def outer_loop(
    cuts: Cuts,
    rows: ItemRows,
    model: ModelConfig,
    request: Request,
    reporter: Reporter,
    on_step: OnStep | None,
) -> Trained:
    """Item tower and adapter from the first part. Raises `DataError` where it holds too little."""
    first, rest = episodes.split_time(cuts.log, cuts.fit)
    episodes.refuse_leakage(first, rest)
    with reporter.phase("meta-train the inner loop") as advance:

        def progress(now: meta_train.Progress) -> None:
            losses = ", ".join(f"{name} {value:.3f}" for name, value in now.losses.items())
            advance(now.fraction, f"{losses}, {now.seconds_left:.0f} s left")
            if on_step is not None:
                on_step(now)

        try:
            return meta_train.train(
                first,
                rows.features(np.full(len(rows), -1)),
                model,
                budget_s=request.budget_s if request.settings.learning.steps is None else None,
                recipe=recipes.recipe(request.settings),
                seed=request.seed,
                held_out=cuts.held_out,
                progress=progress,
            )
        except ValueError as error:
            raise DataError(f"too little to learn from: {error}") from None


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
            cuts.held_out,
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


def _prior(model: ModelConfig, log: Log, size: int, until: float) -> Prior:
    return prior_from_log(model, size, log.users, log.items, log.values, log.times, until)


def _catalogue(
    meta: Meta, trained: Trained, text: Text, items: Sequence[Item], prior: Prior
) -> Catalogue:
    """The catalogue as a worker builds it from the same bundle and messages."""
    table = CatalogueTable(meta, _items(trained, text, prior), text.encoder)
    table.upsert(items)
    return table.catalogue()


def _items(trained: Trained, text: Text, prior: Prior) -> Items:
    return Items(
        ids=tuple(text.rows.ids),
        content=text.rows.content,
        text=text.rows.text,
        attributes=text.rows.attributes,
        id_rows=trained.features.id_rows.numpy(),
        prior=prior,
        dense=text.rows.dense,
        dense_field=text.dense,
    )


def _bundle(
    request: Request,
    meta: Meta,
    trained: Trained,
    text: Text,
    log: Log,
    messages: config.Messages,
    metrics: dict[str, Any],
) -> Bundle:
    bucket = meta.config.bucket
    end = float(bucket_start(log.times[-1:], bucket)[0]) + bucket
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=request.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        window=Window(
            first=float(log.times[0]),
            last=float(log.times[-1]),
            events=len(log),
            users=len(np.unique(log.users)),
            items=len(text.rows),
        ),
        config=meta.config.to_dict(),
        actions={name: rule.model_dump() for name, rule in messages.actions.items()},
        encoder=EncoderEntry(
            sha=text.files.sha, dim=text.files.dim, max_length=text.files.max_length
        ),
        parity=text.parity,
        metrics=metrics,
    )
    return Bundle(
        manifest=manifest,
        meta=meta,
        items=_items(trained, text, _prior(meta.config, log, len(text.rows), end)),
        encoder=text.files,
        probe=text.probe,
    )


def _say_size(reporter: Reporter, columns: Columns, items: Sequence[Item]) -> None:
    reporter.say(
        f"{len(columns):,} interactions of {len(columns.user_ids):,} users with "
        f"{len(columns.item_ids):,} items; {len(items):,} items in the catalogue"
    )


def _counting(advance: Advance, total: int) -> Callable[[int], None]:
    done, began = 0, time.monotonic()

    def progress(more: int) -> None:
        nonlocal done
        done += more
        rate = done / max(time.monotonic() - began, 1e-3)
        advance(done / total, f"{done:,} of {total:,}, {rate:,.0f}/s")

    return progress
