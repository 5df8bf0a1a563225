"""What the second look knows of items that people take again: food, songs, spare parts.

Two things tell when an item is due: the user's own rhythm with it, and how soon all users come back
to it (personal and collective repeat consumption; Anderson, Kumar, Tomkins, Vassilvitskii, "The
Dynamics of Repeat Consumption", WWW 2014). How much either counts depends on the user: some
baskets are always the same. Where items do not come again all of it is 0.

Letters in shape comments: n users, C candidates, L remembered events.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from adapters.features import AGAIN
from adapters.signals import Floats, Ints, Times
from adapters.types import UserView

NAMES = (
    "repeat_lately",
    "repeat_count",
    "repeat_last",
    "repeat_days",
    "repeat_weeks",
    "repeat_due",
    "return_odds",
    "return_lag",
    "taken_odds",
    "taken_due",
)
"""How often and how lately the user took an item, by events and by days, and whether it is time
again by the user's rhythm; how readily and how soon all users come back to it, the same for those
that the user took, and whether it is time again by the rhythm of all."""

HABITS = 3
"""Numbers that say how a user repeats; see `habits`."""

LATELY = 12.0
"""Events after which one that is repeated counts half in `repeat_lately` and `repeat_last`."""

HALF_DAYS = (3.0, 14.0)
"""Days before the latest event at which one counts half in `repeat_days` and `repeat_weeks`."""

USUAL_LAG, LAG_FLOOR = 40.0, 3.0
"""Events from one time that an item is taken to the next where nothing is known, and events that
are added to both sides of `repeat_due`: a basket has no order."""

USUAL_DAYS = 20.0
"""Days from one time that an item is taken to the next where nothing is known of it."""

RETURN_SHRINK = 20.0
"""Events of the average item that are added to each item's in `returns`."""

DAY = 86_400.0


def numbers(view: UserView, returns: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """The numbers of candidates `rows` [n, C] in the order of NAMES: [n, C] each.

    `returns` [N, 2] are the catalogue's.
    """
    if not view.repeats:
        none = torch.zeros(rows.shape, device=rows.device)
        return (none,) * len(NAMES)
    seen, days = _remembered(view)
    lag = torch.arange(seen.shape[1], device=rows.device, dtype=torch.float32)
    same = rows[:, :, None] == seen[:, None, :]  # [n, C, L]
    fading = [torch.exp2(-lag / LATELY).expand(days.shape)]
    fading += [torch.exp2(-days / half) for half in HALF_DAYS]
    weights = torch.stack([torch.ones_like(days), *fading], 2)  # [n, L, 4]
    count, lately, *by_days = torch.bmm(same.float(), weights).unbind(2)
    taken = count > 0
    last = torch.where(same, lag, float(seen.shape[1])).amin(2)
    first = torch.where(same, lag, -1.0).amax(2)
    since = days.gather(1, last.long().clamp(max=seen.shape[1] - 1))
    odds, soon = returns.index_select(0, rows.reshape(-1)).view(*rows.shape, 2).unbind(2)
    ripe = torch.log1p(since) - soon - math.log1p(USUAL_DAYS)
    return (
        lately,
        count.log1p(),
        torch.where(taken, torch.exp2(-last / LATELY), 0.0),
        *(total.log1p() for total in by_days),
        torch.where(taken, _due(first, last, count), 0.0),
        odds,
        soon,
        torch.where(taken, odds, 0.0),
        torch.where(taken, ripe, 0.0),
    )


def _remembered(view: UserView) -> tuple[Tensor, Tensor]:
    """The items [n, L] of the latest events and the days [n, L] from each to the newest."""
    if view.days is None:
        raise ValueError("a view of users who may take items again needs `days`")
    return view.seen[:, :AGAIN], view.days[:, :AGAIN]


def _due(first: Tensor, last: Tensor, count: Tensor) -> Tensor:
    """Log of the events since an item was taken over those from one time to the next: [n, C].

    Items taken once are taken for ones of USUAL_LAG.
    """
    usual = (first - last + USUAL_LAG) / count.clamp(min=1)
    return torch.log((last + LAG_FLOOR) / (usual + LAG_FLOOR))


def habits(view: UserView) -> Tensor:
    """The share of a user's events whose item the user took more than once, and log of the number
    of events on the day of the latest one and in the 30 days before it: [n, 3].
    """
    if not view.repeats:
        return torch.zeros(len(view.shots), HABITS, device=view.shots.device)
    seen, days = _remembered(view)
    there = seen >= 0
    order = seen.sort(1).values
    equal = order[:, 1:] == order[:, :-1]
    edge = torch.zeros_like(equal[:, :1])
    twice = torch.cat([equal, edge], 1) | torch.cat([edge, equal], 1)
    share = (twice & (order >= 0)).sum(1) / there.sum(1).clamp(min=1)
    near = [((days < far) & there).sum(1).float().log1p() for far in (1.0, 30.0)]
    return torch.stack([share, *near], 1)


def returns(users: Ints, rows: Ints, times: Times, size: int) -> Floats:
    """How readily and how soon users come back to each item: [size, 2] float32.

    Log odds that an event with the item is followed by another one of the same user, relative to
    the average item, and mean log(1 + days) from one to the next, relative to USUAL_DAYS; both
    shrunk to the average. Events, in any order, all of them liked; those of one time are one.
    """
    order = np.lexsort((times, rows, users))
    users, rows, times = users[order], rows[order], times[order]
    pair = (users[1:] == users[:-1]) & (rows[1:] == rows[:-1])
    gap = times[1:] - times[:-1]
    once = np.concatenate([np.ones(min(len(rows), 1), np.bool_), ~(pair & (gap == 0))])
    back = pair & (gap > 0)
    total = np.bincount(rows[once], minlength=size).astype(float)
    came = np.bincount(rows[1:][back], minlength=size).astype(float)
    lags = np.bincount(rows[1:][back], np.log1p(gap[back] / DAY), size)
    if not came.any():
        return np.zeros((size, 2), np.float32)
    share, mean = came.sum() / total.sum(), lags.sum() / came.sum()
    odds = (came + RETURN_SHRINK * share) / (total - came + RETURN_SHRINK * (1 - share))
    lag = (lags + RETURN_SHRINK * mean) / (came + RETURN_SHRINK)
    relative = np.log(odds * (1 - share) / share)
    return np.stack([relative, lag - math.log1p(USUAL_DAYS)], 1).astype(np.float32)
