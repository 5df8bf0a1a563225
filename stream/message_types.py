"""The messages of `events` and `items` as structs."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from stream.item_content import Value


class Field(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A named value of an item or of a profile."""

    name: str
    value: Value


class Interaction(
    msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="interaction", tag_field="event"
):
    """A user did something with an item; `timestamp` is event time in ms, `type` the action."""

    id: str
    timestamp: int
    user: str
    item: str
    type: str
    value: float | None = None
    session: str | None = None


class Ranking(
    msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="ranking", tag_field="event"
):
    """What a user was shown, best first; items do not repeat once accepted."""

    id: str
    timestamp: int
    user: str
    items: list[str]
    session: str | None = None


class User(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="user", tag_field="event"):
    """A user's profile."""

    id: str
    timestamp: int
    user: str
    fields: list[Field]


class Forget(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="forget", tag_field="event"):
    """Erase this user."""

    id: str
    timestamp: int
    user: str


class Item(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="item", tag_field="event"):
    """An item as it is now; a newer message about it replaces an older one as a whole."""

    id: str
    timestamp: int
    item: str
    fields: list[Field]


class Deletion(NamedTuple):
    """An item is gone: the `items` topic has a null under its id."""

    item: str


Event = Interaction | Ranking | User | Forget
"""A message of the `events` topic."""
