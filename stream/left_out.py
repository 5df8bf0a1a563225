"""Which events of a log a worker would not learn from: those of erased users, repeats, floods.

Over columns, so that a log of millions costs no object an event; only users with something in
doubt are walked event by event. A table is a structured array with the fields of `PLACE` at least.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Table = NDArray[np.void]

PLACE: list[Any] = [("user", "<i4"), ("time", "<i8"), ("partition", "<i4"), ("offset", "<i8")]
"""Fields of every event: number of the user, ms of event time, and where it stands in the log."""

KNOWN = 64
"""Latest events of a user whose ids a worker knows: the places of the support set."""

_MINUTE_MS = 60_000
_PARTITIONS = 1 << 20  # more than a topic can have


def erased(table: Table, forgets: Table, users: int) -> Bools:
    """Events [m] that came before their user's erasure, in their partition or by event time.

    A worker goes by the log. By event time as well, because what happened before somebody asked to
    be forgotten is not to be learned from when it arrives late, or in another partition.
    """
    until = np.full(users, -1, np.int64)
    np.maximum.at(until, forgets["user"], forgets["time"])
    keys, line = np.unique(_owner(forgets), return_inverse=True)
    last = np.full(len(keys) + 1, -1, np.int64)  # one more, for owners who were not erased
    np.maximum.at(last, line, forgets["offset"])
    owner = _owner(table)
    place = np.searchsorted(keys, owner)
    own = np.append(keys, -1)[place] == owner
    before = table["offset"] <= np.where(own, last[place], -1)
    return np.asarray(before | (table["time"] <= until[table["user"]]))


def repeats(table: Table, most: int | None) -> tuple[Bools, Bools]:
    """Interactions [m] that a worker skips: as duplicates by `id`, and as too many.

    `most` is `messages.max_per_minute`. Taken in the order of each partition.
    """
    order = np.lexsort((table["offset"], _owner(table)))
    owner, ids, times = _owner(table)[order], table["id"][order], table["time"][order]
    again, many = np.zeros((2, len(table)), np.bool_)
    for part in _doubtful(owner, ids, times, most):
        again[order[part]], many[order[part]] = _walked(ids[part], times[part], most)
    return again, many


def _owner(table: Table) -> Ints:
    """A user in a partition: whose record the event would change."""
    return np.asarray(table["user"].astype(np.int64) * _PARTITIONS + table["partition"])


def _doubtful(owner: Ints, ids: Any, times: Ints, most: int | None) -> Iterator[slice]:
    """Owners who have an id twice, or more than `most` events within a minute, as slices."""
    suspects = [_repeated(owner, ids, 1, 1)]
    if most is not None:
        suspects.append(_repeated(owner, times, most, _MINUTE_MS))
    for suspect in np.unique(np.concatenate(suspects)):
        yield slice(*np.searchsorted(owner, [suspect, suspect + 1]).tolist())


def _repeated(owner: Ints, values: Any, more: int, within: int) -> Ints:
    """Owners with `more` + 1 values that differ by less than `within`."""
    order = np.lexsort((values, owner))
    value, whose = values[order], owner[order]
    near = (value[more:] - value[:-more] < within) & (whose[more:] == whose[:-more])
    return np.asarray(whose[more:][near])


def _walked(ids: Any, times: Ints, most: int | None) -> tuple[Bools, Bools]:
    """Duplicates and what is too many among the events of one owner, oldest first."""
    again, many = np.zeros((2, len(ids)), np.bool_)
    held: deque[tuple[int, int]] = deque(maxlen=KNOWN)
    for place, event in enumerate(zip(ids.tolist(), times.tolist(), strict=True)):
        again[place] = any(event[0] == known for known, _ in held)
        if most is not None and not again[place]:
            many[place] = sum(abs(event[1] - at) < _MINUTE_MS for _, at in held) >= most
        if not again[place] and not many[place]:
            held.append(event)
    return again, many
