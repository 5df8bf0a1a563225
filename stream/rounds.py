"""Events of a batch, arranged so that all users step at once.

A user's events must be taken in order; different users do not wait for each other. So a batch
becomes a few rounds: in each, some users take their next events, padded right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Round:
    """The next events of some users."""

    users: Indices  # [n] which users, ascending
    events: Indices  # [n, t] which events of the batch, oldest first, 0 where masked
    mask: NDArray[np.bool_]  # [n, t]


def rounds(owner: Indices, width: int) -> Iterator[Round]:
    """Split events into rounds of at most `width` events a user.

    `owner` [m] names the user of each event, in the order of the batch. Every event is in exactly
    one round; a user's events keep their order over places and rounds. Users with about as many
    events share a round, so that at most half of its places are empty.
    """
    order = np.argsort(owner, kind="stable")
    users, starts, counts = np.unique(owner[order], return_index=True, return_counts=True)
    while len(users):
        left = np.minimum(counts, width)
        size = np.ceil(np.log2(left)).astype(np.int64)
        for one in np.unique(size):
            yield _round(order, *(x[size == one] for x in (users, starts, left)))
        more = counts > width
        users, starts, counts = users[more], starts[more] + width, counts[more] - width


def _round(order: Indices, users: Indices, starts: Indices, counts: Indices) -> Round:
    places = np.arange(int(counts.max()))
    mask = places < counts[:, None]
    return Round(users, order[np.where(mask, starts[:, None] + places, 0)], mask)
