"""Vectors of texts that were encoded before, in one file an encoder: a second training is warm."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

LIMIT = 500_000
"""Vectors that are kept, the latest ones."""


class FileVectors:
    """A `VectorCache` in memory that is read from a file and written back by `save`.

    A file that is damaged or cannot be written is no error: its vectors are computed again.
    """

    def __init__(self, encoder: str, dim: int, folder: Path | None = None) -> None:
        """`encoder` is the digest of the encoder, `dim` the size of its vectors."""
        folder = folder or platformdirs.user_cache_path("innerloop") / "vectors"
        self.path = folder / f"{encoder[:32]}.safetensors"
        self._dim = dim
        self._vectors = self._read()
        self._changed = False

    def get_many(self, hashes: NDArray[np.uint64]) -> list[NDArray[np.float16] | None]:
        """The vectors that are known."""
        return [self._vectors.get(one) for one in hashes.tolist()]

    def put_many(self, hashes: NDArray[np.uint64], vectors: NDArray[np.float16]) -> None:
        """Remember vectors [m, D]."""
        self._vectors |= dict(zip(hashes.tolist(), vectors, strict=True))
        self._changed = True

    def save(self) -> None:
        """Write the file under a temporary name and rename it, where anything changed."""
        if not self._changed:
            return
        latest = list(self._vectors.items())[-LIMIT:]
        content = np.array([key for key, _ in latest], np.uint64)
        columns: dict[str, NDArray[Any]] = {
            "content": content,
            "text": np.stack([vector for _, vector in latest]),
        }
        with suppress(OSError, SafetensorError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write(columns)
        self._changed = False

    def _write(self, columns: dict[str, NDArray[Any]]) -> None:
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".vectors-")
        os.close(handle)
        try:
            save_file(columns, name)
            Path(name).replace(self.path)
        finally:
            Path(name).unlink(missing_ok=True)

    def _read(self) -> dict[int, NDArray[np.float16]]:
        try:
            columns = load_file(self.path)
            content, text = columns["content"], columns["text"]
        except (OSError, SafetensorError, KeyError):
            return {}
        whole = text.shape == (len(content), self._dim) and text.dtype == np.float16
        return dict(zip(content.tolist(), text, strict=True)) if whole else {}
