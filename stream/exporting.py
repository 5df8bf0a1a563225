"""A bundle's encoder in other forms: make them, measure them, save a bundle with the best one.

Every vector of a bundle comes from the bundle's own encoder. The item tower was trained on fp32
vectors and stays as it is; what it reads are the chosen encoder's vectors of all items, known and
new alike. Were the known ones left in fp32, a new item would differ from its neighbours by the
quantisation as well, and what was measured would not be what is served.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from adapters import backbone
from adapters.backbone import Backbone
from export import choice, from_onnx, parity, variants
from export.bundle import Bundle, EncoderEntry
from export.choice import Row
from export.encoder import OnnxEncoder
from export.parity import FP32, Probe
from export.prune import Recovery
from export.variants import Made, Variant, Workshop
from stream import bundles, config, datasets, list_loss
from stream.columns import Columns
from stream.errors import BundleError, DataError
from stream.files import OnBad
from stream.item_encoder import ItemEncoder
from stream.list_loss import Judged
from stream.messages import Item, content_hash, item_text
from stream.progress import Reporter

TORCH = "torch"
"""The trained encoder, which speeds are measured against."""

TIMED = 256
"""Items that are encoded in a round."""

COMPARED = 2_000
"""Items of the catalogue whose neighbours are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to export, and by what to judge it."""

    items: Sequence[str]
    settings: config.Settings
    variants: Sequence[str] = variants.QUICK
    events: Sequence[str] = ()  # none = lists are not compared
    start: float | None = None  # unix seconds of the first list; None = as `evaluate` has it
    recovery: Recovery | None = None  # of pruned encoders; None = the default
    rounds: int = 7
    on_bad: OnBad | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A variant with its figures and the bundle it would make."""

    row: Row
    bundle: Bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    """What all variants are judged on."""

    bundle: Bundle
    bert: Backbone
    items: Sequence[Item]
    texts: tuple[str, ...]  # different ones, of all items
    timed: tuple[str, ...]
    compared: tuple[str, ...]
    trained: parity.Vectors  # of `compared`, by the trained encoder
    columns: Columns | None


@contextmanager
def export(bundle: Bundle, request: Request, reporter: Reporter) -> Iterator[list[Exported]]:
    """All variants asked for, in their order; their files last as long as the context.

    Raises `BundleError` for a bundle without its trained encoder and where a variant cannot be
    made of it, `DataError` for files that cannot be read.
    """
    chosen = [variants.VARIANTS[name] for name in dict.fromkeys([FP32, *request.variants])]
    ground = _ground(bundle, request, reporter)
    with tempfile.TemporaryDirectory(prefix="innerloop-export-") as name, bundles.refusals():
        folder = Path(name)
        shop = Workshop(ground.bert, bundle.encoder, ground.texts, folder, request.recovery)
        made = [_make(shop, variant, reporter) for variant in chosen]
        encoders = {each.variant.name: _encoder(each, request) for each in made}
        speeds = _speeds(ground, encoders, request, reporter)
        yield list(_judged(ground, made, encoders, speeds, request, reporter))


def save(exported: Exported, url: str) -> Bundle:
    """Write the variant's bundle. Raises `BundleError`."""
    return bundles.save(exported.bundle, url)


# -- making and measuring -----------------------------------------------------------------------


def _ground(bundle: Bundle, request: Request, reporter: Reporter) -> _Ground:
    if bundle.manifest.encoder.variant != FP32:
        raise BundleError(
            f"its encoder is the variant {bundle.manifest.encoder.variant} already",
            remedy=f"Export from the bundle it was made of, {bundle.manifest.parent}.",
        )
    sources = [*request.events, *request.items]
    messages = datasets.messages_for(sources, request.settings.messages)
    with reporter.phase("read items and events"):
        items = datasets.read_items(request.items, messages, request.on_bad)
        columns = _events(bundle, request, messages) if request.events else None
    with bundles.refusals():
        bert = from_onnx.load(bundle.encoder)
        texts = tuple(dict.fromkeys(item_text(item.fields) for item in items))
        compared = tuple(variants.spread(texts, COMPARED))
        if len(compared) < 2:
            raise DataError("all items say the same", remedy="Bring more items.")
        return _Ground(
            bundle=bundle,
            bert=bert,
            items=items,
            texts=texts,
            timed=tuple(variants.spread(texts, TIMED)),
            compared=compared,
            trained=backbone.encode(bert, compared).numpy(),
            columns=columns,
        )


def _events(bundle: Bundle, request: Request, messages: config.Messages) -> Columns:
    """The events, weighted as in training."""
    known = {n: config.Action.model_validate(r) for n, r in bundle.manifest.actions.items()}
    weighted = messages.model_copy(update={"actions": known})
    return datasets.read_events(request.events, weighted, request.on_bad)


def _make(shop: Workshop, variant: Variant, reporter: Reporter) -> Made:
    with reporter.phase(f"make {variant.name}") as advance:
        made = shop.make(variant, advance)
    if made.recovered is not None:
        taught = made.recovered
        reporter.say(
            f"{variant.name}: cosine of held-out texts {taught.before:.4f} before recovery, "
            f"{taught.after:.4f} after {taught.epochs} epochs"
        )
    return made


def _encoder(made: Made, request: Request) -> OnnxEncoder:
    """On the CPU: that is what is measured, and where every variant runs."""
    return OnnxEncoder(made.files, device="cpu", threads=request.settings.model.threads)


def _speeds(
    ground: _Ground, encoders: Mapping[str, OnnxEncoder], request: Request, reporter: Reporter
) -> dict[str, float]:
    """Over fp32 torch, in turns, with one and the same number of threads."""
    runs: dict[str, Callable[[Sequence[str]], object]] = {
        TORCH: lambda texts: backbone.encode(ground.bert, texts),
        **{name: encoder.encode for name, encoder in encoders.items()},
    }
    threads = next(iter(encoders.values())).threads
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with reporter.phase(f"measure speed, {threads} threads"):
            return choice.speeds(runs, TORCH, ground.timed, request.rounds)
    finally:
        torch.set_num_threads(before)


def _judged(
    ground: _Ground,
    made: Sequence[Made],
    encoders: Mapping[str, OnnxEncoder],
    speeds: Mapping[str, float],
    request: Request,
    reporter: Reporter,
) -> Iterator[Exported]:
    first: Judged | None = None  # fp32's lists
    for each in made:
        name = each.variant.name
        with reporter.phase(f"judge {name}"):
            own = _bundle(ground, each, encoders[name])
            row = _row(ground, each, encoders[name], own, speeds[name])
            if ground.columns is not None:
                found = list_loss.judge(
                    own,
                    encoders[name],
                    ground.columns,
                    ground.items,
                    request.settings,
                    request.start,
                )
                first = first or found
                row = replace(row, lists=found.against(first))
        metrics = {**own.manifest.metrics, "export": row.to_dict()}
        manifest = msgspec.structs.replace(own.manifest, metrics=metrics)
        yield Exported(row=row, bundle=replace(own, manifest=manifest))


def _row(ground: _Ground, made: Made, encoder: OnnxEncoder, own: Bundle, speed: float) -> Row:
    among = encoder.encode(ground.compared)
    some = ground.timed[:64]
    alone = parity.compare(encoder.encode(some), encoder.encode(some, batch_size=1))
    return Row(
        variant=made.variant.name,
        kind=made.variant.kind,
        size=made.files.model.stat().st_size,
        speed=speed,
        probe=own.manifest.parity,
        catalogue=parity.compare(ground.trained, among),
        steady=float(alone.mean_cosine or 0.0),
    )


# -- the bundle of a variant --------------------------------------------------------------------


def _bundle(ground: _Ground, made: Made, encoder: OnnxEncoder) -> Bundle:
    """The same model with the variant's encoder, its vectors, and a probe that names them."""
    parent = ground.bundle
    vectors = encoder.encode(parent.probe.texts)
    figures = parity.compare(parent.probe.vectors, vectors)
    entry = EncoderEntry(
        sha=made.files.sha,
        dim=made.files.dim,
        max_length=made.files.max_length,
        variant=made.variant.name,
        kind=made.variant.kind,
    )
    manifest = msgspec.structs.replace(
        parent.manifest,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        encoder=entry,
        parity=figures,
        parent=parent.manifest.version,
        version="",
        files={},
    )
    text, content = _items(parent, ground.items, encoder)
    return replace(
        parent,
        manifest=manifest,
        encoder=made.files,
        items=replace(parent.items, text=text, content=content),
        probe=Probe(texts=parent.probe.texts, vectors=parent.probe.vectors, own=vectors),
    )


def _items(
    parent: Bundle, items: Sequence[Item], encoder: OnnxEncoder
) -> tuple[NDArray[np.float16], NDArray[np.uint64]]:
    """Vectors [B, D] and content hashes [B] of the bundle's items.

    An item whose text is not at hand, because it is gone or has changed since, keeps its fp32
    vector as evidence; without a content hash it is encoded when its message comes.
    """
    if encoder.files == parent.encoder:
        return parent.items.text, parent.items.content
    row = {item: place for place, item in enumerate(parent.items.ids)}
    known = [item for item in items if _same(parent, row.get(item.item, -1), item)]
    places = [row[item.item] for item in known]
    text, content = parent.items.text.copy(), np.zeros_like(parent.items.content)
    if known:
        text[places] = ItemEncoder(encoder).rows(known).text
        content[places] = parent.items.content[places]
    return text, content


def _same(parent: Bundle, place: int, item: Item) -> bool:
    return place >= 0 and int(parent.items.content[place]) == content_hash(item.fields)
