"""A log of events as aligned columns, for training and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapters.impressions import RING
from stream import config
from stream.item_encoder import attribute_buckets
from stream.message_types import Event, Forget, Interaction, Ranking, User
from stream.messages import evidence_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """p items that users were shown, as `adapters.impressions` takes them."""

    users: NDArray[np.int64]  # [p] place in user_ids
    items: NDArray[np.int64]  # [p] place in item_ids
    times: NDArray[np.float64]  # [p] unix seconds of event time


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """q profiles, as `adapters.profiles` takes them."""

    users: NDArray[np.int64]  # [q] place in user_ids
    times: NDArray[np.float64]  # [q] unix seconds of event time
    buckets: NDArray[np.int64]  # [q, P] attributes, -1 = none


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """m interactions in order of event time; those of the same time in their given order."""

    users: NDArray[np.int64]  # [m] place in user_ids
    items: NDArray[np.int64]  # [m] place in item_ids
    actions: NDArray[np.int64]  # [m] place in action_names
    values: NDArray[np.float32]  # [m] evidence, negative = dislike
    times: NDArray[np.float64]  # [m] unix seconds of event time
    user_ids: list[str]  # in the order of their first event
    item_ids: list[str]  # in the order of their first event; those only shown come last
    action_names: tuple[str, ...]  # as configured
    shown: Shown | None = None  # None = the log does not tell
    told: Told | None = None

    def __len__(self) -> int:
        return len(self.times)


def to_columns(events: Iterable[Event], settings: config.Messages) -> Columns:
    """The interactions among `events` as columns, with what these users were shown and told.

    Users who never act are left out, and so is what came before a user was erased. Raises
    `KeyError` for an action that is not configured; the readers of `stream.files` refuse those
    before.
    """
    given = _remembered(list(events))
    log = sorted((e for e in given if isinstance(e, Interaction)), key=lambda e: e.timestamp)
    names = tuple(settings.actions)
    users, items = _Places(), _Places()
    owner, rows = users.of([e.user for e in log]), items.of([e.item for e in log])
    place = {name: at for at, name in enumerate(names)}
    actions = np.array([place[e.type] for e in log], np.int64)
    raw = np.array([np.nan if e.value is None else e.value for e in log], np.float64)
    shown = _shown([e for e in given if isinstance(e, Ranking) and e.user in users], users, items)
    told = _told([e for e in given if isinstance(e, User) and e.user in users], users)
    return Columns(
        users=owner,
        items=rows,
        actions=actions,
        values=evidence_of(actions, raw, settings),
        times=_seconds(log),
        user_ids=list(users),
        item_ids=list(items),
        action_names=names,
        shown=shown,
        told=told,
    )


def _remembered(events: list[Event]) -> list[Event]:
    """The events without those of users who were erased at their time or later."""
    erased = sorted((e for e in events if isinstance(e, Forget)), key=lambda e: e.timestamp)
    if not erased:
        return events
    until = {event.user: event.timestamp for event in erased}
    return [event for event in events if event.timestamp > until.get(event.user, -1)]


class _Places(dict[str, int]):
    """Ids in order of appearance, and the place of each."""

    def of(self, ids: Iterable[str]) -> NDArray[np.int64]:
        """Places of ids [m]; new ones come last."""
        return np.array([self.setdefault(one, len(self)) for one in ids], np.int64)


def _shown(lists: Sequence[Ranking], users: _Places, items: _Places) -> Shown | None:
    """Of each list what a record keeps of it, the best item last."""
    kept = [event.items[:RING][::-1] for event in lists]
    sizes = [len(part) for part in kept]
    if not kept:
        return None
    return Shown(
        users=users.of(event.user for event in lists).repeat(sizes),
        items=items.of(item for part in kept for item in part),
        times=_seconds(lists).repeat(sizes),
    )


def _told(profiles: Sequence[User], users: _Places) -> Told | None:
    if not profiles:
        return None
    return Told(
        users=users.of(event.user for event in profiles),
        times=_seconds(profiles),
        buckets=attribute_buckets([event.fields for event in profiles]),
    )


def _seconds(events: Sequence[Event]) -> NDArray[np.float64]:
    return np.array([event.timestamp for event in events], np.float64) / 1e3
