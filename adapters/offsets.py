"""What was popular when: the part of a prediction that the encoder need not learn.

Trained alone, the encoder learns which items were popular in the training window, and ranking
counts that again, out of date. With the log popularity of the moment added to its scores in the
outer loop it learns what popularity does not say. The offset is used in training only.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from adapters.episodes import Log

SNAPSHOTS = 256
"""Moments at which popularity is kept: every 1/256 of the events."""

FLOOR = 0.05
"""Added to popularity relative to the average item before the logarithm."""


@dataclass(frozen=True, slots=True)
class Offsets:
    """Log popularity at S moments for H half-lives."""

    table: Tensor  # [H, S, N] float16
    times: np.ndarray  # [S] unix seconds of the last event that counts; -inf first

    def at(self, times: Tensor) -> Tensor:
        """The last moments [m] that lie before `times` [m] unix seconds."""
        return torch.from_numpy(np.searchsorted(self.times, times.numpy(), side="left") - 1)


def build(log: Log, rows: int, half_lives: tuple[float, ...], there: int) -> Offsets:
    """Snapshots of the decayed counts of positive events; half-lives in seconds.

    Of the rows `there` are items when the log ends; the others are yet to come.
    """
    cuts = np.linspace(0, len(log), min(SNAPSHOTS, len(log) + 1), dtype=np.int64)
    table = [_snapshots(log, cuts, rows, half_life, there) for half_life in half_lives]
    times = np.concatenate([[-np.inf], log.times[cuts[1:] - 1]])
    return Offsets(torch.from_numpy(np.stack(table)), times)


def _snapshots(log: Log, cuts: np.ndarray, rows: int, half_life: float, there: int) -> np.ndarray:
    """log(count / mean count + FLOOR) at every cut: [S, N] float16."""
    table = np.empty((len(cuts), rows), dtype=np.float16)
    counts, now = np.zeros(rows), float(log.times[0]) if len(log) else 0.0
    table[0] = np.log(1 + FLOOR)
    for place, (begin, end) in enumerate(pairwise(cuts), start=1):
        part = log.select(slice(begin, end))
        last = float(part.times[-1])
        good = (part.values > 0) & (part.items >= 0)
        weight = np.exp2((part.times[good] - last) / half_life)
        counts = counts * np.exp2((now - last) / half_life)
        counts += np.bincount(part.items[good], weights=weight, minlength=rows)
        now = last
        table[place] = np.log(counts * there / max(counts.sum(), 1e-12) + FLOOR)
    return table
