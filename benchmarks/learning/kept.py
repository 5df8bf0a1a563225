"""What a run left on disk, so that the next one goes on where the last one ended."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from stream.errors import DataError

Array = np.ndarray[Any, Any]

CUTOFFS = (10, 20)
"""Lengths of the lists that are judged."""

_STEPS = 65_535
"""Of a figure between 0 and 1 as it is stored."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The figures of some lists at the same positions."""

    users: Array  # [m]
    shots: Array  # [m]
    new: Array  # [m] bool: the next item is less than a day old
    figures: dict[str, Array]  # "<variant>@<k>" -> [m, 3] nDCG, hit, reciprocal rank
    coverage: dict[str, float]  # variant -> share of the catalogue that is in any list
    notes: dict[str, str]  # such as the parameters that were chosen
    commit: str = ""  # of the code that made it
    next_hit: dict[str, Array] = field(default_factory=dict)  # variant -> [m] see CUTOFFS[0]


class Shelf:
    """A folder of results by name; each is made once for the same settings.

    Runs are small enough to be committed (some 30 kB), so that hours can be spread over days: the
    positions stand in a file of their own, and figures are rounded to 1 / 65,535.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str, make: Callable[[], Judged]) -> Judged:
        """The result of this name, made now if it is not there."""
        if not self.has(name):
            self._folder.mkdir(parents=True, exist_ok=True)
            self.put(name, replace(make(), commit=_commit()))
        return self.read(name)

    def read(self, name: str) -> Judged:
        """The result of this name, which is there. Raises `DataError` without its positions."""
        return _read(self._path(name))

    def has(self, name: str) -> bool:
        """Whether this result is there."""
        return self._path(name).exists()

    def put(self, name: str, found: Judged) -> None:
        """Write a result, whole or not at all. Raises `ValueError` for a figure beyond 0 to 1."""
        for figure, value in found.figures.items():
            if value.size and not (value.min() >= 0 and value.max() <= 1):
                raise ValueError(f"{name}: figure {figure} is not between 0 and 1")
        positions = {"users": found.users, "shots": found.shots, "new": found.new}
        digest = _digest(positions)
        _save(self._folder / f"positions-{digest}.npz", positions)
        words = {"coverage": found.coverage, "notes": found.notes, "commit": found.commit}
        figures = {
            f"figures {name}": np.round(value * _STEPS).astype(np.uint16)
            for name, value in found.figures.items()
        }
        figures |= {f"next hit {name}": hit for name, hit in found.next_hit.items()}
        about = {"positions": np.array(digest), "words": np.array(json.dumps(words))}
        _save(self._path(name), {**figures, **about})

    def _path(self, name: str) -> Path:
        return self._folder / f"{_slug(name)}.npz"


def _save(path: Path, columns: dict[str, Any]) -> None:
    half = path.with_suffix(f".{os.getpid()}.half.npz")  # others may write the same positions
    np.savez_compressed(half, **columns)
    half.rename(path)


def _read(path: Path) -> Judged:
    with np.load(path) as stored:
        words = json.loads(str(stored["words"]))
        figures = {n: stored[f] / np.float32(_STEPS) for n, f in _named(stored, "figures ")}
        hits = {n: stored[f] for n, f in _named(stored, "next hit ")}
        place = path.with_name(f"positions-{stored['positions']}.npz")
    if not place.exists():
        raise DataError(
            f"{path.name} needs {place.name}, which is not beside it",
            remedy="Bring both files together, or remove the run: it is made again.",
        )
    with np.load(place) as positions:
        columns = (positions[name] for name in ("users", "shots", "new"))
        return Judged(*columns, figures, **words, next_hit=hits)


def _named(stored: Any, kind: str) -> list[tuple[str, str]]:
    """What comes after `kind` in the names of columns, and the names."""
    return [(name.removeprefix(kind), name) for name in stored.files if name.startswith(kind)]


def _digest(positions: dict[str, Array]) -> str:
    digest = hashlib.sha256()
    for column in positions.values():
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:12]


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip()


def _slug(name: str) -> str:
    plain = "".join(c if c.isalnum() else "-" for c in name.lower())
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
