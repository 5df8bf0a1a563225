"""Item hashes to catalogue rows, thousands at a time: open addressing on numpy arrays."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xxhash
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Hashes = NDArray[np.unsignedinteger]

_ROOM = 4  # slots for each key: nine in ten are found where they are looked for first


def item_hashes(ids: Iterable[str]) -> NDArray[np.uint64]:
    """The 64-bit hashes that stand for items in records, the same on every machine."""
    return np.array([xxhash.xxh3_64_intdigest(one.encode()) for one in ids], dtype=np.uint64)


class HashIndex:
    """A map from well-mixed unsigned integers to rows. Keys are never removed."""

    def __init__(self, dtype: type[np.unsignedinteger] = np.uint64, room: int = 256) -> None:
        """`room` is the number of keys to expect; more make it grow by doubling."""
        self._dtype = dtype
        self._count = 0
        self._clear(1 << max(room * _ROOM - 1, 1).bit_length())

    def __len__(self) -> int:
        return self._count

    def find(self, keys: Hashes) -> Rows:
        """The rows of `keys`, in their shape, -1 where there is none."""
        return self._find(keys.ravel()).reshape(keys.shape)

    def _find(self, keys: Hashes) -> Rows:
        slots = (keys & self._mask).astype(np.int64)
        rows = self._rows[slots].astype(np.int64)
        wrong = np.flatnonzero((self._keys[slots] != keys) & (rows >= 0))
        while len(wrong):
            slots[wrong] = (slots[wrong] + 1) & int(self._mask)
            rows[wrong] = self._rows[slots[wrong]]
            wrong = wrong[(self._keys[slots[wrong]] != keys[wrong]) & (rows[wrong] >= 0)]
        return rows

    def add(self, keys: Hashes, rows: Rows) -> None:
        """Add keys [m] with their rows [m] >= 0; a key that is there already stays as it is."""
        keys, first = np.unique(keys.astype(self._dtype, copy=False), return_index=True)
        new = self.find(keys) < 0
        keys, rows = keys[new], rows[first[new]]
        if (self._count + len(keys)) * _ROOM > len(self._keys):
            self._grow(self._count + len(keys))
        self._place(keys, rows)
        self._count += len(keys)

    def _clear(self, slots: int) -> None:
        self._keys = np.zeros(slots, self._dtype)
        self._rows = np.full(slots, -1, np.int32)
        self._mask = self._dtype(slots - 1)

    def _grow(self, count: int) -> None:
        used = self._rows >= 0
        keys, rows = self._keys[used], self._rows[used].astype(np.int64)
        self._clear(1 << (count * _ROOM * 2 - 1).bit_length())
        self._place(keys, rows)

    def _place(self, keys: Hashes, rows: Rows) -> None:
        slots = (keys & self._mask).astype(np.int64)
        while len(keys):
            free = np.flatnonzero(self._rows[slots] < 0)
            _, first = np.unique(slots[free], return_index=True)  # one key a slot
            won = free[first]
            self._keys[slots[won]], self._rows[slots[won]] = keys[won], rows[won]
            lost = np.ones(len(keys), np.bool_)
            lost[won] = False
            keys, rows = keys[lost], rows[lost]
            slots = (slots[lost] + 1) & int(self._mask)
