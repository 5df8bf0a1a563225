"""Item vectors on a worker's disk, so that a restart encodes nothing anew."""

from __future__ import annotations

from collections.abc import Collection
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stream.store_errors import Corrupt, translated, wipe

if TYPE_CHECKING:
    from stream.store import SharedResources


class VectorCache:
    """Vectors of item texts by content hash and encoder, kept over restarts: one a worker.

    RocksDB lets several threads read and write; `close` waits for none of them.
    """

    def __init__(self, folder: Path, encoder: str, shared: SharedResources) -> None:
        self._path = folder / "vectors"
        self._encoder = _prefix(encoder)
        self._shared = shared
        try:
            self._db = self._open()
        except Corrupt as error:
            wipe(self._path, error.detail)
            self._db = self._open()

    def get_many(self, hashes: NDArray[np.uint64]) -> list[NDArray[np.float16] | None]:
        """The vectors [D] that are stored for `hashes` [m], None where there is none."""
        if not len(hashes):
            return []
        with translated(self._path):
            found = self._db.get(self._keys(hashes))
        return [None if v is None else np.frombuffer(v, np.float16) for v in found]

    def put_many(self, hashes: NDArray[np.uint64], vectors: NDArray[np.float16]) -> None:
        """Store vectors [m, D] for `hashes` [m]."""
        batch = self._shared.batch()
        for key, vector in zip(self._keys(hashes), vectors, strict=True):
            batch.put(key, vector.astype(np.float16, copy=False).tobytes())
        with translated(self._path):
            self._db.write(batch)

    def of(self, encoder: str) -> VectorCache:
        """The vectors of another encoder in the same files."""
        other = copy(self)
        other._encoder = _prefix(encoder)
        return other

    def keep(self, encoders: Collection[str]) -> None:
        """Let go of the vectors of all other encoders."""
        wanted, at = {_prefix(encoder) for encoder in encoders}, b""
        with translated(self._path):
            while (key := self._first_from(at)) is not None:
                prefix = key[: key.index(b":") + 1]
                at = prefix[:-1] + b";"  # the byte after the colon
                if prefix not in wanted:
                    self._db.delete_range(prefix, at)

    def _first_from(self, key: bytes) -> bytes | None:
        found = self._db.iter()
        found.seek(key)
        first: bytes | None = found.key() if found.valid() else None
        return first

    def close(self) -> None:
        """Let go of the files. May be called twice."""
        with translated(self._path):
            self._db.close()

    def _open(self) -> Any:
        with translated(self._path):
            return self._shared.open(self._path)

    def _keys(self, hashes: NDArray[np.uint64]) -> list[bytes]:
        return [self._encoder + h.to_bytes(8, "big") for h in hashes.tolist()]


def _prefix(encoder: str) -> bytes:
    return encoder.encode() + b":"
