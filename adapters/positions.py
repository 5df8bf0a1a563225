"""The positions of a log: what was known of a user at each event, and what the user did next.

Everything is computed for all positions at once from the sorted log; nothing after a position is
used but the relevant items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from adapters import adapter, profiles
from adapters.episodes import Log
from adapters.impressions import Fates
from adapters.repeats import DAY
from adapters.signals import PREVIOUS, Bools, Ints
from adapters.types import Block, Meta, State, Support, UserView

Moment = Literal["request", "published"]
"""`request`: the list just before an event is learned from. `published`: just after."""

RING = 576
"""Latest events of a user whose items, where the evidence was positive, are not ranked again."""

WINDOW = 64
"""Events of a user that one call of the adapter takes."""

TOGETHER = 128
"""Users that one call of the adapter takes; all are padded to the longest history among them."""

FAR = 10_000.0
"""Days to where there is no event."""

NEW = 86_400.0
"""Seconds since an item's first event for which it is new."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """A log with each user's events side by side; `order` are places in the log."""

    log: Log
    order: Ints  # [m] log places sorted by user, then time
    place: Ints  # [m] inverse of order
    start: Ints  # [m] where the user of a sorted event begins
    fates: Fates | None  # of what was shown; None = the log does not tell

    @classmethod
    def of(cls, log: Log) -> Sequences:
        """Group the events by user, each user's in time order."""
        order = np.argsort(log.users, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        users, shown = log.users[order], log.shown
        sorted_log = users, log.items[order], log.times[order]
        fates = None if shown is None else Fates.of(shown, *sorted_log)
        return cls(log, order, place, np.searchsorted(users, users), fates)

    def ends(self, events: Ints, moment: Moment, delay: float = 0.0) -> Ints:
        """The sorted places before which lies what is known of the users of these events.

        With a delay in seconds, an event is known once it is that old.
        """
        at = self.place[events]
        if delay <= 0:
            return at + (moment == "published")
        times, low, high = self.log.times[self.order], self.start[at], at
        while (low < high).any():
            middle = (low + high) // 2
            old = (times[middle] + delay <= self.log.times[events]) & (low < high)
            low, high = np.where(old, middle + 1, low), np.where(old, high, middle)
        return low

    def tied(self, events: Ints) -> Bools:
        """Which of these events (log places) share user and time with the user's event before."""
        at = self.place[events]
        before = self.order[np.maximum(at - 1, 0)]
        same = self.log.times[before] == self.log.times[events]
        return np.asarray(same & (at > self.start[at]))

    def back(self, ends: Ints, depth: int, keep: Bools | None = None) -> Ints:
        """Log places of the events before sorted place `ends` of the same user, newest first.

        [len(ends), depth], -1 = none. With `keep` [m] in sorted order only those are taken.
        """
        first = self.start[np.minimum(ends, len(self.start) - 1)] if len(ends) else ends
        kept = np.arange(len(self.order)) if keep is None else np.flatnonzero(keep)
        at = np.searchsorted(kept, ends)[:, None] - 1 - np.arange(depth)
        sorted_place = kept[np.maximum(at, 0)] if len(kept) else np.zeros_like(at)
        good = (at >= 0) & (sorted_place >= first[:, None])
        return np.asarray(np.where(good, self.order[sorted_place], -1))


def support_of(log: Log, places: Ints) -> Support:
    """The support set of log places [n, S], -1 = empty."""
    none, at = places < 0, np.maximum(places, 0)
    return Support(
        items=torch.from_numpy(np.where(none, -1, log.items[at])),
        values=torch.from_numpy(np.where(none, 0, log.values[at]).astype(np.float32)),
        times=torch.from_numpy(np.where(none, 0.0, log.times[at])),
    )


def views(
    meta: Meta,
    seq: Sequences,
    events: Ints,
    moment: Moment,
    mask_seen: bool,
    experts: int,
    delay: float = 0.0,
) -> UserView:
    """What is known of the users of these events (places in the log), without interests."""
    first = seq.start[seq.place[events]]
    ends = seq.ends(events, moment, delay)
    shots = ends - first
    depth = int(min(RING, max(shots.max(initial=0), 1)))
    past = _back_from(seq, ends, first, depth)
    seen = np.where(past >= 0, seq.log.items[np.maximum(past, 0)], -1)
    if not mask_seen:  # what may come again is what was liked
        seen = np.where(seq.log.values[np.maximum(past, 0)] > 0, seen, -1)
    support = _back_from(seq, ends, first, meta.config.support)
    n = len(events)
    return UserView(
        interests=torch.zeros(n, 1, 0),
        shots=torch.from_numpy(shots.astype(np.int64)),
        support=support_of(seq.log, support),
        seen=torch.from_numpy(seen),
        shown=_ignored(seq, events, ends),
        delta=torch.zeros(n, experts),
        told=None if seq.log.profiles is None else told_of(meta, seq, events),
        days=None if mask_seen else _days(seq.log, past),
        repeats=not mask_seen,
    )


def _days(log: Log, past: Ints) -> Tensor:
    """Days from each of these events (places in the log, -1 = none) to the newest: [n, L].

    By the calendar, as a record tells them.
    """
    day = np.where(past >= 0, log.times[np.maximum(past, 0)] // DAY, np.nan)
    since = np.nan_to_num(day[:, :1] - day, nan=FAR).clip(0, FAR)
    return torch.from_numpy(since.astype(np.float32))


def _ignored(seq: Sequences, events: Ints, ends: Ints) -> Tensor:
    """Rows [n, R] shown and not acted on before places `ends` of the users of these events."""
    if seq.fates is None:
        return torch.full((len(events), 1), -1)
    log = seq.log
    return torch.from_numpy(seq.fates.ignored(log.users[events], ends, log.times[events]))


def histories(
    seq: Sequences, events: Ints, moment: Moment, most: int, delay: float = 0.0
) -> Support:
    """The latest events, at most `most`, of the users of these events (places in the log)."""
    first, ends = seq.start[seq.place[events]], seq.ends(events, moment, delay)
    depth = int(min(most, max((ends - first).max(initial=0), 1)))
    return support_of(seq.log, _back_from(seq, ends, first, depth))


def relevant(seq: Sequences, events: Ints, moment: Moment, horizon: int, mask_seen: bool) -> Ints:
    """The next `horizon` positive items of each event's user: [n, horizon], -1 = none.

    With `request` the event itself is the first of them. With `mask_seen` an item counts only
    where its user meets it for the first time. A horizon of 1 is the next positive with all that
    the user took at the same time, such as a basket: [n, size of the largest].
    """
    log = seq.log
    users, items = log.users[seq.order], log.items[seq.order]
    target = (log.values[seq.order] > 0) & (items >= 0)
    if mask_seen:
        first = np.zeros(len(users), np.bool_)
        first[np.unique(np.stack([users, items]), axis=1, return_index=True)[1]] = True
        target &= first
    places = np.flatnonzero(target)
    begin = seq.place[events] + (moment == "published")
    next_one = np.searchsorted(places, begin)
    counts = _tied_after(seq, places)[next_one] if horizon == 1 else np.full(len(begin), horizon)
    width = int(counts.max(initial=horizon))
    at = next_one[:, None] + np.where(
        np.arange(width) < counts[:, None], np.arange(width), len(log)
    )
    inside = at < len(places)
    chosen = places[np.minimum(at, len(places) - 1)] if len(places) else np.zeros_like(at)
    inside &= users[chosen] == log.users[events][:, None]
    found = np.where(inside, items[chosen], -1)
    equal = found[:, :, None] == found[:, None, :]
    return np.asarray(np.where(np.tril(equal, -1).any(2), -1, found))


def _tied_after(seq: Sequences, places: Ints) -> Ints:
    """How many of these sorted places from each on share its user and time; 1 beyond the last."""
    users, times = (column[seq.order][places] for column in (seq.log.users, seq.log.times))
    new = (np.diff(users) != 0) | (np.diff(times) != 0)
    ends = np.append(np.flatnonzero(new) + 1, len(places))
    at = np.arange(len(places))
    return np.append(ends[np.searchsorted(ends, at, side="right")] - at, 1)


def new_items(log: Log, events: Ints, following: Ints) -> Bools:
    """Where the item [n] that follows an event was first met less than a day before the event.

    Events are places in the log [n]; item -1 is none and not new.
    """
    first = np.full(int(max(log.items.max(initial=-1), following.max(initial=-1))) + 2, np.inf)
    np.minimum.at(first, log.items, log.times)
    return np.asarray((following >= 0) & (log.times[events] - first[following] < NEW))


def previous_in_log(seq: Sequences) -> Ints:
    """Earlier positive items of every event, as `signals.previous_items` finds them: [m, P]."""
    log = seq.log
    positive = ((log.values > 0) & (log.items >= 0))[seq.order]
    near = seq.back(seq.place, PREVIOUS, positive)
    rows = np.where(near < 0, -1, log.items[np.maximum(near, 0)])
    equal = rows[:, :, None] == rows[:, None, :]
    repeated = np.tril(equal, -1).any(2) | (rows == log.items[:, None])
    return np.asarray(np.where(repeated, -1, rows))


def profiled(seq: Sequences, events: Ints) -> Bools:
    """Whether the users of these events (places in the log) began with a profile."""
    return np.asarray((_told(seq, seq.start[seq.place[events]]) >= 0).any(1))


def told_of(meta: Meta, seq: Sequences, events: Ints) -> Tensor:
    """Users [n] bool of these events whose profile, if any, says something to the model."""
    return profiles.known(meta, torch.from_numpy(_told(seq, seq.start[seq.place[events]])))


def _told(seq: Sequences, starts: Ints) -> Ints:
    """Attributes [n, P] of users' profiles when they first acted, -1 = none.

    `starts` are sorted places of first events.
    """
    log = seq.log
    if log.profiles is None:
        return np.full((len(starts), 1), -1)
    first = seq.order[starts]
    return log.profiles.known(log.users[first], log.times[first])


def interests_at(
    meta: Meta,
    seq: Sequences,
    events: Ints,
    moment: Moment,
    vectors: Tensor,
    delay: float = 0.0,
) -> Tensor:
    """What `adapter.read` gives at each event: [n, K, d].

    Histories go through `adapter.unroll` in windows of the same length, users with histories of
    about the same length together; between windows the state is rounded as a record rounds it.
    """
    out = torch.zeros(len(events), meta.config.interests, meta.config.dim)
    at = seq.ends(events, moment, delay)
    first = seq.start[seq.place[events]]
    starts, owner = np.unique(first, return_inverse=True)
    need = np.zeros(len(starts), np.int64)
    np.maximum.at(need, owner, at - first)
    ranked = np.argsort(need, kind="stable")
    for chunk in np.array_split(ranked, max(1, len(ranked) // TOGETHER)):
        mine = np.flatnonzero(np.isin(owner, chunk))
        chunk = np.sort(chunk)
        users = np.searchsorted(chunk, owner[mine])
        asked = (users, (at - first)[mine])
        out[mine] = _read_at(meta, seq, starts[chunk], need[chunk], asked, vectors)
    return out


def rebuilt_at(
    meta: Meta,
    seq: Sequences,
    events: Ints,
    moment: Moment,
    vectors: Tensor,
    delay: float,
    own: Tensor,
) -> Tensor:
    """What `interests_at` found (`own`), but adapters rebuilt from the support set: [n, K, d].

    Up to `ModelConfig.support` events nothing is lost, and what was found stays.
    """
    width = meta.config.support
    ends = seq.ends(events, moment, delay)
    shots = ends - seq.start[seq.place[events]]
    longer = np.flatnonzero(shots > width)
    if not len(longer):
        return own
    out = own.clone()
    for chunk in np.array_split(longer, len(longer) // TOGETHER + 1):
        block = _block(seq, ends[chunk] - width, np.full(len(chunk), width), width)
        state = adapter.rebuilt(meta, block, torch.from_numpy(shots[chunk]), vectors)
        out[chunk] = adapter.read(meta, _rounded(meta, state))
    return out


def _read_at(
    meta: Meta,
    seq: Sequences,
    starts: Ints,
    need: Ints,
    asked: tuple[Ints, Ints],
    vectors: Tensor,
) -> Tensor:
    """Interests [m, K, d] of users `asked[0]` [m] after so many, `asked[1]` [m], of their events.

    Of n users with `starts` [n] in the order of the log and `need` [n] events at most. Who needs
    no more is left out of further windows, so that one long history costs what it holds itself.
    """
    users, counts = asked
    state = adapter.init(
        meta, len(starts), profiles.vectors(meta, torch.from_numpy(_told(seq, starts)))
    )
    out = adapter.read(meta, state)[torch.from_numpy(users)]
    going = np.arange(len(starts))
    for begin in range(0, int(need.max(initial=0)), WINDOW):
        further = need[going] > begin
        if not further.all():
            going = going[further]
            state = {name: value[torch.from_numpy(further)] for name, value in state.items()}
        length = min(WINDOW, int(need.max()) - begin)
        lengths = np.clip(need[going] - begin, 0, length)
        block = _block(seq, starts[going] + begin, lengths, length)
        state, interests = adapter.unroll(meta, state, block, vectors)
        state = _rounded(meta, state)
        here = np.flatnonzero((counts > begin) & (counts <= begin + length))
        out[here] = interests[np.searchsorted(going, users[here]), counts[here] - begin - 1]
    return out


def _block(seq: Sequences, begin: Ints, lengths: Ints, width: int) -> Block:
    step = np.arange(width)
    mask = step < lengths[:, None]
    at = seq.order[np.where(mask, begin[:, None] + step, 0)]
    log = seq.log
    return Block(
        items=torch.from_numpy(np.where(mask, log.items[at], -1)),
        actions=torch.from_numpy(log.actions[at]),
        values=torch.from_numpy(log.values[at]),
        times=torch.from_numpy(log.times[at]),
        mask=torch.from_numpy(mask),
    )


def _rounded(meta: Meta, state: State) -> State:
    kinds = adapter.fields(meta.config)
    return {name: value.to(kinds[name].dtype).to(value.dtype) for name, value in state.items()}


def _back_from(seq: Sequences, ends: Ints, first: Ints, depth: int) -> Ints:
    at = ends[:, None] - 1 - np.arange(depth)
    good = at >= first[:, None]
    return np.asarray(np.where(good, seq.order[np.maximum(at, 0)], -1))
