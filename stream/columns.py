"""A log of events as aligned columns, for training and evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream import config
from stream.message_types import Event, Interaction
from stream.messages import evidence_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """m interactions in order of event time; those of the same time in their given order."""

    users: NDArray[np.int64]  # [m] place in user_ids
    items: NDArray[np.int64]  # [m] place in item_ids
    actions: NDArray[np.int64]  # [m] place in action_names
    values: NDArray[np.float32]  # [m] evidence, negative = dislike
    times: NDArray[np.float64]  # [m] unix seconds of event time
    user_ids: list[str]  # in the order of their first event
    item_ids: list[str]  # in the order of their first event
    action_names: tuple[str, ...]  # as configured

    def __len__(self) -> int:
        return len(self.times)


def to_columns(events: Iterable[Event], settings: config.Messages) -> Columns:
    """The interactions among `events` as columns; rankings, profiles and the rest are left out.

    Raises `KeyError` for an action that is not configured; the readers of `stream.files` refuse
    those before.
    """
    log = sorted((e for e in events if isinstance(e, Interaction)), key=lambda e: e.timestamp)
    names = tuple(settings.actions)
    users, user_ids = _indices([e.user for e in log])
    items, item_ids = _indices([e.item for e in log])
    place = {name: at for at, name in enumerate(names)}
    actions = np.array([place[e.type] for e in log], np.int64)
    raw = np.array([np.nan if e.value is None else e.value for e in log], np.float64)
    return Columns(
        users=users,
        items=items,
        actions=actions,
        values=evidence_of(actions, raw, settings),
        times=np.array([e.timestamp for e in log], np.float64) / 1e3,
        user_ids=user_ids,
        item_ids=item_ids,
        action_names=names,
    )


def _indices(ids: list[str]) -> tuple[NDArray[np.int64], list[str]]:
    """The place of each id among the distinct ones, and these in order of appearance."""
    place: dict[str, int] = {}
    indices = [place.setdefault(one, len(place)) for one in ids]
    return np.array(indices, np.int64), list(place)
