"""Histories in time order, and the episodes that the outer loop draws from them.

An episode is a window of one user's events. At place p the user has done the first p events of
the window, and the next positive event is to be predicted; place 0 is the zero-shot list and
counts only where the window begins with the user's first event.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.impressions import Impressions
from adapters.profiles import Profiles, at_start
from adapters.types import Block


class LeakageError(ValueError):
    """Training would see what it is to predict. Split by time first; see `refuse_leakage`."""


@dataclass(frozen=True, slots=True)
class Log:
    """Events of all users as columns, in time order. Raises `ValueError` if they are not.

    What users were shown and their profiles stand beside the events and stay whole when events
    are selected: whoever reads them takes what came before the moment in question.
    """

    users: np.ndarray  # [m] int64 any numbers >= 0
    items: np.ndarray  # [m] int64 rows of the catalogue, -1 = not in it
    actions: np.ndarray  # [m] int64 index into ModelConfig.actions
    values: np.ndarray  # [m] float32 evidence, negative = dislike
    times: np.ndarray  # [m] float64 unix seconds
    shown: Impressions | None = field(default=None, kw_only=True)
    profiles: Profiles | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        sizes = {len(column) for column in self._columns()}
        if len(sizes) != 1:
            raise ValueError(f"columns of different lengths: {sorted(sizes)}")
        if not np.isfinite(self.times).all() or not np.isfinite(self.values).all():
            raise ValueError("times and values must be finite")
        if (np.diff(self.times) < 0).any():
            raise ValueError("events are not in time order; use episodes.make_log")

    def __len__(self) -> int:
        return len(self.users)

    def select(self, index: np.ndarray | slice) -> Log:
        """Some events; an index must keep their order."""
        columns = [column[index] for column in self._columns()]
        return Log(*columns, shown=self.shown, profiles=self.profiles)

    def _columns(self) -> tuple[np.ndarray, ...]:
        return self.users, self.items, self.actions, self.values, self.times


def make_log(users: Any, items: Any, actions: Any, values: Any, times: Any) -> Log:
    """A log from unsorted columns: types set, sorted by time, then user, then item."""
    columns = [
        np.asarray(column, dtype=dtype)
        for column, dtype in zip(
            (users, items, actions, values, times),
            (np.int64, np.int64, np.int64, np.float32, np.float64),
            strict=True,
        )
    ]
    order = np.lexsort((columns[1], columns[0], columns[4]))
    return Log(*(column[order] for column in columns))


def shuffle_ties(log: Log, seed: int) -> Log:
    """The same events, those of a user at one time, such as a basket, in random order.

    In the order of their rows the next item of a basket would always be one further down the
    catalogue, and a model would learn that.
    """
    chance = np.random.default_rng(seed).random(len(log))
    return log.select(np.lexsort((chance, log.users, log.times)))


def split_time(log: Log, time: float) -> tuple[Log, Log]:
    """Events before `time`, and those at it or later: events tied in time stay together."""
    place = int(np.searchsorted(log.times, time, side="left"))
    return log.select(slice(0, place)), log.select(slice(place, None))


def split_share(log: Log, share: float) -> tuple[Log, Log]:
    """About the first `share` of the events and the rest; ties in time go to the rest."""
    if not len(log):
        return log, log
    place = min(int(len(log) * share), len(log) - 1)
    return split_time(log, float(log.times[place]))


def split_users(log: Log, users: np.ndarray) -> tuple[Log, Log]:
    """The events of everybody else, and those of `users`."""
    theirs = np.isin(log.users, users)
    return log.select(~theirs), log.select(theirs)


def draw_users(log: Log, share: float, seed: int) -> np.ndarray:
    """A random share of the log's users, the same for the same seed."""
    users = np.unique(log.users)
    size = round(len(users) * share)
    return np.sort(np.random.default_rng(seed).choice(users, size=size, replace=False))


def refuse_leakage(training: Log, test: Log, *, shared_users: bool = True) -> None:
    """Raise `LeakageError` unless all of `training` lies before all of `test`.

    With `shared_users` False no user may be in both, either.
    """
    if len(training) and len(test) and training.times[-1] >= test.times[0]:
        reach, begin = training.times[-1], test.times[0]
        raise LeakageError(f"training events reach {reach:.0f}, the test begins at {begin:.0f}")
    if not shared_users:
        both = np.intersect1d(training.users, test.users)
        if len(both):
            raise LeakageError(f"{len(both)} users are in training and in test, such as {both[0]}")


@dataclass(frozen=True, slots=True)
class Histories:
    """The events of a log grouped by user, each group in time order."""

    items: np.ndarray  # [m] int64
    actions: np.ndarray  # [m] int64
    values: np.ndarray  # [m] float32
    times: np.ndarray  # [m] float64
    starts: np.ndarray  # [U + 1] first event of each user
    user: np.ndarray  # [m] which user, 0 to U - 1, an event belongs to
    target: np.ndarray  # [m + 1] row of the next positive at this event or later, -1 = none
    positives: np.ndarray  # [q] places of the events that can be targets, in order
    profiles: np.ndarray | None = None  # [U, P] attributes of each user's profile, -1 = none


@dataclass(frozen=True, slots=True)
class Draw:
    """How episodes are drawn."""

    batch: int = 64  # episodes
    windows: tuple[int, int] = (20, 50)  # shortest and longest usual window, in events
    long_window: int = 200
    long_share: float = 0.1  # of the batches
    places: int = 10  # predictions an episode
    horizon: int = 1  # a target is drawn evenly from so many next positives
    half_life: float | None = None  # seconds: how much rarer old events are drawn; None = equally
    seen: int = 512  # events a user whose items are masked
    repeat: bool = False  # whether a seen item may be the next one


@dataclass(frozen=True, slots=True)
class Episodes:
    """A batch of n windows of t events with P places to predict at."""

    block: Block  # [n, t]
    places: Tensor  # [n, P] int64 0 to t, -1 = none
    targets: Tensor  # [n, P] int64 row of the next positive, -1 = none
    times: Tensor  # [n, P] float64 unix seconds of the event that comes at the place
    query: Tensor  # [n, P] bool: in the query part; else in the support part
    seen: Tensor  # [n, L] int64 rows, -1 = none
    seen_from: Tensor  # [n, L] int64 first place at which the row has been seen
    profiles: Tensor | None = None  # [n, P] int64 attributes of the users' profiles, -1 = none


def group(log: Log, *, repeat: bool = False) -> Histories:
    """Histories of all users. Events that are not in the catalogue are no targets."""
    order = np.argsort(log.users, kind="stable")
    _, starts, user = np.unique(log.users[order], return_index=True, return_inverse=True)
    items, values = log.items[order], log.values[order]
    positive = (values > 0) & (items >= 0)
    if not repeat:
        positive &= _first_of_pair(user, items)
    return Histories(
        items=items,
        actions=log.actions[order],
        values=values,
        times=log.times[order],
        starts=np.append(starts, len(log)).astype(np.int64),
        user=user,
        target=_next_positive(items, user, positive),
        positives=np.flatnonzero(positive),
        profiles=at_start(log.profiles, log.users, log.times),
    )


def anchors(histories: Histories, draw: Draw) -> np.ndarray:
    """Probability [m] that an episode is drawn around an event."""
    times = histories.times
    if draw.half_life is None or not len(times):
        return np.full(len(times), 1.0 / max(len(times), 1))
    weight = np.exp2((times - times.max()) / draw.half_life)
    chances: np.ndarray = weight / weight.sum()
    return chances


def sample(
    histories: Histories, draw: Draw, chances: np.ndarray, rng: np.random.Generator
) -> Episodes:
    """A random batch; a user's chance grows with the number of events, as `chances` says.

    Batches of long windows have fewer episodes, about as many events.
    """
    long = rng.random() < draw.long_share
    window = draw.long_window if long else int(rng.integers(draw.windows[0], draw.windows[1] + 1))
    size = max(draw.batch * draw.windows[1] // draw.long_window, 1) if long else draw.batch
    chosen = np.searchsorted(np.cumsum(chances), rng.random(size)).clip(0, len(chances) - 1)
    first, last = (histories.starts[histories.user[chosen] + k] for k in (0, 1))
    latest = np.maximum(last - window, first)  # windows of long histories are full
    begin = np.clip(chosen - rng.integers(0, window, size), first, latest)
    length = np.minimum(last - begin, window)
    return episodes(histories, draw, begin, length, rng)


def episodes(
    histories: Histories,
    draw: Draw,
    begin: np.ndarray,
    length: np.ndarray,
    rng: np.random.Generator,
) -> Episodes:
    """The windows [begin, begin + length) of the grouped events; both [n] int64."""
    first = histories.starts[histories.user[begin]]
    places, targets = _choose_places(histories, begin, length, begin == first, draw, rng)
    split = rng.integers(0, length + 1)[:, None]  # support before, query from here on
    seen, seen_from = _seen(histories, begin, length, first, 0 if draw.repeat else draw.seen)
    coming = np.where(places >= 0, begin[:, None] + places, 0)
    known = histories.profiles
    return Episodes(
        block=window_block(histories, begin, length),
        places=torch.from_numpy(places),
        targets=torch.from_numpy(targets),
        times=torch.from_numpy(histories.times[coming]),
        query=torch.from_numpy(places >= split),
        seen=torch.from_numpy(seen),
        seen_from=torch.from_numpy(seen_from),
        profiles=None if known is None else torch.from_numpy(known[histories.user[begin]]),
    )


def seen_at(batch: Episodes, rows: int) -> Tensor:
    """What has been seen at each place with a target, of the catalogue's rows: [m, rows] bool."""
    owner, slot = (batch.targets >= 0).nonzero(as_tuple=True)
    before = (batch.seen_from[owner] <= batch.places[owner, slot][:, None]) & (
        batch.seen[owner] >= 0
    )
    line, at = before.nonzero(as_tuple=True)
    table = torch.zeros(len(owner), rows, dtype=torch.bool)
    table[line, batch.seen[owner[line], at]] = True
    return table


def window_block(histories: Histories, begin: np.ndarray, length: np.ndarray) -> Block:
    """The events of the windows as a padded block [n, max(length)]."""
    place = np.arange(max(int(length.max(initial=0)), 1))
    mask = place < length[:, None]
    index = np.where(mask, begin[:, None] + place, 0)
    return Block(
        items=torch.from_numpy(histories.items[index]),
        actions=torch.from_numpy(histories.actions[index]),
        values=torch.from_numpy(histories.values[index]),
        times=torch.from_numpy(histories.times[index]),
        mask=torch.from_numpy(mask),
    )


def _choose_places(
    histories: Histories,
    begin: np.ndarray,
    length: np.ndarray,
    fresh: np.ndarray,
    draw: Draw,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Random places with a target, and the targets: both [n, draw.places], -1 = none."""
    place = np.arange(int(length.max(initial=0)) + 1)
    inside = (place <= length[:, None]) & (fresh[:, None] | (place > 0))
    index = np.where(inside, begin[:, None] + place, len(histories.user))
    owner = np.append(histories.user, -1)[index] == histories.user[begin][:, None]
    target = np.where(inside & owner, histories.target[index], -1)
    order = np.argsort(rng.random(target.shape) + (target < 0), axis=1)[:, : draw.places]
    targets = np.take_along_axis(target, order, axis=1)
    if draw.horizon > 1:
        at = np.where(targets >= 0, np.take_along_axis(index, order, axis=1), 0)
        targets = np.where(targets >= 0, _later(histories, at, draw.horizon, rng), -1)
    return np.where(targets >= 0, order, -1), targets


def _later(
    histories: Histories, at: np.ndarray, horizon: int, rng: np.random.Generator
) -> np.ndarray:
    """Row of one of the user's next `horizon` positives at the events `at` [n, P] or later.

    One of them drawn evenly stands for all: in expectation the loss is that of soft labels.
    """
    last = histories.starts[histories.user[at] + 1]
    first, end = (np.searchsorted(histories.positives, x) for x in (at, last))
    drawn = first + (rng.random(at.shape) * np.minimum(end - first, horizon)).astype(np.int64)
    places = histories.positives[np.minimum(drawn, len(histories.positives) - 1)]
    return np.asarray(histories.items[places])


def _seen(
    histories: Histories, begin: np.ndarray, length: np.ndarray, first: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the last `size` events up to the end of the window, and from which place on."""
    reach = np.minimum(begin + length - first, size)
    back = np.arange(max(int(reach.max(initial=0)), 1))
    index = (begin + length)[:, None] - 1 - back
    inside = back < reach[:, None]
    rows = np.where(inside, histories.items[np.where(inside, index, 0)], -1)
    return rows, np.where(inside, index - begin[:, None] + 1, 0)


def _next_positive(items: np.ndarray, user: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Row of the same user's first positive at each event or later [m + 1], -1 = none."""
    size = len(items)
    place = np.where(positive, np.arange(size), size)
    ahead = np.append(np.minimum.accumulate(place[::-1])[::-1], size)
    same = np.append(user, -1)[ahead] == np.append(user, -2)
    return np.where(same, np.append(items, -1)[ahead], -1)


def _first_of_pair(user: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Events [m] bool at which the user meets the item for the first time."""
    pair = user * (int(items.max(initial=0)) + 2) + items + 1
    first = np.zeros(len(pair), dtype=bool)
    first[np.unique(pair, return_index=True)[1]] = True
    return first
