"""Item messages to the features the item tower reads, with a cache of the backbone's vectors.

The backbone is the one slow part, milliseconds an item; everything here may run in a thread of
its own. Vectors are rounded to fp16 at once, so that a fresh one and a stored one are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from adapters import towers
from adapters.towers import ItemFeatures
from stream.hash_index import item_hashes
from stream.messages import Field, Item, attributes, content_hash, item_text, vectors

Progress = Callable[[int], None]


class TextEncoder(Protocol):
    """What is needed of `export.encoder.OnnxEncoder`."""

    def encode(
        self, texts: Sequence[str], *, batch_size: int = 32, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Vectors [N, D] of `texts`."""


class VectorCache(Protocol):
    """Vectors by the hash of what they stand for; those of one encoder only."""

    def get_many(self, hashes: NDArray[np.uint64]) -> list[NDArray[np.float16] | None]:
        """The vectors [D] that are stored."""

    def put_many(self, hashes: NDArray[np.uint64], vectors: NDArray[np.float16]) -> None:
        """Store vectors [m, D]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRows:
    """m items as columns, everything the tower and the catalogue need of them."""

    ids: list[str]
    hashes: NDArray[np.uint64]  # [m] of the ids
    content: NDArray[np.uint64]  # [m] of what the messages say
    text: NDArray[np.float16]  # [m, D] the backbone's vectors
    attributes: NDArray[np.int64]  # [m, A] hash buckets, -1 = none
    dense: NDArray[np.float16] | None  # [m, V] the vector field; zeros = none
    created: NDArray[np.float64]  # [m] unix seconds
    titles: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def features(self, id_rows: NDArray[np.int64]) -> ItemFeatures:
        """What the item tower reads, with `id_rows` [m] of the id embedding, -1 = new item."""
        read = features(self.text, self.attributes, self.dense, id_rows)
        return replace(read, created=torch.from_numpy(self.created))


def features(
    text: NDArray[np.float16],
    attributes: NDArray[np.int64],
    dense: NDArray[np.float16] | None,
    id_rows: NDArray[np.int64],
) -> ItemFeatures:
    """Columns [m, …] as tensors, in the one way that training and serving share."""
    return ItemFeatures(
        torch.from_numpy(text.astype(np.float32)),
        torch.from_numpy(attributes),
        torch.from_numpy(id_rows),
        None if dense is None else torch.from_numpy(dense.astype(np.float32)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseField:
    """The vector field of items that the model reads, such as `image_embedding`."""

    name: str
    size: int


class ItemEncoder:
    """Turns messages into `ItemRows`; texts it has seen before cost a look-up."""

    def __init__(
        self,
        encoder: TextEncoder,
        cache: VectorCache | None = None,
        dense: DenseField | None = None,
    ) -> None:
        self._encoder = encoder
        self._cache = cache
        self._dense = dense

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The backbone's vectors [N, D] of texts that are no items."""
        return self._encoder.encode(texts)

    def rows(self, items: Sequence[Item], progress: Progress | None = None) -> ItemRows:
        """Columns of `items`, in their order; `progress` is told how many more are encoded."""
        content = np.array([content_hash(item.fields) for item in items], np.uint64)
        return ItemRows(
            ids=[item.item for item in items],
            hashes=item_hashes(item.item for item in items),
            content=content,
            text=self._text(items, content, progress),
            attributes=attribute_buckets([item.fields for item in items]),
            dense=None if self._dense is None else _dense(items, self._dense),
            created=np.array([item.timestamp for item in items], np.float64) / 1e3,
            titles=[title(item) for item in items],
        )

    def _text(
        self, items: Sequence[Item], content: NDArray[np.uint64], progress: Progress | None
    ) -> NDArray[np.float16]:
        stored = self._cache.get_many(content) if self._cache is not None else [None] * len(items)
        missing = [i for i, vector in enumerate(stored) if vector is None]
        if progress is not None and len(missing) < len(items):
            progress(len(items) - len(missing))
        texts = [item_text(items[i].fields) for i in missing]
        fresh = self._encoder.encode(texts, progress=progress).astype(np.float16)
        if self._cache is not None and missing:
            self._cache.put_many(content[missing], fresh)
        result = np.empty((len(items), fresh.shape[1]), np.float16)
        result[missing] = fresh
        for place, vector in enumerate(stored):
            if vector is not None:
                result[place] = vector
        return result


def title(item: Item) -> str:
    """What to call an item in front of people: its title, or else its id."""
    titles = [f.value for f in item.fields if f.name == "title" and isinstance(f.value, str)]
    return titles[-1] if titles and titles[-1].strip() else item.item


def common_dense_field(items: Sequence[Item]) -> DenseField | None:
    """The vector field that most items have, if at least half of them do."""
    counts: dict[tuple[str, int], int] = {}
    for item in items:
        for name, vector in vectors(item.fields).items():
            counts[name, len(vector)] = counts.get((name, len(vector)), 0) + 1
    best = max(counts, key=lambda key: (counts[key], key), default=None)
    if best is None or counts[best] * 2 < len(items) or best[1] < 2:
        return None
    return DenseField(name=best[0], size=best[1])


def attribute_buckets(each: Sequence[Sequence[Field]]) -> NDArray[np.int64]:
    """Hash buckets [m, A] of the attributes among the fields of m items or profiles, -1 = none."""
    pairs = [[_pair(text) for text in attributes(fields)] for fields in each]
    return np.asarray(towers.attribute_buckets(pairs).numpy())


def _pair(text: str) -> tuple[str, str]:
    field, _, value = text.partition("=")
    return field, value


def _dense(items: Sequence[Item], field: DenseField) -> NDArray[np.float16]:
    result = np.zeros((len(items), field.size), np.float16)
    for place, item in enumerate(items):
        vector = vectors(item.fields).get(field.name)
        if vector is not None and len(vector) == field.size:
            unit = np.asarray(vector) / max(float(np.linalg.norm(vector)), 1e-12)
            result[place] = unit
    return result
