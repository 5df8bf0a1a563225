"""What users were shown, in a log: which of it was ignored, as of any moment of a user.

A user's record keeps the latest RING impressions. One that was acted on goes away; one that is
older than the feedback window at an event of its user counts as ignored from then on. A worker
finds this event by event (`stream.user_state`), this module for all moments of a log at once.
Letters in shape comments: p impressions, m events of the log, n moments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from adapters.signals import Ints, Times

RING = 32
"""Impressions that are kept of a user: the newest ones."""

_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Impressions:
    """Items that were shown, in the order in which they enter the ring; see `make_impressions`."""

    users: Ints  # [p] as in the log
    items: Ints  # [p] rows of the catalogue, -1 = not in it
    times: Times  # [p] unix seconds of event time, ascending
    window: float  # seconds after which what was not acted on counts as ignored


def make_impressions(users: Any, items: Any, times: Any, window: float) -> Impressions | None:
    """Impressions from columns [p] in any order of time; None where there are none.

    Those of one time stand as they enter the ring: the best item of a list last, so that it is
    the last to leave.
    """
    at = np.asarray(times, np.float64)
    order = np.argsort(at, kind="stable")
    rows = np.asarray(items, np.int64)[order]
    if not len(order):
        return None
    return Impressions(np.asarray(users, np.int64)[order], rows, at[order], window)


@dataclass(frozen=True, slots=True)
class Fates:
    """Impressions grouped by user, and the events that settle them.

    Events are named by their place in a log that is sorted by user, then time.
    """

    keys: np.ndarray  # [p] complex: user, time
    items: Ints  # [p]
    due: Ints  # [p] first event at which the window is over
    cleared: Ints  # [p] first event on the item since it was shown

    @classmethod
    def of(cls, shown: Impressions, users: Ints, items: Ints, times: Times) -> Fates:
        """The fates of impressions among events [m], which are sorted by user, then time.

        What is shown at the time of an event counts as shown before it.
        """
        order = np.argsort(shown.users, kind="stable")
        owner, rows, at = shown.users[order], shown.items[order], shown.times[order]
        over = pairs_key(owner, np.floor(at) + shown.window)  # records keep whole seconds
        due = np.searchsorted(pairs_key(users, np.floor(times)), over, side="right")
        since = np.searchsorted(pairs_key(users, times), pairs_key(owner, at), side="left")
        return cls(pairs_key(owner, at), rows, due, _next_same(owner, rows, since, users, items))

    def ignored(self, users: Ints, ends: Ints, times: Times) -> Ints:
        """Rows [n, R] shown to users and ignored, -1 = none; repeats add up; R as needed.

        At n moments: after the user's events before place `ends`, and what was shown by `times`.
        """
        newest = np.searchsorted(self.keys, pairs_key(users, times), side="right")
        place = newest[:, None] - 1 - np.arange(min(RING, len(self.keys)))
        at = np.maximum(place, 0)
        good = (place >= 0) & (self.keys.real[at] == users[:, None])
        good &= (self.due[at] < ends[:, None]) & (self.cleared[at] >= ends[:, None])
        rows = np.where(good, self.items[at], -1)
        some = (rows >= 0).any(0)
        return rows[:, some] if some.any() else np.full((len(users), 1), -1)


def pairs_key(first: Ints, second: np.ndarray) -> np.ndarray:
    """Pairs as one column that sorts by the first, then the second: numpy sorts complex so."""
    keys = np.empty(len(first), np.complex128)
    keys.real, keys.imag = first, second
    return keys


def _next_same(owner: Ints, rows: Ints, since: Ints, users: Ints, items: Ints) -> Ints:
    """Place of the owner's first event on the same item at place `since` or later."""
    most = int(max(items.max(initial=0), rows.max(initial=0))) + 2
    pair = users * most + items + 1
    order = np.argsort(pair, kind="stable")
    wanted = owner * most + rows + 1
    at = np.searchsorted(pairs_key(pair[order], order), pairs_key(wanted, since), side="left")
    near = np.minimum(at, max(len(order) - 1, 0))
    found = (at < len(order)) & (pair[order][near] == wanted) if len(order) else at < 0
    return np.where(found, order[near] if len(order) else _NEVER, _NEVER)
