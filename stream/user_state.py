"""The fold: what events and impressions do to the records of the users of a batch.

Pure functions over `Records` (see `user_layout`): records in, new records out, all users at once.
Letters in shape comments: n users, t events of a user in this batch (oldest first, padded), S
places in the support set, R impressions, L seen items.

Events are folded in the order in which they arrive. A late event, older than the newest one in
the support set, takes the newest place; its own time is kept, and `last_time` never goes back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from stream.seen_ring import remember
from stream.user_layout import (
    EVENT,
    HAS_ADAPTER,
    IMPRESSIONS,
    MAX_BYTES,
    Halves,
    Hashes,
    Layout,
    Records,
    copied,
    has_adapter,
    low_half,
    needs_rebuild,
    picked,
    put,
)

__all__ = [
    "EVENT",
    "HAS_ADAPTER",
    "IGNORED",
    "IMPRESSIONS",
    "MAX_BYTES",
    "PENDING",
    "USER",
    "Events",
    "Layout",
    "Records",
    "copied",
    "duplicate_mask",
    "excess_mask",
    "fold_events",
    "fold_impressions",
    "fold_profiles",
    "has_adapter",
    "hash_id",
    "low_half",
    "needs_rebuild",
    "picked",
    "profile_buckets",
    "put",
    "resolve_impressions",
    "shown_hashes",
    "stamp",
    "support_events",
    "user_key",
]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

USER = b"u"
"""First byte of a user's key in a store; in the topic `state` the key is the bare id."""

PENDING, IGNORED = 1, 2
"""Status of an impression: waiting for the feedback window, or shown and not acted on."""

_LAST_SECOND = 2**32 - 1
_MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Events:
    """The next events of n users, oldest first; a masked place changes nothing."""

    items: Hashes  # [n, t]
    actions: NDArray[np.uint8]  # [n, t] place in the configured actions
    values: NDArray[np.float32]  # [n, t] evidence, negative = dislike
    times: Ints  # [n, t] ms of event time
    ids: Hashes  # [n, t] hash of the event's id
    mask: Bools  # [n, t]


def hash_id(identifier: str | bytes) -> int:
    """The 64-bit hash of an item's or event's id; never 0, which means empty."""
    data = identifier.encode() if isinstance(identifier, str) else identifier
    return xxhash.xxh3_64_intdigest(data) or 1


def user_key(user: bytes) -> bytes:
    """The key of a user's record in a store."""
    return USER + user


# -- events ----------------------------------------------------------------------------------


def duplicate_mask(records: Records, ids: Hashes, mask: Bools) -> Bools:
    """Events [n, t] that the support set holds already, or that stand earlier in this block."""
    user, place = np.nonzero(mask)
    id_ = ids[user, place]
    again = (records["support"]["event"][user] == id_[:, None]).any(1)
    order = np.lexsort((id_, user))  # stable: the first of equal ones stays first
    again[order[1:]] |= (np.diff(user[order]) == 0) & (id_[order[1:]] == id_[order[:-1]])
    out = np.zeros_like(mask)
    out[user, place] = again
    return out


def excess_mask(records: Records, times: Ints, mask: Bools, most: int) -> Bools:
    """Events [n, t] with `most` others of the same user within a minute before or after them.

    Those in the support set count, and those of this block that are accepted; so the answer
    depends on the events alone, not on how they came in batches.
    """
    support = records["support"]
    held = support["item"] != 0
    out = np.zeros_like(mask)
    for place in range(mask.shape[1]):
        at = times[:, place, None]
        near = (held & (np.abs(support["time"] - at) < _MINUTE_MS)).sum(1)
        accepted = mask[:, :place] & ~out[:, :place]
        near += (accepted & (np.abs(times[:, :place] - at) < _MINUTE_MS)).sum(1)
        out[:, place] = mask[:, place] & (near >= most)
    return out


def fold_events(records: Records, events: Events, *, repeats: bool = False) -> Records:
    """Put events in the support set, newest first, and count them as shots.

    What falls out of the support set goes to the ring of seen items: each item once, or with
    `repeats` each event that was liked, so that it can be told what a user takes again.
    Duplicates must be masked (see `duplicate_mask`).
    """
    new = copied(records)
    count = events.mask.sum(1)
    line = np.concatenate([_entries(events), _raw(records["support"])], axis=1)  # newest first
    source, evicted = _push(events.mask[:, ::-1], count, records["support"].shape[1])
    _raw(new["support"])[:] = _taken(line, source)
    remember(new, line.view(EVENT), evicted, repeats)
    _count(new, events, count)
    return new


def stamp(records: Records, offsets: Ints, model: int) -> Records:
    """The records with their next version, for events up to `offsets` [n] of their partition.

    The version is max(previous + 1, offset + 1): it never goes back. `model` is the hash of the
    model's version.
    """
    new = copied(records)
    new["state_version"] = np.maximum(
        records["state_version"] + np.uint64(1), (offsets + 1).astype(np.uint64)
    )
    new["model"] = model
    return new


def support_events(records: Records) -> Events:
    """The support set as events, oldest first, padded right: what an adapter is rebuilt from."""
    support = records["support"]
    count = (support["item"] != 0).sum(1)
    place = count[:, None] - 1 - np.arange(int(count.max(initial=0)))
    found = _taken(_raw(support), np.maximum(place, 0)).view(EVENT)
    return Events(
        items=found["item"].copy(),
        actions=found["action"].copy(),
        values=found["value"].copy(),
        times=found["time"].copy(),
        ids=found["event"].copy(),
        mask=place >= 0,
    )


def _raw(entries: NDArray[np.void]) -> NDArray[np.void]:
    """Entries as opaque bytes, which are moved without a look at their fields."""
    return entries.view(f"V{entries.dtype.itemsize}")


def _taken(raw: NDArray[np.void], places: Ints) -> NDArray[np.void]:
    """The opaque entries [n, m] at `places` [n, k] of their rows: [n, k]."""
    n, m = raw.shape
    rows = np.ascontiguousarray(raw).reshape(-1, 1).view(np.uint8)
    flat = (places + m * np.arange(n)[:, None]).reshape(-1)
    return np.asarray(rows.take(flat, axis=0).view(raw.dtype).reshape(places.shape))


def _entries(events: Events) -> NDArray[np.void]:
    """The events as entries of a support set, newest first: [n, t]."""
    entries = np.zeros(events.mask.shape, EVENT)
    entries["item"] = events.items
    entries["event"] = events.ids
    entries["time"] = events.times
    entries["value"] = events.values
    entries["action"] = events.actions
    return _raw(entries[:, ::-1])


def _push(mask: Bools, count: Ints, places: int) -> tuple[Ints, Bools]:
    """Where each place of the new ring comes from, and what falls out of it.

    Both speak of the line of t masked new entries [n, t], newest first, and the `places` old ones:
    source [n, places], evicted [n, t + places].
    """
    t = mask.shape[1]
    rank = mask.cumsum(1) - 1  # new entries that are newer
    source = np.arange(places) - count[:, None] + t
    user, place = np.nonzero(mask & (rank < places))
    source[user, rank[user, place]] = place
    stays = places - np.minimum(count, places)
    evicted = np.concatenate([mask & (rank >= places), np.arange(places) >= stays[:, None]], axis=1)
    return source, evicted


def _count(new: Records, events: Events, count: Ints) -> None:
    """Shots and times; users without events keep theirs."""
    some = count > 0
    far = np.iinfo(np.int64)
    first = np.where(events.mask, events.times, far.max).min(1, initial=far.max)
    last = np.where(events.mask, events.times, far.min).max(1, initial=far.min)
    known = new["shots"] > 0
    first = np.where(known, np.minimum(first, new["first_time"]), first)
    last = np.where(known, np.maximum(last, new["last_time"]), last)
    new["first_time"] = np.where(some, first, new["first_time"])
    new["last_time"] = np.where(some, last, new["last_time"])
    new["shots"] += count.astype(np.uint64)


# -- profiles --------------------------------------------------------------------------------


def fold_profiles(records: Records, buckets: Ints, times: Ints) -> Records:
    """Replace users' profiles by attributes [n, P], -1 = none; `times` [n] are ms of event time.

    Until a user acts, the latest profile is the last thing heard of him.
    """
    new = copied(records)
    new["profile"] = buckets + 1
    idle = records["shots"] == 0
    new["last_time"] = np.where(idle, np.maximum(records["last_time"], times), records["last_time"])
    return new


def profile_buckets(records: Records, wanted: Bools | None = None) -> Ints:
    """Attributes [n, P] that users' profiles name, -1 = none; of the `wanted` users [n] alone."""
    buckets = records["profile"].astype(np.int64) - 1
    return buckets if wanted is None else np.where(wanted[:, None], buckets, -1)


# -- impressions -----------------------------------------------------------------------------


def fold_impressions(records: Records, items: Hashes, times: Ints, mask: Bools) -> Records:
    """Put shown items [n, t], most important first, in front of the ring of impressions.

    `times` [n, t] are ms of event time. The ring keeps the first 32; neither shots nor the support
    set change.
    """
    new = copied(records)
    shown = np.zeros(mask.shape, new["impressions"].dtype)
    shown["item"] = low_half(items)
    shown["time"] = _seconds(times)
    shown["status"] = PENDING
    line = np.concatenate([_raw(shown), _raw(records["impressions"])], axis=1)
    source, _ = _push(mask, mask.sum(1), IMPRESSIONS)
    _raw(new["impressions"])[:] = _taken(line, source)
    return new


def resolve_impressions(
    records: Records, now: Ints, window: float, acted: Hashes, mask: Bools
) -> Records:
    """Settle what was shown, at a user's next event: `now` [n] ms of event time.

    Impressions of items that were acted on (`acted` [n, t]) go away; others that are older than
    `window` seconds count as ignored from now on; the rest waits for the next event.
    """
    busy = np.flatnonzero(records["impressions"]["status"].any(1))
    ring = records["impressions"][busy]
    user, place = np.nonzero(mask[busy])
    hit = ring["item"][user] == low_half(acted[busy[user], place])[:, None]  # [m, R]
    gone = np.zeros(ring.shape, np.bool_)
    np.logical_or.at(gone, user, hit)
    age = _seconds(now)[busy, None].astype(np.int64) - ring["time"]
    due = (ring["status"] == PENDING) & (age > window)
    new = copied(records)
    new["impressions"]["status"][busy] = np.where(gone, 0, np.where(due, IGNORED, ring["status"]))
    for name in ("item", "time"):
        new["impressions"][name][busy] = np.where(gone, 0, ring[name])
    return new


def shown_hashes(records: Records) -> Halves:
    """Low halves [n, R] of items shown and not acted on, 0 = none; repeats add up; R as needed."""
    ring = records["impressions"]
    ignored = ring["status"] == IGNORED
    columns = ignored.any(0)
    return np.where(ignored, ring["item"], np.uint32(0))[:, columns]


def _seconds(times: Ints) -> NDArray[np.uint32]:
    return np.clip(times // 1000, 0, _LAST_SECOND).astype(np.uint32)
