"""The item tower: a vector an item from its text, its attributes and, once it is known, its id.

    vector = P text + mean of attribute embeddings + id embedding (+ Q dense)

A new item has no id embedding (row -1) and works from text and attributes alone; training drops
ids at random so that it can. All of it is a pure function of `Meta` and `ItemFeatures`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapters.types import Meta, ModelConfig

ATTRIBUTE_BUCKETS = 4_096
"""Hash buckets of attributes: two values rarely meet, and none is ever unknown."""

ATTRIBUTES = 16
"""Attributes of an item, or of a profile, that are kept."""

_SPREAD = 0.1  # root mean square of each part of an untrained item vector


@dataclass(frozen=True, slots=True)
class ItemFeatures:
    """What is known of N items, aligned by row."""

    text: Tensor  # [N, D] float32 the backbone's vectors
    attributes: Tensor  # [N, A] int64 hash buckets, -1 = none
    id_rows: Tensor  # [N] int64 row of the id embedding, -1 = new item
    dense: Tensor | None = None  # [N, V] float32 such as an image embedding; zeros = none
    created: Tensor | None = None  # [N] float64 unix seconds when the item appeared, nan = unknown

    def __len__(self) -> int:
        return len(self.text)

    def select(self, rows: Tensor) -> ItemFeatures:
        """The features of some rows [m], in their order."""
        return self._each(lambda column: column[rows])

    def without_ids(self, dropped: Tensor | None = None) -> ItemFeatures:
        """As if the items marked in `dropped` [N] bool, or all of them, were new."""
        rows = torch.full_like(self.id_rows, -1)
        return replace(
            self, id_rows=rows if dropped is None else self.id_rows.masked_fill(dropped, -1)
        )

    def to(self, device: torch.device | str) -> ItemFeatures:
        """The same on another device."""
        return self._each(lambda column: column.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> ItemFeatures:
        return ItemFeatures(
            change(self.text),
            change(self.attributes),
            change(self.id_rows),
            None if self.dense is None else change(self.dense),
            None if self.created is None else change(self.created),
        )


def attribute_buckets(
    items: Sequence[Iterable[tuple[str, str]]],
    width: int = ATTRIBUTES,
    buckets: int = ATTRIBUTE_BUCKETS,
) -> Tensor:
    """Hash (field, value) pairs of items to buckets [N, width] int64, padded with -1.

    The hash is the same on every machine and in every run. Pairs beyond `width` are left out.
    """
    table = np.full((len(items), width), -1, dtype=np.int64)
    known: dict[tuple[str, str], int] = {}
    for row, pairs in enumerate(items):
        for place, pair in zip(range(width), pairs, strict=False):
            if pair not in known:
                known[pair] = _bucket(pair, buckets)
            table[row, place] = known[pair]
    return torch.from_numpy(table)


def known_items(items: np.ndarray, size: int, least: int = 5) -> Tensor:
    """Rows of the id embedding [size] int64 for items with at least `least` events, else -1.

    `items` holds the rows of the training events; -1 is left out.
    """
    counts = np.bincount(items[items >= 0], minlength=size)[:size]
    known = counts >= least
    return torch.from_numpy(np.where(known, np.cumsum(known) - 1, -1))


def new_tensors(
    config: ModelConfig,
    features: ItemFeatures,
    generator: torch.Generator,
    id_start: Tensor | None = None,
) -> dict[str, Tensor]:
    """Tensors of an untrained tower; `id_start` [R, d] from `svd_start` replaces random ids."""
    d = config.dim
    ids = int(features.id_rows.max()) + 1 if len(features) else 0

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * std

    tensors = {
        # the backbone's vectors have unit length, so a column of P has the spread of the sum
        "item.text": normal(d, features.text.shape[1], std=_SPREAD),
        "item.bias": torch.zeros(d),
        "item.attribute": normal(ATTRIBUTE_BUCKETS, d, std=0.5 * _SPREAD),
        "item.id": normal(ids, d, std=_SPREAD) if id_start is None else id_start.clone(),
    }
    if features.dense is not None:
        tensors["item.dense"] = normal(d, features.dense.shape[1], std=_SPREAD)
    return tensors


def item_vectors(meta: Meta, features: ItemFeatures) -> Tensor:
    """Item vectors [N, d] float32."""
    vectors = features.text @ meta["item.text"].T + meta["item.bias"]
    vectors = vectors + _mean_embedding(meta["item.attribute"], features.attributes)
    if len(meta["item.id"]):
        vectors = vectors + _embedding(meta["item.id"], features.id_rows)
    if features.dense is not None and "item.dense" in meta.tensors:
        vectors = vectors + functional.normalize(features.dense, dim=-1) @ meta["item.dense"].T
    return vectors


def fit_text_reduction(text: Tensor, size: int) -> dict[str, Tensor]:
    """Principal components of the training catalogue's text [N, D]: mean [D], components [T, D].

    Directions the texts do not have are zero, so that a small catalogue is no error.
    """
    mean = text.mean(0)
    centred = (text - mean).double()
    order = torch.linalg.eigh(centred.T @ centred)
    top = order.eigenvectors.flip(1).T[:size].float()  # [<= T, D] largest variance first
    real = (order.eigenvalues.flip(0)[:size] > 1e-9).float()
    sign = torch.where(top.gather(1, top.abs().argmax(1, keepdim=True)) < 0, -1.0, 1.0)
    components = functional.pad(top * sign * real[:, None], (0, 0, 0, size - len(top)))
    return {"text.mean": mean, "text.components": components}


def reduce_text(meta: Meta, text: Tensor) -> Tensor:
    """Text vectors [N, D] reduced to [N, T], unit length."""
    return functional.normalize((text - meta["text.mean"]) @ meta["text.components"].T, dim=-1)


def svd_start(
    users: np.ndarray, items: np.ndarray, id_rows: Tensor, dim: int, generator: torch.Generator
) -> Tensor:
    """Id embeddings [R, d] from a truncated SVD of who had to do with what.

    `users` and `items` are the columns of the training events. The matrix is scaled by the roots
    of its row and column sums, so that busy users and popular items do not take all directions.
    """
    size = int(id_rows.max()) + 1 if len(id_rows) else 0
    rows = np.where(items >= 0, id_rows.numpy()[items], -1)
    users, rows = users[rows >= 0], rows[rows >= 0]
    if not len(rows):
        return torch.zeros(size, dim)
    matrix = _scaled_matrix(users, rows, size)
    factors = _right_factors(matrix, min(dim, *matrix.shape), generator)
    factors = factors * (_SPREAD / factors.square().mean().sqrt().clamp(min=1e-12))
    return functional.pad(factors, (0, dim - factors.shape[1]))


def _scaled_matrix(users: np.ndarray, rows: np.ndarray, size: int) -> Tensor:
    """Sparse [U, R] of 1 / sqrt(events of the user x events of the item)."""
    _, compact = np.unique(users, return_inverse=True)
    pairs = np.unique(compact * size + rows)
    user, row = pairs // size, pairs % size
    weight = (np.bincount(user)[user] * np.bincount(row)[row]) ** -0.5
    index = torch.from_numpy(np.stack([user, row]))
    shape = (int(compact.max()) + 1, size)
    values = torch.from_numpy(weight).float()
    return torch.sparse_coo_tensor(index, values, shape, check_invariants=True).coalesce()


def _right_factors(matrix: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """Right singular vectors times the root of their values [R, rank], by subspace iteration."""
    width = min(rank + 16, *matrix.shape)
    basis = torch.randn(matrix.shape[1], width, generator=generator)
    for _ in range(4):
        basis = torch.linalg.qr(matrix.T @ (matrix @ basis)).Q
    _, values, right = torch.linalg.svd(matrix @ basis, full_matrices=False)
    factors: Tensor = (basis @ right.T * values.sqrt())[:, :rank]
    return factors


def _embedding(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table [..., d]; row -1 gives zeros."""
    return table[rows.clamp(min=0)] * (rows >= 0)[..., None].to(table.dtype)


def _mean_embedding(table: Tensor, bags: Tensor) -> Tensor:
    """Mean over the buckets of each bag [N, A], zeros for an empty one: [N, d]."""
    if not bags.shape[1]:
        return table.new_zeros(len(bags), table.shape[1])
    real = (bags >= 0).to(table.dtype)
    weight = real / real.sum(1, keepdim=True).clamp(min=1)
    return functional.embedding_bag(bags.clamp(min=0), table, mode="sum", per_sample_weights=weight)


def _bucket(pair: tuple[str, str], buckets: int) -> int:
    digest = hashlib.blake2b("\x1f".join(pair).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % buckets
