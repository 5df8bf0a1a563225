"""What training and evaluation read: files of events and items, or the data that is shipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adapters import episodes
from adapters.episodes import Log
from stream import config, files, movietweetings
from stream.columns import Columns, to_columns
from stream.errors import DataError
from stream.files import OnBad
from stream.loading import SHIPPED
from stream.messages import Item

LEAST_EVENTS = 200
"""Interactions below which nothing can be learned, let alone measured."""


def messages_for(sources: Sequence[str], settings: config.Messages) -> config.Messages:
    """The settings of messages, with the shipped data's own actions where it is among `sources`."""
    if SHIPPED not in sources:
        return settings
    return settings.model_copy(update={"actions": {**settings.actions, **movietweetings.ACTIONS}})


def read_events(
    sources: Sequence[str],
    settings: config.Messages,
    on_bad: OnBad | None = None,
    until: float | None = None,
) -> Columns:
    """The interactions of all sources by event time, those before `until` (unix seconds) alone.

    Raises `DataError`, also where there are too few.
    """
    paths = [Path(source) for source in sources if source != SHIPPED]
    events = list(files.read_events(paths, settings, on_bad))
    if SHIPPED in sources:
        events += movietweetings.events()
    if until is not None:
        events = [event for event in events if event.timestamp < until * 1e3]
    columns = to_columns(events, settings)
    if len(columns) < LEAST_EVENTS:
        raise DataError(
            f"{' '.join(sources)}: {len(columns)} interactions are too few to learn from",
            remedy=f"Bring at least {LEAST_EVENTS}, better 10,000 and more.",
        )
    return columns


def read_items(
    sources: Sequence[str], settings: config.Messages, on_bad: OnBad | None = None
) -> list[Item]:
    """The items of all sources, of each the last message. Raises `DataError`."""
    paths = [Path(source) for source in sources if source != SHIPPED]
    items = {item.item: item for item in files.read_items(paths, settings, on_bad)}
    if SHIPPED in sources:
        items |= {item.item: item for item in movietweetings.items()}
    if not items:
        raise DataError(f"{' '.join(sources)}: no items", remedy="Name files with items.")
    return list(items.values())


def to_log(columns: Columns, item_ids: Sequence[str]) -> Log:
    """Events with rows of `item_ids`, -1 where an item is not among them.

    Raises `DataError` when fewer than half of the events have an item that is known.
    """
    place = {item: row for row, item in enumerate(item_ids)}
    rows = np.array([place.get(item, -1) for item in columns.item_ids], np.int64)[columns.items]
    known = float((rows >= 0).mean())
    if known < 0.5:
        raise DataError(
            f"only {known:.0%} of the events have an item of the items file",
            remedy="Check that both files use the same item ids.",
        )
    return episodes.make_log(columns.users, rows, columns.actions, columns.values, columns.times)
