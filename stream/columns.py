"""A log of events as aligned columns, for training and evaluation.

Events come in batches, and an interaction costs 42 bytes until the columns are made: memory is
bounded by the numbers of the log, not by its objects.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from adapters.impressions import RING
from adapters.towers import ATTRIBUTES
from stream import config, left_out
from stream.item_encoder import attribute_buckets
from stream.left_out import PLACE, Bools, Ints, Table
from stream.message_types import Event, Forget, Interaction, Ranking, User
from stream.messages import evidence_of
from stream.user_state import hash_id

E = TypeVar("E", Interaction, Ranking, User, Forget)

_AT_ONCE = 10_000  # events of an iterable
_ACT: list[Any] = [*PLACE, ("item", "<i4"), ("action", "<i2"), ("value", "<f4"), ("id", "<u8")]
_LIST: list[Any] = [*PLACE, ("first", "<i8"), ("size", "<i2")]  # of the items shown
_PROFILE: list[Any] = [*PLACE, ("buckets", "<i4", (ATTRIBUTES,))]


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


class Place(NamedTuple):
    """Where an event stands in the log."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Interactions that were read and are not among the columns."""

    erased: int = 0  # of users who were forgotten later
    duplicates: int = 0
    too_many: int = 0  # beyond messages.max_per_minute
    outside: int = 0  # of the window of event time


def to_columns(events: Iterable[Event], settings: config.Messages) -> Columns:
    """The interactions among `events` as columns, with what these users were shown and told.

    Users who never act are left out, and so is what came before a user was erased. Raises
    `KeyError` for an action that is not configured; the readers of `stream.files` refuse those
    before.
    """
    gathering = Gathering(settings)
    for batch in _batches(events):
        gathering.add(batch)
    return gathering.columns()[0]


class Gathering:
    """Events on their way to `Columns`."""

    def __init__(self, settings: config.Messages) -> None:
        self._settings = settings
        self._action = {name: at for at, name in enumerate(settings.actions)}
        self._users, self._items = _Places(), _Places()
        self._acts = [np.zeros(0, _ACT)]
        self._lists = [np.zeros(0, _LIST)]
        self._profiles = [np.zeros(0, _PROFILE)]
        self._forgets = [np.zeros(0, PLACE)]
        self._shown = [np.zeros(0, np.int32)]  # items of all lists, the best of each last
        self._shown_size = 0
        self._placed = False
        self._count = 0

    def add(self, events: Sequence[Event], places: Sequence[Place] | None = None) -> None:
        """Take a batch. Raises `KeyError` for an action that is not configured.

        Without places events stand in the order of the calls, and an erasure goes by time alone.
        """
        self._placed = places is not None
        at = places or [Place(0, self._count + i) for i in range(len(events))]
        self._count += len(events)
        self._add_acts(*_of(Interaction, events, at))
        self._add_lists(*_of(Ranking, events, at))
        self._add_profiles(*_of(User, events, at))
        forgets, order = _of(Forget, events, at)
        if forgets:
            unknown = [Place(partition, -1) for partition, _ in order]
            self._forgets.append(self._table(PLACE, forgets, order if self._placed else unknown))

    def columns(
        self, length_s: float | None = None, until_s: float | None = None
    ) -> tuple[Columns, LeftOut]:
        """The columns, and what was left out.

        `length_s` is the window of event time, up to `until_s` (unix seconds) or to the newest
        interaction, if that is earlier. Repeats are left out where places are known.
        """
        acts, gone = self._remembered(self._acts)
        again, many = np.zeros((2, len(acts)), np.bool_)
        if self._placed:
            again, many = left_out.repeats(acts, self._settings.max_per_minute)
        acts = acts[~again & ~many]
        window = _window(acts, length_s, until_s)
        inside = _inside(acts, window)
        left = LeftOut(
            erased=gone,
            duplicates=int(again.sum()),
            too_many=int(many.sum()),
            outside=int((~inside).sum()),
        )
        acts = acts[inside]
        return self._made(acts[np.lexsort(_order(acts, "time"))], window), left

    # -- batches ------------------------------------------------------------------------------

    def _table(self, kind: list[Any], events: Sequence[Event], at: Sequence[Place]) -> Table:
        table = np.zeros(len(events), kind)
        table["user"] = self._users.of([event.user for event in events])
        table["time"] = [event.timestamp for event in events]
        table["partition"] = [place.partition for place in at]
        table["offset"] = [place.offset for place in at]
        return table

    def _add_acts(self, events: Sequence[Interaction], at: Sequence[Place]) -> None:
        table = self._table(_ACT, events, at)
        actions = np.array([self._action[e.type] for e in events], np.int64)
        raw = np.array([np.nan if e.value is None else e.value for e in events], np.float64)
        table["item"] = self._items.of([event.item for event in events])
        table["action"] = actions
        table["value"] = evidence_of(actions, raw, self._settings)
        table["id"] = np.fromiter((hash_id(e.id) for e in events), np.uint64, len(events))
        self._acts.append(table)

    def _add_lists(self, events: Sequence[Ranking], at: Sequence[Place]) -> None:
        """Of each list what a record keeps of it, the best item last."""
        if not events:
            return
        table = self._table(_LIST, events, at)
        kept = [event.items[:RING][::-1] for event in events]
        table["size"] = [len(part) for part in kept]
        table["first"] = self._shown_size + np.cumsum(table["size"], dtype=np.int64) - table["size"]
        self._lists.append(table)
        self._shown.append(self._items.of([item for part in kept for item in part]))
        self._shown_size += len(self._shown[-1])

    def _add_profiles(self, events: Sequence[User], at: Sequence[Place]) -> None:
        if not events:
            return
        table = self._table(_PROFILE, events, at)
        table["buckets"] = attribute_buckets([event.fields for event in events])
        self._profiles.append(table)

    # -- the whole ----------------------------------------------------------------------------

    def _remembered(self, parts: list[Table]) -> tuple[Table, int]:
        """The events of users who were not erased after them, and how many others there are."""
        table, forgets = np.concatenate(parts), np.concatenate(self._forgets)
        if not len(forgets):
            return table, 0
        gone = left_out.erased(table, forgets, len(self._users))
        return table[~gone], int(gone.sum())

    def _made(self, acts: Table, window: tuple[float, float]) -> Columns:
        users = _Numbers(acts["user"])
        lists, profiles = (
            _of_users(self._remembered(parts)[0], users, window)
            for parts in (self._lists, self._profiles)
        )
        shown = _shown_items(lists, np.concatenate(self._shown))
        items = _Numbers(np.concatenate([acts["item"], shown]))
        return Columns(
            users=users.of(acts["user"]),
            items=items.of(acts["item"]),
            actions=acts["action"].astype(np.int64),
            values=acts["value"].copy(),
            times=_seconds(acts),
            user_ids=self._users.names(users.known),
            item_ids=self._items.names(items.known),
            action_names=tuple(self._settings.actions),
            shown=_shown(lists, shown, users, items) if len(lists) else None,
            told=_told(profiles, users) if len(profiles) else None,
        )


class _Places(dict[str, int]):
    """Ids in order of appearance, and the place of each."""

    def of(self, ids: Iterable[str]) -> NDArray[np.int32]:
        """Places of ids [m]; new ones come last."""
        return np.array([self.setdefault(one, len(self)) for one in ids], np.int32)

    def names(self, places: Ints) -> list[str]:
        """The ids at these places."""
        names = list(self)
        return [names[place] for place in places.tolist()]


class _Numbers:
    """Numbers of places in order of their first appearance."""

    def __init__(self, places: Any) -> None:
        values, first = np.unique(places, return_index=True)
        self.known: Ints = values[np.argsort(first)].astype(np.int64)
        self._number = np.full(int(values.max(initial=-1)) + 1, -1, np.int64)
        self._number[self.known] = np.arange(len(self.known))

    def has(self, places: Any) -> Bools:
        """Which of these places [m] have a number."""
        inside = places < len(self._number)
        return np.asarray(inside & (self._number[np.where(inside, places, 0)] >= 0))

    def of(self, places: Any) -> Ints:
        """The numbers of places [m] that have one."""
        return np.asarray(self._number[places])


def _of(
    kind: type[E], events: Sequence[Event], at: Sequence[Place]
) -> tuple[Sequence[E], Sequence[Place]]:
    """The events of a kind and their places."""
    chosen = [i for i, event in enumerate(events) if type(event) is kind]
    return [events[i] for i in chosen], [at[i] for i in chosen]  # type: ignore[misc]


def _window(acts: Table, length_s: float | None, until_s: float | None) -> tuple[float, float]:
    """Begin and end of the window in ms of event time, the end excluded."""
    until = math.inf if until_s is None else until_s * 1e3
    if length_s is None:
        return -math.inf, until
    newest = float(acts["time"].max(initial=0))
    return min(newest, until) - length_s * 1e3, until


def _inside(table: Table, window: tuple[float, float]) -> Bools:
    return np.asarray((table["time"] >= window[0]) & (table["time"] < window[1]))


def _order(table: Table, *first: str) -> tuple[Any, ...]:
    """Keys for `lexsort`: these, then the place in the log."""
    return (table["offset"], table["partition"], *(table[name] for name in reversed(first)))


def _of_users(table: Table, users: _Numbers, window: tuple[float, float]) -> Table:
    """Events within the window of users who act in it, in the order of the log."""
    if not len(users.known):
        return table[:0]
    kept = table[_inside(table, window) & users.has(table["user"])]
    return kept[np.lexsort(_order(kept))]


def _shown_items(lists: Table, items: Any) -> Any:
    """The items of these lists [p], one list after the other."""
    size = lists["size"].astype(np.int64)
    within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    return items[np.repeat(lists["first"], size) + within]


def _shown(lists: Table, shown: Any, users: _Numbers, items: _Numbers) -> Shown:
    size = lists["size"].astype(np.int64)
    return Shown(
        users=users.of(lists["user"]).repeat(size),
        items=items.of(shown),
        times=_seconds(lists).repeat(size),
    )


def _told(profiles: Table, users: _Numbers) -> Told:
    return Told(
        users=users.of(profiles["user"]),
        times=_seconds(profiles),
        buckets=profiles["buckets"].astype(np.int64),
    )


def _seconds(table: Table) -> NDArray[np.float64]:
    return np.asarray(table["time"] / 1e3)


def _batches(events: Iterable[Event]) -> Iterator[list[Event]]:
    """Events in batches that are worked on at once."""
    given = iter(events)
    while batch := list(islice(given, _AT_ONCE)):
        yield batch
