"""What a batch does to the impressions of its users: lists shown and items acted on, in order.

What the ring of a user says depends on the order of events alone, not on how they came in
batches; `adapters.impressions` finds the same in a log. Letters in shape comments: n users, r
lists, m interactions of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapters.impressions import RING, pairs_key
from stream import user_state
from stream.message_types import Ranking
from stream.rounds import rounds
from stream.user_layout import Records, picked, put

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Lists:
    """What users were shown, in the order in which it came."""

    owner: Ints  # [r] which user
    place: Ints  # [r] place of the record in the batch
    events: Sequence[Ranking]  # r of them


@dataclass(frozen=True, slots=True)
class Acts:
    """Interactions that were learned from, those of a user in the order in which they came."""

    owner: Ints  # [m] which user
    place: Ints  # [m] place of the record in the batch
    items: NDArray[np.uint64]  # [m] hashes
    times: Ints  # [m] ms

    def part(self, chosen: Ints) -> Acts:
        """Some of them."""
        return Acts(*(getattr(self, name)[chosen] for name in Acts.__slots__))


def settle(records: Records, lists: Lists, acts: Acts, window: float) -> None:
    """Put lists into the rings of their users and settle them at each act; in place.

    Between two lists of a user acts can be taken together: what is acted on goes away, and the
    latest time decides what is over. `window` is in seconds.
    """
    order = np.argsort(pairs_key(lists.owner, lists.place), kind="stable")
    keys = pairs_key(lists.owner, lists.place)[order]
    first = np.searchsorted(keys, pairs_key(lists.owner, np.full(len(order), -1)))
    turn = np.empty(len(order), np.int64)  # which of the user's lists, from 1
    turn[order] = np.arange(len(order)) - first[order] + 1
    before = np.searchsorted(keys, pairs_key(acts.owner, acts.place))
    before -= np.searchsorted(keys, pairs_key(acts.owner, np.full(len(acts.owner), -1)))
    for now in range(int(turn.max(initial=0)) + 1):
        if now:
            _show(records, lists, np.flatnonzero(turn == now))
        status = records["impressions"]["status"][acts.owner]
        due = np.flatnonzero((before == now) & (status != 0).any(1))
        _resolve(records, acts.part(due), window)


def _show(records: Records, lists: Lists, chosen: Ints) -> None:
    """One list each for some users."""
    kept = [lists.events[i].items[:RING] for i in chosen.tolist()]
    items = np.zeros((len(kept), max(map(len, kept))), np.uint64)
    for row, names in zip(items, kept, strict=True):
        row[: len(names)] = [user_state.hash_id(name) for name in names]
    at = np.array([lists.events[i].timestamp for i in chosen.tolist()], np.int64)
    times = np.broadcast_to(at[:, None], items.shape)
    users = lists.owner[chosen]
    after = user_state.fold_impressions(picked(records, users), items, times, items != 0)
    put(records, users, after)


def _resolve(records: Records, acts: Acts, window: float) -> None:
    """Acts of users to whom nothing was shown in between."""
    for part in rounds(acts.owner, max(len(acts.owner), 1)):
        acted = acts.items[part.events]
        now = np.where(part.mask, acts.times[part.events], 0).max(1)
        before = picked(records, part.users)
        after = user_state.resolve_impressions(before, now, window, acted, part.mask)
        put(records, part.users, after)
