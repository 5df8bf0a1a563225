"""Rows of items: they belong to the worker, not to a model.

Signals, queues of pairs and the matrices of every model that is served are aligned by them, so
that a change of the model moves nothing that users did. Rows are given out once and never given
up; they cost some 100 bytes an item that was ever met by this process.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream.hash_index import HashIndex
from stream.user_state import low_half

Rows = NDArray[np.int64]


class Places:
    """Ids, titles and hashes of items by row. For one thread at a time."""

    def __init__(self, room: int = 256) -> None:
        """`room` is the number of items to expect."""
        self.ids: list[str] = []
        self.titles: list[str] = []
        self._index = HashIndex(np.uint64, room)
        self._low = HashIndex(np.uint32, room)
        self._hashes = np.zeros(0, np.uint64)

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.ids)

    def find(self, hashes: NDArray[np.uint64]) -> Rows:
        """Rows of item hashes, in their shape, -1 = never met."""
        return self._index.find(hashes)

    def find_low(self, hashes: NDArray[np.uint32]) -> Rows:
        """Rows by the low 32 bits of item hashes; where two items share them, the older."""
        return self._low.find(hashes)

    def hashes_of(self, rows: Rows) -> NDArray[np.uint64]:
        """Item hashes [m] of rows [m] >= 0."""
        return np.asarray(self._hashes[rows])

    def take(self, ids: Sequence[str], hashes: NDArray[np.uint64]) -> Rows:
        """The rows [m] of distinct items, given out in order to those that have none yet."""
        rows = self.find(hashes)
        new = np.flatnonzero(rows < 0)
        rows[new] = self.size + np.arange(len(new))
        self._reserve(self.size + len(new))
        self._hashes[rows[new]] = hashes[new]
        self._index.add(hashes[new], rows[new])
        self._low.add(low_half(hashes[new]), rows[new])
        self.ids.extend(ids[i] for i in new.tolist())
        self.titles.extend(ids[i] for i in new.tolist())
        return rows

    def _reserve(self, size: int) -> None:
        """Room for `size` rows; capacity doubles."""
        capacity = len(self._hashes)
        if size > capacity:
            more = np.zeros(max(2 * capacity, size, 1_024) - capacity, np.uint64)
            self._hashes = np.concatenate([self._hashes, more])
