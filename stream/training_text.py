"""The items of a training as the backbone reads them: export it, check the export, encode."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapters import backbone
from adapters.backbone import BackboneError
from export import parity, to_onnx
from export.encoder import EncoderFiles, OnnxEncoder
from export.parity import Parity, Probe
from stream import bundles
from stream.errors import DataError
from stream.item_encoder import ItemEncoder, ItemRows, common_dense_field
from stream.messages import Item, item_text
from stream.progress import Advance, Reporter
from stream.vector_file import FileVectors

if TYPE_CHECKING:
    from stream.training import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Items as the backbone reads them."""

    rows: ItemRows
    encoder: ItemEncoder
    files: EncoderFiles
    parity: Parity
    probe: Probe
    dense: str | None
    backbone: Path | None = None  # its folder; None = the one that is packaged


def read_text(request: Request, items: Sequence[Item], reporter: Reporter, which: str = "") -> Text:
    """Export the backbone, hold the export against it, and encode all items through it.

    `which` tells the phases from those of another backbone of the same run.
    """
    with reporter.phase(f"export the backbone{which}"), bundles.refusals():
        bert = load_backbone(request.backbone)
        folder = None if request.cache is None else request.cache / "encoders"
        files = to_onnx.cached(bert, folder)
        model = request.settings.model
        encoder = OnnxEncoder(files, device=model.device, threads=model.threads)
        probe, figures = _probe(bert, encoder, items)
    folder = None if request.cache is None else request.cache / "vectors"
    cache, dense = FileVectors(files.sha, files.dim, folder), common_dense_field(items)
    reader = ItemEncoder(encoder, cache, dense)
    with reporter.phase(f"encode items{which}") as advance:
        rows = reader.rows(items, _counting(advance, len(items)))
        cache.save()
    name = None if dense is None else dense.name
    return Text(
        rows=rows,
        encoder=reader,
        files=files,
        parity=figures,
        probe=probe,
        dense=name,
        backbone=request.backbone,
    )


def load_backbone(folder: Path | None) -> backbone.Backbone:
    """The backbone of a folder, None = the packaged one. Raises `DataError`."""
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


def _counting(advance: Advance, total: int) -> Callable[[int], None]:
    done, began = 0, time.monotonic()

    def progress(more: int) -> None:
        nonlocal done
        done += more
        rate = done / max(time.monotonic() - began, 1e-3)
        advance(done / total, f"{done:,} of {total:,}, {rate:,.0f}/s")

    return progress
