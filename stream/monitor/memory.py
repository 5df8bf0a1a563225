"""What is remembered of users: their latest lists, what they were shown, what they acted on.

Bounded on every side: the users who were seen last, and of each a few lists, impressions and items.
Ids are kept as 64-bit hashes.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import xxhash

from stream.monitor.windows import Group

LISTS = 4
"""Latest lists of a user: those before and after what has not been judged yet."""

SHOWN = 64
ACTED = 32

SEED = 2
"""Another than the control's, so that a sample of users has its share of control users."""


def hashed(name: str) -> int:
    """The 64-bit hash of an id."""
    return hashed_bytes(name.encode())


def hashed_bytes(name: bytes) -> int:
    """The same of an id in UTF-8."""
    return xxhash.xxh3_64_intdigest(name, seed=SEED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A list as it was published; times are unix seconds."""

    time: float  # of the record
    expires: float
    group: Group
    shots: int
    items: array[int]  # hashes of its first K items, best first
    cause: int  # offset of the event that it answers, -1 = none


@dataclass(slots=True)
class Impression:
    """An item of a list's first K that was shown."""

    time: float
    item: int
    group: Group
    clicked: bool = False


@dataclass(slots=True)
class Remembered:
    """What is known of a user."""

    lists: deque[Listed] = field(default_factory=lambda: deque(maxlen=LISTS))
    shown: deque[Impression] = field(default_factory=lambda: deque(maxlen=SHOWN))
    acted: deque[int] = field(default_factory=lambda: deque(maxlen=ACTED))

    def before(self, time: float) -> Listed | None:
        """The newest list that was published before a moment."""
        return newest_before(self.lists, time)

    def since(self, time: float) -> Listed | None:
        """The first list that was published at a moment or after it."""
        return next((found for found in self.lists if found.time >= time), None)

    def answer_to(self, offset: int) -> Listed | None:
        """The list that the event at this offset caused."""
        return next((found for found in self.lists if found.cause == offset), None)


class Memory:
    """The users who were seen last, at most `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._users: OrderedDict[int, Remembered] = OrderedDict()

    def __len__(self) -> int:
        return len(self._users)

    def of(self, user: int) -> Remembered:
        """What is known of a user (by hash), who counts as seen now."""
        known = self._users.setdefault(user, Remembered())
        self._users.move_to_end(user)
        if len(self._users) > self._most:
            self._users.popitem(last=False)
        return known

    def forget(self, user: int) -> None:
        """Keep nothing of a user."""
        self._users.pop(user, None)


def newest_before(lists: Iterable[Listed], time: float) -> Listed | None:
    """The last of these lists, in the order of time, that was published before a moment."""
    found = None
    for each in lists:
        if each.time < time:
            found = each
    return found
