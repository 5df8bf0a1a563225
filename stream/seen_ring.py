"""The ring of a record: what users acted on before the events of the support set.

Each item once, or where items may come again every event that was liked, with its day. Letters in
shape comments: n users, L seen items.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.user_layout import DAY_BITS, Halves, Hashes, Records, days_of, has_days, low_half

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

LATE = 32
"""Days by which an older item may be newer than the one after it in the ring."""


def remember(new: Records, line: NDArray[np.void], evicted: Bools, repeats: bool) -> None:
    """Put items that left the support set in the ring of seen ones."""
    wanted = evicted & (line["item"] != 0)
    good = np.flatnonzero(wanted & (line["value"] > 0) if repeats else wanted)[::-1]
    if not len(good):
        return
    user, item = good // line.shape[1], line["item"].reshape(-1)[good]
    low = low_half(item)
    if not repeats:
        fresh = _unknown(new, user, item, low)
        good, user, low = good[fresh], user[fresh], low[fresh]
    place = (new["remembered"][user].astype(np.int64) + _rank(user)) % new["seen"].shape[1]
    new["seen"]["item"][user, place] = low
    if has_days(new):
        days = days_of(line["time"].reshape(-1)[good])
        new["seen"]["day"][user, place] = days & DAY_BITS
    new["remembered"] += np.bincount(user, minlength=len(new)).astype(np.uint64)


def older_seen(records: Records) -> Halves:
    """Low halves [n, L] of the seen items that left the support set, 0 = none; L as needed.

    The one that left last comes first.
    """
    places, there = _ring(records)
    found = np.take_along_axis(records["seen"]["item"], places, 1)
    return np.where(there, found, np.uint32(0))


def seen_hashes(records: Records) -> Halves:
    """Low halves [n, L] of all items that were acted on, 0 = none; L as needed."""
    support = records["support"]
    width = int((support["item"] != 0).sum(1).max(initial=0))
    recent = low_half(support["item"][:, :width])
    return np.concatenate([recent, older_seen(records)], axis=1)


def seen_days(records: Records) -> Ints:
    """Days by the calendar (UTC) from each of `seen_hashes` to the newest event: [n, L], L > 0.

    Older items keep their day modulo 256: each is taken to be as little as possible before the
    next one, or up to LATE days after it, as late events are. What holds no item has any number.
    The records are those of a layout with `repeats`.
    """
    support = records["support"]
    count = (support["item"] != 0).sum(1)
    recent = days_of(support["time"][:, : max(int(count.max(initial=0)), 1)])
    oldest = np.take_along_axis(recent, np.maximum(count - 1, 0)[:, None], 1)
    places, _ = _ring(records)
    older = np.take_along_axis(records["seen"]["day"], places, 1).astype(np.int64)
    steps = -np.diff(older, axis=1, prepend=oldest & DAY_BITS)
    back = (((steps + LATE) & DAY_BITS) - LATE).cumsum(1)
    newest = recent[:, :1]
    since = np.concatenate([newest - recent, newest - oldest + back], axis=1)
    return np.asarray(np.maximum(since, 0))


def _ring(records: Records) -> tuple[Ints, Bools]:
    """Places [n, L] in the ring, the newest first, and which of them hold an item."""
    size = records["seen"].shape[1]
    put = records["remembered"].astype(np.int64)[:, None]
    back = put - 1 - np.arange(min(int(put.max(initial=0)), size))
    return back % size, back >= 0


def _unknown(new: Records, user: Ints, item: Hashes, low: Halves) -> Ints:
    """Places of those items [m] that are neither in the support set nor in the ring, each once."""
    support = new["support"][user]
    known = (new["seen"]["item"][user] == low[:, None]).any(1)
    known |= (support["item"] == item[:, None]).any(1)
    rest = np.flatnonzero(~known)
    pairs = (user.astype(np.uint64) << np.uint64(32) | low)[rest]
    _, first = np.unique(pairs, return_index=True)
    return np.asarray(rest[np.sort(first)])


def _rank(groups: Ints) -> Ints:
    """The place of each element in its run of equal ones."""
    index = np.arange(len(groups))
    starts = np.where(np.diff(groups, prepend=-1) != 0, index, 0)
    return index - np.maximum.accumulate(starts)
