"""What a run left on disk, so that the next one goes on where the last one ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

CUTOFFS = (10, 20)
"""Lengths of the lists that are judged."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The figures of some lists at the same positions."""

    users: Array  # [m]
    shots: Array  # [m]
    new: Array  # [m] bool: the next item is less than a day old
    figures: dict[str, Array]  # "<variant>@<k>" -> [m, 3] nDCG, hit, reciprocal rank
    coverage: dict[str, float]  # variant -> share of the catalogue that is in any list
    notes: dict[str, str]  # such as the parameters that were chosen


class Shelf:
    """A folder of results by name; each is made once for the same code and settings."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str, make: Callable[[], Judged]) -> Judged:
        """The result of this name, made now if it is not there."""
        path = self._folder / f"{_slug(name)}.npz"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(path, make())
        return _read(path)


def _write(path: Path, found: Judged) -> None:
    half = path.with_suffix(".half.npz")
    columns: dict[str, Any] = {
        "users": found.users,
        "shots": found.shots,
        "new": found.new,
        "words": np.array(json.dumps({"coverage": found.coverage, "notes": found.notes})),
        **{f"figures {name}": value for name, value in found.figures.items()},
    }
    np.savez_compressed(half, **columns)
    half.rename(path)


def _read(path: Path) -> Judged:
    with np.load(path) as stored:
        words = json.loads(str(stored["words"]))
        figures = {
            name.removeprefix("figures "): stored[name]
            for name in stored.files
            if name.startswith("figures ")
        }
        return Judged(stored["users"], stored["shots"], stored["new"], figures, **words)


def _slug(name: str) -> str:
    plain = "".join(c if c.isalnum() else "-" for c in name.lower())
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
