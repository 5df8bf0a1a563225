"""The tensor files of a bundle: safetensors, no pickle, because a bundle may come from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors import numpy as st_numpy
from safetensors import torch as st_torch

from adapters import rerank
from adapters.experts import Prior
from adapters.types import Meta, ModelConfig
from export.errors import BundleRefused
from export.parity import Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """The B items that training knew, aligned by row."""

    ids: tuple[str, ...]
    content: NDArray[np.uint64]  # [B] hash of the content that the other columns stand for
    text: NDArray[np.float16]  # [B, D] the backbone's vectors, rounded for good
    attributes: NDArray[np.int64]  # [B, A] hash buckets, -1 = none
    id_rows: NDArray[np.int64]  # [B] row of the id embedding, -1 = too few events
    prior: Prior  # rows of the prior are rows of these items
    dense: NDArray[np.float16] | None = None  # [B, V] the vector field, zeros = none
    dense_field: str | None = None

    def __len__(self) -> int:
        return len(self.ids)


def write_meta(meta: Meta, path: Path) -> None:
    """Tensors of the outer loop; their configuration goes into the manifest."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in meta.tensors.items()}
    st_torch.save_file(tensors, path)


def read_meta(path: Path, config: dict[str, Any]) -> Meta:
    """The inverse of `write_meta`. Raises `BundleRefused`."""
    try:
        model = ModelConfig.from_dict(config)
        return Meta(model, rerank.completed(st_torch.load_file(path), model))
    except TypeError as error:
        raise BundleRefused(f"{path.parent}: model configuration: {error}") from None
    except (SafetensorError, OSError) as error:
        raise BundleRefused(f"{path} cannot be read: {error}") from None


def write_items(items: Items, path: Path) -> None:
    """Columns of the items; ids as one blob of UTF-8 with offsets."""
    columns: dict[str, NDArray[Any]] = {
        **_pack("ids", items.ids),
        "content": items.content,
        "text": items.text,
        "attributes": items.attributes.astype(np.int32),
        "id_rows": items.id_rows.astype(np.int32),
        "prior.time": np.array([items.prior.time]),
        "prior.counts": items.prior.counts,
        "prior.neighbour_items": items.prior.neighbour_items.astype(np.int32),
        "prior.neighbour_weights": items.prior.neighbour_weights,
    }
    if items.prior.returns is not None:
        columns["prior.returns"] = items.prior.returns
    if items.dense is not None:
        columns["dense"] = items.dense
    labels = {"dense_field": items.dense_field} if items.dense_field else None
    plain = {name: np.ascontiguousarray(column) for name, column in columns.items()}
    st_numpy.save_file(plain, path, metadata=labels)


def read_items(path: Path) -> Items:
    """The inverse of `write_items`. Raises `BundleRefused`."""
    columns, labels = _read(path)
    try:
        items = Items(
            ids=_unpack(columns, "ids"),
            content=columns["content"],
            text=columns["text"],
            attributes=columns["attributes"].astype(np.int64),
            id_rows=columns["id_rows"].astype(np.int64),
            prior=_prior(columns),
            dense=columns.get("dense"),
            dense_field=labels.get("dense_field"),
        )
    except (KeyError, IndexError, ValueError) as error:
        raise BundleRefused(f"{path} lacks {error}") from None
    lengths = {len(c) for c in (items.content, items.text, items.attributes, items.id_rows)}
    prior = items.prior
    lengths |= {
        len(c) for c in (prior.counts, prior.neighbour_items, prior.returns) if c is not None
    }
    if lengths != {len(items)}:
        raise BundleRefused(f"{path}: columns of different lengths")
    return items


def write_probe(probe: Probe, path: Path) -> None:
    """Texts and vectors of the parity check."""
    columns = {**_pack("texts", probe.texts), "vectors": probe.vectors}
    if probe.own is not None:
        columns["own"] = probe.own
    st_numpy.save_file({name: np.ascontiguousarray(c) for name, c in columns.items()}, path)


def read_probe(path: Path) -> Probe:
    """The inverse of `write_probe`. Raises `BundleRefused`."""
    columns, _ = _read(path)
    try:
        texts, own = _unpack(columns, "texts"), columns.get("own")
        return Probe(texts=texts, vectors=columns["vectors"], own=own)
    except (KeyError, IndexError, ValueError) as error:
        raise BundleRefused(f"{path} lacks {error}") from None


def _prior(columns: dict[str, NDArray[Any]]) -> Prior:
    return Prior(
        float(columns["prior.time"][0]),
        columns["prior.counts"],
        columns["prior.neighbour_items"].astype(np.int64),
        columns["prior.neighbour_weights"],
        columns.get("prior.returns"),
    )


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    try:
        with safe_open(path, framework="np") as file:
            names = file.keys()  # not a dict: it cannot be iterated
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BundleRefused(f"{path} cannot be read: {error}") from None


def _pack(name: str, texts: Sequence[str]) -> dict[str, NDArray[Any]]:
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return {name: np.frombuffer(b"".join(encoded), np.uint8), f"{name}.offsets": ends}


def _unpack(columns: dict[str, NDArray[Any]], name: str) -> tuple[str, ...]:
    blob, ends = columns[name].tobytes(), columns[f"{name}.offsets"].tolist()
    return tuple(blob[a:b].decode() for a, b in pairwise(ends))
