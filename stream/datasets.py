"""What training and evaluation read: files of events and items, or the data that is shipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapters import episodes
from adapters.episodes import Log
from adapters.impressions import Impressions, make_impressions
from adapters.profiles import Profiles, make_profiles
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
    """The events of all sources as columns, those before `until` (unix seconds) alone.

    Raises `DataError`, also where there are too few.
    """
    paths = [Path(source) for source in sources if source != SHIPPED]
    events = list(files.read_events(paths, settings, on_bad))
    if SHIPPED in sources:
        events += movietweetings.events()
    if until is not None:
        events = [event for event in events if event.timestamp < until * 1e3]
    columns = to_columns(events, settings)
    require_enough(columns, " ".join(sources))
    return columns


def require_enough(columns: Columns, where: str) -> None:
    """Raises `DataError` for columns from which nothing can be learned."""
    if len(columns) < LEAST_EVENTS:
        raise DataError(
            f"{where}: {len(columns)} interactions are too few to learn from",
            remedy=f"Bring at least {LEAST_EVENTS}, better 10,000 and more.",
        )


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


def to_log(columns: Columns, item_ids: Sequence[str], state: config.State | None = None) -> Log:
    """Events with rows of `item_ids`, -1 where an item is not among them.

    `state` says when what was shown counts as ignored; None = the default. Raises `DataError`
    when fewer than half of the events have an item that is known.
    """
    place = {item: row for row, item in enumerate(item_ids)}
    row_of = np.array([place.get(item, -1) for item in columns.item_ids], np.int64)
    rows = row_of[columns.items]
    known = float((rows >= 0).mean())
    if known < 0.5:
        raise DataError(
            f"only {known:.0%} of the events have an item that is among the items",
            remedy="Check that both use the same item ids.",
        )
    log = episodes.make_log(columns.users, rows, columns.actions, columns.values, columns.times)
    return replace(log, shown=_shown(columns, row_of, state), profiles=_profiles(columns))


def _shown(
    columns: Columns, row_of: NDArray[np.int64], state: config.State | None
) -> Impressions | None:
    shown, window = columns.shown, (state or config.State()).feedback_window_s
    if shown is None:
        return None
    return make_impressions(shown.users, row_of[shown.items], shown.times, window)


def _profiles(columns: Columns) -> Profiles | None:
    told = columns.told
    return None if told is None else make_profiles(told.users, told.times, told.buckets)
