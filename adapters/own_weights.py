"""A user's own weights of the experts: one gated inner step after every request.

`UserView.delta` is added to the weights that users share. What a user takes is compared with what
the scores before it led one to expect,

    delta <- keep delta + rate n / (n + kappa) (phi(x) - E_p phi - usual) / variance,

with phi(x) the experts' numbers of the item x that was taken, p the softmax of the scores over the
catalogue, n the user's shots before x. E_p is estimated from a few items, sampled by popularity and
weighted by importance, the same for all users of a bucket. `usual` is the mean of the difference
over users: shared weights are fitted for another loss, and what it leaves over is nobody's own.
The gate keeps the first events, which prove little, from moving much. A step is taken where x could
have been ranked and fewer items than there are candidates are estimated to score higher: what is
far from every list would pull at weights that put lists in order.

It is one step of a user's inner loop (as in MAML: Finn, Abbeel, Levine, 2017) on the weights of a
log-linear model. Letters in shape comments: n users, m sampled items, E experts, F numbers that a
score is a sum of.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapters import experts, features, interplay, ranking, rerank
from adapters.features import NEVER, Prepared
from adapters.types import Meta, UserView

SAMPLED = 32
"""Items over which the expectation is estimated."""

RADIUS = 1.0
"""A user's own weight is at most so much, per standard deviation of `phi(x) - E_p phi`."""

RATE, KEEP, KAPPA = "delta.rate", "delta.keep", "delta.kappa"  # [] each
USUAL, VARIANCE = "delta.usual", "delta.variance"  # [E] each


class Sampled(NamedTuple):
    """Items that stand for the catalogue in a bucket of event time."""

    rows: Tensor  # [m] int64
    log_scale: Tensor  # [m] log of the number of items that each stands for


@dataclass(frozen=True, slots=True)
class Evidence:
    """What n requests say, the item that was taken first, then m sampled ones."""

    values: Tensor  # [n, 1 + m, F]
    log_scale: Tensor  # [n, 1 + m], -inf = left out
    weights: Tensor  # [n, F] of the scores, without the users' own
    rest: Tensor  # [n, 1 + m] of the scores beside the weighted sum
    good: Tensor  # [n] bool: a step is taken
    shots: Tensor  # [n]

    def part(self, users: Tensor) -> Evidence:
        """That of some of the requests."""
        return Evidence(*(getattr(self, f.name)[users] for f in fields(Evidence)))


def active(meta: Meta) -> bool:
    """Whether users of this model have weights of their own."""
    return meta.config.user_delta and RATE in meta.tensors and float(meta[RATE]) > 0


def off(meta: Meta) -> Meta:
    """The model with steps of size zero."""
    if RATE not in meta.tensors:
        return meta
    return replace(meta, tensors={**meta.tensors, RATE: torch.zeros_like(meta[RATE])})


def sampled(prepared: Prepared, now: float) -> Sampled:
    """The items of the bucket that begins at `now` (unix seconds), with replacement.

    Half by popularity, half any. Worker and evaluation draw the same ones.
    """
    middle = prepared.columns[-3].cpu()[: prepared.size]  # popularity at the longest half-life
    there = prepared.columns[-1].cpu()[: prepared.size] == 0
    weight = there * (1 + features.POPULARITY_FLOOR * torch.expm1(middle.double()).clamp(min=0))
    total = torch.cumsum(weight, 0)
    if not len(total) or not bool(total[-1] > 0):
        return Sampled(torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    drawn = np.random.default_rng(zlib.crc32(np.float64(now).tobytes())).random(SAMPLED)
    rows = torch.searchsorted(total, torch.from_numpy(drawn) * total[-1], right=True)
    scale = torch.log(total[-1] / weight[rows] / SAMPLED).float()
    device = prepared.columns.device
    return Sampled(rows.to(device), scale.to(device))


def evidence(
    meta: Meta, prepared: Prepared, view: UserView, taken: Tensor, drawn: Sampled
) -> Evidence:
    """What it says that n users took the rows `taken` [n] next; `view` is as known before."""
    users = torch.arange(len(taken), device=taken.device)
    groups = torch.split(users, ranking.GROUP)
    parts = [_evidence(meta, prepared, ranking.select(view, g), taken[g], drawn) for g in groups]
    return joined(parts)


def joined(parts: list[Evidence]) -> Evidence:
    """Evidence of one part after the other; there is at least one."""
    return Evidence(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Evidence)))


def surprise(found: Evidence, delta: Tensor) -> Tensor:
    """phi(x) - E_p phi [n, E] of users with these own weights [n, E]."""
    size = delta.shape[1]
    weights = found.weights + functional.pad(delta, (0, found.weights.shape[1] - size))
    scores = torch.bmm(found.values, weights[..., None])[..., 0] + found.rest + found.log_scale
    expected = torch.bmm(scores.softmax(1)[:, None], found.values[..., :size])[:, 0]
    return found.values[:, 0, :size] - expected


def step(meta: Meta, found: Evidence, delta: Tensor) -> Tensor:
    """Own weights [n, E] after one inner step; where nothing good was taken they stay.

    A step that is not finite is not taken; weights stay within RADIUS.
    """
    shots = found.shots.float()
    gate = meta[RATE] * shots / (shots + meta[KAPPA])
    moved = gate[:, None] * (surprise(found, delta) - meta[USUAL]) / meta[VARIANCE]
    bound = RADIUS / meta[VARIANCE].sqrt()
    new = (meta[KEEP] * delta + moved).clamp(-bound, bound)
    stays = ~(found.good & new.isfinite().all(1))
    return torch.where(stays[:, None], delta, new)


def _evidence(
    meta: Meta, prepared: Prepared, view: UserView, taken: Tensor, drawn: Sampled
) -> Evidence:
    n = len(taken)
    rows = torch.cat([taken.clamp(min=0)[:, None], drawn.rows.expand(n, -1)], 1)
    allowed = _allowed(prepared, view, rows)
    scale = functional.pad(drawn.log_scale, (1, 0)).repeat(n, 1)
    again = functional.pad(drawn.rows == taken[:, None], (1, 0))
    scale = scale.masked_fill(again | ~allowed, -torch.inf)
    scale[:, 0] = 0.0
    values = ranking.all_values(meta, prepared, view, rows)
    trend = features.trend(meta.config, prepared, features.seeds(view))
    weights = _weights(meta, view, trend)
    rest = interplay.added(meta, values, rerank.heard(view, trend))
    values = values[..., : weights.shape[1]]
    scores = torch.bmm(values, weights[..., None])[..., 0] + rest
    above = ((scores[:, 1:] > scores[:, :1]) * scale[:, 1:].exp()).sum(1)
    good = (taken >= 0) & allowed[:, 0] & (view.shots > 0) & (above < rerank.CANDIDATES)
    return Evidence(values, scale, weights, rest, good, view.shots)


def _allowed(prepared: Prepared, view: UserView, rows: Tensor) -> Tensor:
    """Which of the rows [n, r] could have been in the users' lists."""
    scores = prepared.columns[-1].repeat(len(rows), 1)
    return features.masked(scores, prepared, view).gather(1, rows) > NEVER / 2


def _weights(meta: Meta, view: UserView, trend: Tensor) -> Tensor:
    """Weights [n, F] that users share, in their circumstances."""
    plain = replace(view, delta=torch.zeros_like(view.delta))
    if rerank.fitted(meta):
        return rerank.weights(meta, plain, trend)
    return experts.weights(meta, plain, trend)
