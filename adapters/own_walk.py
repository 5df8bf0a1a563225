"""Users' own weights along a log: what a worker would have in its records at every moment.

They are zero where the walk begins: at the end of the prior, where the stream's signals begin too,
or with the log. A request is all that a user did at one time; its newest liked item takes one step,
on the view before the request.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from adapters import arrivals, experts, own_weights
from adapters.experts import Prior
from adapters.own_weights import Evidence
from adapters.positions import Moment, Sequences, interests_at, views
from adapters.signals import Ints
from adapters.types import Catalogue, Meta
from adapters.walking import AT_ONCE, Delays, arranged, walk


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests with something liked, sorted by user, then time."""

    events: Ints  # [r] places in the log of their first events
    last: Ints  # [r] sorted places of their last events
    taken: Ints  # [r] rows of their newest liked items
    users: Ints  # [r]

    @classmethod
    def of(cls, seq: Sequences, users: Ints, begin: float, until: float) -> Requests:
        """Those of `users` from `begin` to `until` (unix seconds, both included)."""
        log = seq.log
        owner, rows, times = (x[seq.order] for x in (log.users, log.items, log.times))
        new = np.ones(len(log), np.bool_)
        new[1:] = (np.diff(owner) != 0) | (np.diff(times) != 0)
        request = np.cumsum(new) - 1
        liked = (log.values[seq.order] > 0) & (rows >= 0) & np.isin(owner, users)
        liked &= (times >= begin) & (times <= until)
        places = np.flatnonzero(liked)
        newest = places[
            np.append(np.diff(request[places]) != 0, np.ones(min(len(places), 1), np.bool_))
        ]
        starts = np.flatnonzero(new)
        ends = np.append(starts[1:], len(log)) - 1
        mine = request[newest]
        return cls(seq.order[starts[mine]], ends[mine], rows[newest], owner[newest])

    def before(self, ends: Ints, users: Ints) -> Ints:
        """The last request [n] of each user that ended before sorted place `ends`, -1 = none."""
        at = np.searchsorted(self.last, ends) - 1
        good = (at >= 0) & (self.users[np.maximum(at, 0)] == users) if len(self.last) else at >= 0
        return np.where(good, at, -1)

    def turns(self, some: Ints) -> Iterator[Ints]:
        """Parts of some requests, each with one of a user at most, in the order of time."""
        some = np.sort(some)
        owner, index = self.users[some], np.arange(len(some))
        starts = np.where(np.diff(owner, prepend=-1) != 0, index, 0)
        turn = index - np.maximum.accumulate(starts)
        for t in range(int(turn.max(initial=-1)) + 1):
            yield some[turn == t]


def evidence(
    meta: Meta,
    seq: Sequences,
    requests: Requests,
    catalogue: Catalogue,
    prior: Prior | None,
    mask_seen: bool,
    delays: Delays = AT_ONCE,
) -> Iterator[tuple[Ints, Evidence]]:
    """Bucket by bucket: requests (their places in `requests`), and what they say."""
    by_time = np.argsort(requests.events)
    order, groups = arranged(seq, requests.events[by_time], meta.config.bucket, delays)
    order = by_time[order]
    events = requests.events[order]
    interests = interests_at(meta, seq, events, "request", catalogue.vectors)
    size = len(experts.names(meta.config))
    for found in walk(meta, seq, events, catalogue, prior, delays, groups):
        at = events[found.inside]
        view = views(meta, seq, at, "request", mask_seen, size)
        view = replace(view, interests=interests[found.inside])
        asked, now = torch.from_numpy(seq.log.times[at]), found.shared.now
        view = arrivals.hide_unborn(view, found.prepared, now, asked)
        mine, drawn = order[found.inside], own_weights.sampled(found.prepared, now)
        taken = torch.from_numpy(requests.taken[mine])
        yield mine, own_weights.evidence(meta, found.prepared, view, taken, drawn)


def at_events(
    meta: Meta,
    seq: Sequences,
    events: Ints,
    catalogue: Catalogue,
    prior: Prior | None,
    mask_seen: bool,
    moment: Moment = "request",
    delays: Delays = AT_ONCE,
) -> Tensor:
    """Own weights [n, E] of the users of these events (places in the log [n]) when they act."""
    size = len(experts.names(meta.config))
    if not own_weights.active(meta) or not len(events):
        return torch.zeros(len(events), size)
    begin = -np.inf if prior is None else prior.time
    users, until = np.unique(seq.log.users[events]), float(seq.log.times[events].max())
    requests = Requests.of(seq, users, begin, until)
    after = torch.zeros(len(requests.events), size)
    current = torch.zeros(len(users), size)
    for mine, found in evidence(meta, seq, requests, catalogue, prior, mask_seen, delays):
        place = np.zeros(len(requests.events), np.int64)
        place[mine] = np.arange(len(mine))
        for turn in requests.turns(mine):
            who = np.searchsorted(users, requests.users[turn])
            part = found.part(torch.from_numpy(place[turn]))
            after[turn] = own_weights.step(meta, part, current[who])
            current[who] = after[turn]
    at = requests.before(seq.ends(events, moment, delays.label), seq.log.users[events])
    return looked_up(after, at)


def looked_up(after: Tensor, at: Ints) -> Tensor:
    """Own weights [n, E] after the requests `at` [n] of those [r, E]; zero for -1."""
    none = torch.zeros(1, after.shape[1])
    return torch.cat([after, none])[torch.from_numpy(at)]
