"""A training that goes on from an earlier model: what both know is taken over, the rest is fresh.

Items, actions and attributes are matched one by one, because their tables have other rows in every
training. Tensors that are made of the catalogue and not trained stay those of the new one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from adapters import profiles
from adapters.types import Meta

BY_ACTION = ("adapter.action_scale", "adapter.action_input")
"""Tensors with a row for every action, and one more for those that are not known."""


class InheritanceError(ValueError):
    """The earlier model has other dimensions."""


@dataclass(frozen=True, slots=True)
class Ancestor:
    """The earlier model, and its items as far as the new catalogue of N items has them."""

    meta: Meta
    rows: np.ndarray  # [N] row of each item among its B items, -1 = it does not know the item
    id_rows: np.ndarray  # [B] rows of its id embedding, -1 = none
    attributes: np.ndarray  # [B, A] hash buckets of its items, -1 = none


def inherit(meta: Meta, old: Ancestor, id_rows: Tensor, fresh: Collection[str]) -> Meta:
    """An untrained model with the earlier one's weights in place of its own.

    `id_rows` [N] are the new rows of the id embedding, `fresh` are tensors to be left alone.
    Raises `InheritanceError` where an adapter or a projection has other dimensions.
    """
    tensors = dict(meta.tensors)
    for name in meta.tensors.keys() - {*fresh, *BY_ACTION, "item.id", "item.attribute"}:
        if name in old.meta.tensors or name.startswith("adapter."):
            tensors[name] = _same(name, meta, old.meta)
    for name in BY_ACTION:
        tensors[name] = _actions(name, meta, old.meta)
    tensors["item.attribute"] = _attributes(meta["item.attribute"], old)
    tensors["item.id"] = _ids(meta["item.id"], old, id_rows.numpy())
    return replace(meta, tensors=tensors)


def _same(name: str, meta: Meta, old: Meta) -> Tensor:
    _require(name, meta[name].shape, old.tensors.get(name))
    return old[name].clone()


def _require(name: str, shape: torch.Size, found: Tensor | None) -> None:
    if found is None or found.shape != shape:
        was = "missing" if found is None else f"{list(found.shape)}"
        raise InheritanceError(f"{name} is {list(shape)}, of the parent it is {was}")


def _actions(name: str, meta: Meta, old: Meta) -> Tensor:
    """Rows of actions that both know, and the last one, which stands for all others."""
    table, known = meta[name].clone(), {a: i for i, a in enumerate(old.config.actions)}
    _require(name, table[:1].shape, old.tensors[name][:1] if name in old.tensors else None)
    for place, action in enumerate(meta.config.actions):
        if action in known:
            table[place] = old[name][known[action]]
    table[-1] = old[name][-1]
    return table


def _attributes(table: Tensor, old: Ancestor) -> Tensor:
    """Rows of attributes that the earlier model met, of items or of profiles."""
    met = [old.attributes[old.attributes >= 0]]
    if profiles.KNOWN in old.meta.tensors:
        met.append(old.meta[profiles.KNOWN].numpy())
    rows = torch.from_numpy(np.unique(np.concatenate(met)))
    _require("item.attribute", table.shape, old.meta["item.attribute"])
    return table.index_copy(0, rows, old.meta["item.attribute"][rows])


def _ids(table: Tensor, old: Ancestor, id_rows: np.ndarray) -> Tensor:
    """The earlier rows of items known to both; the others are turned to where those lie.

    A fresh table has axes of its own. The rotation that brings the common rows nearest to the
    earlier ones (Schoenemann, "A Generalized Solution of the Orthogonal Procrustes Problem", 1966)
    brings the new ones among them.
    """
    before = np.where(old.rows >= 0, old.id_rows[np.maximum(old.rows, 0)], -1)
    both = np.flatnonzero((id_rows >= 0) & (before >= 0))
    if not len(both):
        return table
    place, known = torch.from_numpy(id_rows[both]), old.meta["item.id"][before[both]]
    _require("item.id", table[:1].shape, known[:1])
    left, _, right = torch.linalg.svd(table[place].double().T @ known.double())
    turned: Tensor = table @ (left @ right).to(table.dtype)
    return turned.index_copy(0, place, known)
