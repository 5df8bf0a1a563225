"""The model that a training goes on from: where it is found, what is taken over from it.

Two things come from a parent. Its weights are where the outer loop begins, unless it is to begin
at the base. Its counters go on as they are, whatever the outer loop began with: workers count on
from `prior.time`, and a swap changes neither that moment nor what was counted since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adapters.experts import Prior
from adapters.inheritance import Ancestor
from adapters.types import ModelConfig
from export import parity
from export.bundle import Bundle
from stream import bundles, inspection
from stream.config import Settings
from stream.errors import BundleError, DataError
from stream.run_folder import RunFolder
from stream.terms import Terms

Encode = Callable[[Sequence[str]], NDArray[np.float32]]
"""Vectors [N, D] of texts."""

SAME_BACKBONE = 0.99
"""Least cosine between two exports of one backbone; another one gives other vectors altogether."""

CHAMPION, NONE = "champion", "none"
"""Names of a parent that are no addresses."""

Start = Literal["parent", "base"]
"""Where the outer loop begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """A bundle and the address that it was read from."""

    bundle: Bundle
    address: str

    @property
    def version(self) -> str:
        """The version in its manifest."""
        return self.bundle.manifest.version

    def to_dict(self) -> dict[str, str]:
        """What `run.json` says of it."""
        return {"version": self.version, "bundle": self.address}


def find(name: str | None, settings: Settings, folder: RunFolder | None) -> Parent | None:
    """The parent of this name: an address, `champion`, or `none`.

    None stands for the champion where `models` names one. A run that goes on has the parent with
    which it began. Raises `BundleError`, also for a champion that there is not.
    """
    if folder is not None and folder.begun and name in (None, CHAMPION):
        kept = folder.before("parent")
        return None if kept is None else _load(kept["bundle"])
    if name == NONE:
        return None
    if name not in (None, CHAMPION):
        return _load(str(name))
    release = inspection.standing(settings).champion
    if release is None and name == CHAMPION:
        raise BundleError(
            f"{settings.kafka.topic('models')} names no champion",
            remedy="Promote one with `innerloop promote`, name a bundle, or say --parent none.",
        )
    return None if release is None else _load(release.bundle)


def require_fit(parent: Parent, model: ModelConfig) -> None:
    """Raises `BundleError` where a model of these settings could not go on after the parent."""
    since = parent.bundle.items.prior.time
    try:
        Terms.of_bundle(parent.bundle).require(Terms.of(model, since))
    except BundleError as refused:
        raise BundleError(
            f"after {parent.address}: {refused.detail}", remedy=refused.remedy
        ) from None


def refuse_leakage(parent: Parent, fit: float) -> None:
    """Raises `DataError` where the parent's encoder met events of the time from `fit` on.

    The expert weights and the figures would then be of events that it has learned from.
    """
    manifest = parent.bundle.manifest
    cut = manifest.cut("fit")
    learned = manifest.window.last if cut is None else cut
    if learned > fit:
        raise DataError(
            f"{parent.address} has learned from events up to {learned:.0f}, which is behind the "
            f"part of this window that it would train on, up to {fit:.0f}",
            remedy="Bring later events, or begin at the base with --start base.",
        )


def require_texts(parent: Parent, encode: Encode) -> None:
    """Raises `BundleError` where the parent's weights are of another backbone than `encode`."""
    probe = parent.bundle.probe
    with bundles.refusals():
        figures = parity.compare(probe.vectors, encode(probe.texts))
    nearness = figures.min_cosine or 0.0
    if nearness < SAME_BACKBONE:
        raise BundleError(
            f"{parent.address} reads texts by another backbone (cosine {nearness:.2f})",
            remedy="Name its folder as --backbone, or leave --experts-only out.",
        )


def met_held_out(parent: Parent) -> bool:
    """Whether the parent has learned from users who are held out now: its own were others."""
    cuts = parent.bundle.manifest.metrics.get("cuts", {})
    return bool(cuts.get("held_out_by") != "hash")


def ancestor(parent: Parent, ids: Sequence[str]) -> Ancestor:
    """The parent as the outer loop takes it, over the items of the new catalogue."""
    old = parent.bundle.items
    return Ancestor(
        meta=parent.bundle.meta,
        rows=_rows(old.ids, ids),
        id_rows=old.id_rows,
        attributes=old.attributes,
    )


def carried(parent: Parent, ids: Sequence[str], own: Prior) -> Prior:
    """The training's own neighbours over the parent's counters, zero for items it did not know."""
    old = parent.bundle.items
    rows = _rows(old.ids, ids)
    counts = np.where(rows[:, None] >= 0, old.prior.counts[np.maximum(rows, 0)], 0)
    return replace(own, time=old.prior.time, counts=counts.astype(np.float32))


def _rows(known: Sequence[str], ids: Sequence[str]) -> Any:
    place = {name: row for row, name in enumerate(known)}
    return np.array([place.get(name, -1) for name in ids], np.int64)


def _load(address: str) -> Parent:
    return Parent(bundle=bundles.load(address), address=address)
