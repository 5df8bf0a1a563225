"""What the published lists are worth: hits at the same positions with and without adaptation.

A position is an event that caused a list. Its list hits when the user's next film that he likes
and has not seen before is among the first ten. For the same positions this process computes the
lists of the same model with inner steps switched off, those of recency popularity, and once more
those with steps on, which have to agree with the worker's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adapters import evaluate
from adapters.episodes import Log
from adapters.evaluate import Options
from adapters.experts import Prior
from adapters.positions import Sequences, relevant
from adapters.types import Catalogue, Meta
from stream import config
from stream.columns import to_columns
from stream.message_types import Interaction

TOP = 10
"""Places of a list that count."""

ADAPTED, STEPS_OFF, POPULAR = "adapted", "steps off", "recency popularity"

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Positions:
    """The events of the live part in order: what would have been a hit, and for whom."""

    wanted: Ints  # [m] row of the user's next liked film, -1 = none
    hits: dict[str, NDArray[np.bool_]]  # variant -> [m]

    def hit(self, event: int, rows: Ints) -> bool:
        """Whether a list of rows hits at this event."""
        return bool((rows[:TOP] == self.wanted[event]).any())


@dataclass
class Tally:
    """Running hit rates over the lists that count."""

    positions: Positions
    lists: int = 0
    published: int = 0
    events: list[int] = field(default_factory=list)

    def add(self, event: int, rows: Ints) -> None:
        """A list that was published after this event."""
        if self.positions.wanted[event] < 0:
            return
        self.events.append(event)
        self.lists += 1
        self.published += self.positions.hit(event, rows)

    def rate(self, variant: str | None = None) -> float:
        """Hit rate of the published lists, or of a variant at the same positions."""
        if not self.lists:
            return 0.0
        if variant is None:
            return self.published / self.lists
        return float(self.positions.hits[variant][self.events].mean())


def log_of(events: Sequence[Interaction], messages: config.Messages, rows: dict[str, int]) -> Log:
    """Events in order of time as a log over the rows of a catalogue."""
    columns = to_columns(events, messages)
    items = np.array([rows.get(item, -1) for item in columns.item_ids], np.int64)[columns.items]
    return Log(columns.users, items, columns.actions, columns.values, columns.times)


def cached_positions(
    path: Path, meta: Meta, log: Log, catalogue: Catalogue, prior: Prior, ranking: config.Ranking
) -> Positions:
    """`positions`, kept in a file beside the model, from which they follow."""
    if path.exists():
        with np.load(path) as stored:
            kept = {name: stored[name] for name in stored.files}
        return Positions(kept.pop("wanted"), kept)
    found = positions(meta, log, catalogue, prior, ranking)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as out:
        columns: dict[str, Any] = {"wanted": found.wanted, **found.hits}
        np.savez_compressed(out, **columns)
    Path(out.name).replace(path)
    return found


def positions(
    meta: Meta,
    log: Log,
    catalogue: Catalogue,
    prior: Prior,
    ranking: config.Ranking,
) -> Positions:
    """All events of `log` with the lists of each variant after them.

    Users begin without a past, as they do for the worker. What all users did counts up to the
    hour of the event; the worker's lists may know what came in the same batch too.
    """
    events = np.arange(len(log))
    wanted = relevant(Sequences.of(log), events, "published", 1, ranking.exclude_seen)[:, 0]
    options = Options(
        k=ranking.top_k,
        horizon=1,
        mask_seen=ranking.exclude_seen,
        moment="published",
        diversity=ranking.diversity,
        variants=(ADAPTED, STEPS_OFF, POPULAR),
    )
    hits = {name: np.zeros(len(log), np.bool_) for name in options.variants}
    with torch.inference_mode():
        moments = evaluate.positions(
            meta, log, float(log.times[0]), catalogue, prior, options, None
        )
    for name in options.variants:
        top = moments.lists[name][:, :TOP]
        hits[name][moments.events] = (top == wanted[moments.events, None]).any(1)
    return Positions(wanted, hits)
