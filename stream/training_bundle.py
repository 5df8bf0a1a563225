"""What was trained as a worker sees it: the catalogue, and the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from adapters.episodes import Log
from adapters.experts import Prior, prior_from_log
from adapters.meta_train import Trained
from adapters.signals import bucket_start
from adapters.types import Catalogue, Meta, ModelConfig
from export.bundle import FORMAT_VERSION, Bundle, EncoderEntry, Manifest, Window
from export.bundle_tensors import Items
from stream import parents
from stream.catalogue import CatalogueTable
from stream.messages import Item
from stream.parents import Parent
from stream.training_text import Text

if TYPE_CHECKING:
    from stream.training import Request
    from stream.training_data import Data


def catalogue_at(
    meta: Meta, trained: Trained, text: Text, items: Sequence[Item], log: Log, until: float
) -> tuple[Prior, Catalogue]:
    """What is known of all items from the events before `until` (unix seconds)."""
    prior = _prior(meta.config, log, len(items), until)
    return prior, _catalogue(meta, trained, text, items, prior)


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


def bundle(
    request: Request,
    meta: Meta,
    trained: Trained,
    text: Text,
    data: Data,
    metrics: dict[str, Any],
    parent: Parent | None = None,
) -> Bundle:
    """The bundle without a version, which it gets when it is saved.

    With a parent its counters go on from the parent's, so that workers count nothing twice.
    """
    log, bucket = data.log, meta.config.bucket
    end = float(bucket_start(log.times[-1:], bucket)[0]) + bucket
    prior = _prior(meta.config, log, len(text.rows), end)
    if parent is not None:
        prior = parents.carried(parent, text.rows.ids, prior)
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
        counted_from=prior.time,
        parent=None if parent is None else parent.version,
        actions={name: rule.model_dump() for name, rule in data.messages.actions.items()},
        encoder=EncoderEntry(
            sha=text.files.sha, dim=text.files.dim, max_length=text.files.max_length
        ),
        parity=text.parity,
        metrics=metrics,
    )
    return Bundle(
        manifest=manifest,
        meta=meta,
        items=_items(trained, text, prior),
        encoder=text.files,
        probe=text.probe,
    )
