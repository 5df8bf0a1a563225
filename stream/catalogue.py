"""The items a model can rank: rows of vectors that follow the `items` topic.

The items of the bundle are evidence from the start and ranked once their message has come. A
deleted item is not ranked, but what users did with it still counts. Rows are those of `Places`,
which models have in common; a row whose item this model has never met is unknown to it.

A table is made with rows of its own, in the bundle's order, so that its priors need no translation.
That may be in another thread; `align` and `join` then bring it to the rows of the worker.

Changes come in three steps, of which only the slow middle one may run in another thread:

    plan = table.stage(messages)      # which rows change; changes nothing
    rows = encoder.rows(plan.fresh)   # the backbone
    table.apply(plan, rows)           # the matrix
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters import towers
from adapters.types import Catalogue, Meta
from export.bundle_tensors import Items
from stream.hash_index import item_hashes
from stream.item_encoder import DenseField, ItemEncoder, ItemRows, features, title
from stream.messages import Deletion, Item, content_hash
from stream.places import Places

Rows = NDArray[np.int64]

_SPARE = 1_024  # rows that wait for new items, at least


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a batch of messages changes; of several about one item only the last counts."""

    fresh: list[Item]  # new or changed: to be encoded
    same: list[Item]  # known with this very content: alive from now on
    gone: list[str]  # deleted


class CatalogueTable:
    """Which items a model knows, and the matrices aligned with the rows of `places`.

    `state` differs whenever what can be ranked, or how, has changed. Not safe for use from
    several threads at once, apart from what `ItemEncoder` does on its own.
    """

    def __init__(
        self, meta: Meta, items: Items, encoder: ItemEncoder, *, device: str = "cpu"
    ) -> None:
        self.version = 0
        self.places = Places(len(items))
        self._meta = meta.to(device)
        self._encoder = encoder
        self._device = device
        self._known = np.zeros(0, np.bool_)
        self._met = 0  # rows there were at the last look
        self._all_known = True  # of them
        self._content = np.zeros(0, np.uint64)
        self._id_rows = np.zeros(0, np.int64)
        self._tensors = _blank(self._meta, 0, device)
        self._views: tuple[tuple[int, int], Catalogue] | None = None
        self._add_bundle(items)

    # -- looking up ---------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of rows, those of items that this model does not know included."""
        return self.places.size

    @property
    def state(self) -> tuple[int, int]:
        """Equal as long as nothing has changed."""
        return self.version, self.size

    @property
    def ids(self) -> list[str]:
        """Item ids by row."""
        return self.places.ids

    @property
    def titles(self) -> list[str]:
        """What to call the items in front of people, by row."""
        return self.places.titles

    def rows_of(self, hashes: NDArray[np.uint64]) -> Rows:
        """Rows of item hashes, in their shape, -1 = unknown."""
        return self._if_known(self.places.find(hashes))

    def rows_of_low(self, hashes: NDArray[np.uint32]) -> Rows:
        """Rows [m] by the low 32 bits of item hashes; where two items share them, the older."""
        return self._if_known(self.places.find_low(hashes))

    def row(self, item: str) -> int:
        """The row of an item id, -1 = unknown."""
        return int(self.rows_of(item_hashes([item]))[0])

    def catalogue(self) -> Catalogue:
        """The matrices as views of all rows, the same object until the next change."""
        if self._views is None or self._views[0] != self.state:
            self._fit()
            views = {name: tensor[: self.size] for name, tensor in self._tensors.items()}
            self._views = self.state, Catalogue(**views)
        return self._views[1]

    def alive(self) -> int:
        """Number of items that can be ranked."""
        return int(self._tensors["alive"][: self.size].sum())

    def _if_known(self, rows: Rows) -> Rows:
        self._fit()
        return rows if self._all_known else np.where(self._known[rows] & (rows >= 0), rows, -1)

    # -- the rows of the worker ---------------------------------------------------------------

    def align(self, rows: Rows, size: int) -> None:
        """Move row i to `rows`[i] of `size` in all; for any thread, nothing is looked up.

        Raises `ValueError` for another number of rows than the table has.
        """
        if len(rows) != self.size:
            raise ValueError(f"{self.size} rows cannot move to {len(rows)} others")
        places = torch.from_numpy(rows).to(self._device)
        room = size + size // 4 + _SPARE  # rows given out meanwhile must not move all of them again
        tensors = _blank(self._meta, room, self._device)
        for name, tensor in self._tensors.items():
            tensors[name][places] = tensor[: self.size]
        prior = tensors["prior_items"]
        tensors["prior_items"] = torch.where(prior >= 0, places[prior.clamp(min=0)], -1)
        self._tensors = tensors
        self._known = _moved(self._known, rows, room, fill=False)
        self._content = _moved(self._content, rows, room, fill=0)
        self._id_rows = _moved(self._id_rows, rows, room, fill=-1)
        self._views = None

    def join(self, places: Places) -> None:
        """From now on the rows are those of `places`, which `align` has moved to."""
        self.places = places
        self._fit()
        self._all_known = bool(self._known[: self.size].all())
        self.version += 1

    # -- changing -----------------------------------------------------------------------------

    def upsert(self, messages: Sequence[Item | Deletion]) -> None:
        """All three steps at once."""
        plan = self.stage(messages)
        self.apply(plan, self._encoder.rows(plan.fresh) if plan.fresh else None)

    def delete(self, ids: Sequence[str]) -> None:
        """Rank these no more; unknown ids change nothing."""
        self.apply(Plan(fresh=[], same=[], gone=list(ids)), None)

    def stage(self, messages: Sequence[Item | Deletion]) -> Plan:
        """What `messages` would change, looked at in their order."""
        last = {message.item: message for message in messages}
        items = [message for message in last.values() if isinstance(message, Item)]
        rows = self.rows_of(item_hashes(item.item for item in items))
        content = np.array([content_hash(item.fields) for item in items], np.uint64)
        known = (rows >= 0) & (self._content[rows] == content) if len(items) else rows >= 0
        return Plan(
            fresh=[item for item, k in zip(items, known, strict=True) if not k],
            same=[item for item, k in zip(items, known, strict=True) if k],
            gone=[m.item for m in last.values() if isinstance(m, Deletion)],
        )

    def apply(self, plan: Plan, rows: ItemRows | None) -> None:
        """Carry out a plan; `rows` are those of `plan.fresh`, None if there are none."""
        changed = self._revive(plan.same) + self._kill(plan.gone)
        if rows is not None and len(rows):
            self._write(rows)
            changed += len(rows)
        self.version += int(changed > 0)

    def _revive(self, items: Sequence[Item]) -> int:
        rows = self.rows_of(item_hashes(item.item for item in items))
        created = torch.tensor([item.timestamp / 1e3 for item in items], dtype=torch.float64)
        place, created = torch.from_numpy(rows).to(self._device), created.to(self._device)
        alive, old = self._tensors["alive"][place], self._tensors["created"][place]
        for row, item in zip(rows.tolist(), items, strict=True):
            self.titles[row] = title(item)
        self._tensors["alive"][place] = True
        self._tensors["created"][place] = created
        return int((~alive | (old != created)).sum())

    def _kill(self, ids: Sequence[str]) -> int:
        rows = self.rows_of(item_hashes(ids))
        place = torch.from_numpy(rows[rows >= 0]).to(self._device)
        changed = int(self._tensors["alive"][place].sum())
        self._tensors["alive"][place] = False
        return changed

    def _write(self, new: ItemRows) -> None:
        rows = self._rows_for(new.ids, new.hashes)
        self._content[rows] = new.content
        self._write_vectors(rows, new.text, new.attributes, new.dense)
        place = torch.from_numpy(rows).to(self._device)
        self._tensors["alive"][place] = True
        self._tensors["created"][place] = torch.from_numpy(new.created).to(self._device)
        for row, text in zip(rows.tolist(), new.titles, strict=True):
            self.titles[row] = text

    @torch.inference_mode()
    def _write_vectors(
        self,
        rows: Rows,
        text: NDArray[np.float16],
        attributes: NDArray[np.int64],
        dense: NDArray[np.float16] | None,
    ) -> None:
        read = features(text, attributes, dense, self._id_rows[rows]).to(self._device)
        place = torch.from_numpy(rows).to(self._device)
        self._tensors["vectors"][place] = towers.item_vectors(self._meta, read)
        self._tensors["text"][place] = towers.reduce_text(self._meta, read.text)

    def _rows_for(self, ids: Sequence[str], hashes: NDArray[np.uint64]) -> Rows:
        """The rows of items that this model knows from now on."""
        self._fit()
        rows = self.places.take(ids, hashes)
        self._resize()
        self._known[rows] = True
        self._all_known = self._all_known or bool(self._known[: self.size].all())
        return rows

    def _fit(self) -> None:
        """Room for rows that were given out meanwhile, to items that this model does not know."""
        if self.size > self._met:
            self._all_known = False
            self._resize()

    def _resize(self) -> None:
        """Room for all rows; capacity doubles, rows keep what they hold."""
        self._met = self.size
        capacity = len(self._content)
        if self.size <= capacity and capacity:
            return
        more = max(2 * capacity, self.size, _SPARE) - capacity
        self._known = np.concatenate([self._known, np.zeros(more, np.bool_)])
        self._content = np.concatenate([self._content, np.zeros(more, np.uint64)])
        self._id_rows = np.concatenate([self._id_rows, np.full(more, -1, np.int64)])
        blank = _blank(self._meta, more, self._device)
        self._tensors = {k: torch.cat([t, blank[k]]) for k, t in self._tensors.items()}

    def _add_bundle(self, items: Items) -> None:
        rows = self._rows_for(items.ids, item_hashes(items.ids))
        self._content[rows] = items.content
        self._id_rows[rows] = items.id_rows
        self._write_vectors(rows, items.text, items.attributes, items.dense)
        prior = {
            "prior_items": torch.from_numpy(items.prior.neighbour_items),
            "prior_weights": torch.from_numpy(items.prior.neighbour_weights),
        }
        if items.prior.returns is not None:
            prior["returns"] = torch.from_numpy(items.prior.returns)
        for name, values in prior.items():
            self._tensors[name][: len(rows)] = values.to(self._device)


def _moved(column: NDArray[Any], rows: Rows, size: int, *, fill: float) -> NDArray[Any]:
    """The first entries of a column at `rows` of `size`, `fill` elsewhere."""
    out = np.full(size, fill, column.dtype)
    out[rows] = column[: len(rows)]
    return out


def dense_field(items: Items) -> DenseField | None:
    """The vector field that a bundle's model reads."""
    if items.dense is None or items.dense_field is None:
        return None
    return DenseField(name=items.dense_field, size=items.dense.shape[1])


def _blank(meta: Meta, n: int, device: str) -> dict[str, Tensor]:
    """The columns of `Catalogue` for n rows without an item."""
    config = meta.config
    width = config.neighbours
    return {
        "vectors": torch.zeros(n, config.dim, device=device),
        "text": torch.zeros(n, config.text_dim, device=device),
        "created": torch.full((n,), torch.nan, dtype=torch.float64, device=device),
        "alive": torch.zeros(n, dtype=torch.bool, device=device),
        "prior_items": torch.full((n, width), -1, dtype=torch.int64, device=device),
        "prior_weights": torch.zeros(n, width, device=device),
        "returns": torch.zeros(n, 2, device=device),
    }
