"""How far users' own weights move: size, memory and gate of the step, by nDCG on past users.

The experts' numbers do not depend on a user's own weights, so the requests and the candidates are
read once, and every setting of a small grid is tried on them. Where none is ahead of no steps by
two standard errors, the rate is 0: users have no weights of their own.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapters import experts, interplay, own_walk, own_weights, rerank
from adapters.fit_history import History, per_user
from adapters.looks import Looks, in_context, look, ndcg
from adapters.own_walk import Requests
from adapters.own_weights import KAPPA, KEEP, RATE, USUAL, VARIANCE, Evidence
from adapters.signals import Ints
from adapters.types import Meta

RATES = (0.005, 0.01, 0.02, 0.05, 0.15)
KEEPS = (0.98, 1.0)
KAPPAS = (4.0, 16.0)
"""The grid."""

ERRORS = 2.0
"""Standard errors that the best of the grid must be ahead by, as the choice flatters it."""

REQUESTS = 12_000
"""That are read at most; users beyond are left out."""


def fit(meta: Meta, history: History, users: Ints, judges: Ints) -> Meta:
    """The model with the steps that `users` say are usual, and of the size that suits `judges`.

    `meta` has fitted weights of both stages, or there is nothing to choose: then the rate is 0.
    """
    size = len(experts.names(meta.config))
    start = with_steps(meta, (0.0, 1.0, 1.0), torch.zeros(size), torch.ones(size))
    if not rerank.fitted(meta) or not len(users) or not len(judges):
        return start
    with torch.no_grad():
        return _fitted(start, history, users, judges)


def with_steps(
    meta: Meta, steps: tuple[float, float, float], usual: Tensor, variance: Tensor
) -> Meta:
    """The model with rate, keep and kappa of a step, and moments [E] of what it is made of."""
    numbers = zip((RATE, KEEP, KAPPA), map(torch.tensor, steps), strict=True)
    return replace(
        meta, tensors={**meta.tensors, **dict(numbers), USUAL: usual, VARIANCE: variance}
    )


def _fitted(meta: Meta, history: History, users: Ints, judges: Ints) -> Meta:
    requests, found = _read(meta, history, users)
    if found is None or not bool(found.good.any()):
        return meta
    usual, variance = moments(found, torch.from_numpy(requests.users), history)
    requests, found = _read(meta, history, judges)
    events, _ = history.positions(judges, fresh=False)
    parts = [look(meta, asked) for asked in history.walk(meta, judges)]
    if found is None or not parts:
        return meta
    looks = Looks(*(torch.cat(column) for column in zip(*parts, strict=True)))
    ends, owners = history.seq.ends(events, "request"), history.seq.log.users[events]
    at, turns = requests.before(ends, owners), list(requests.turns(np.arange(len(found.good))))
    shared = in_context(looks, meta["rerank_weight"])
    rest = interplay.added(meta, looks.values, looks.context)
    plain = ndcg(looks, _scores(looks, shared, rest))
    best, most = meta, 0.0
    for steps in product(RATES, KEEPS, KAPPAS):
        tried = with_steps(meta, steps, usual, variance)
        delta = own_walk.looked_up(_after(tried, turns, requests, found), at)
        own = shared + functional.pad(delta, (0, len(rerank.NAMES)))
        mean, error = _by_user(ndcg(looks, _scores(looks, own, rest)) - plain, looks.users)
        if mean > max(most, ERRORS * error):
            best, most = tried, mean
    return best


def moments(found: Evidence, users: Tensor, history: History) -> tuple[Tensor, Tensor]:
    """Weighted mean and variance [E] of what requests say about weights that users share."""
    good = found.good
    weight = (per_user(users, history.options.weighting) * good)[:, None]
    size = found.values.shape[2] - len(rerank.NAMES)
    seen = own_weights.surprise(found, torch.zeros(len(good), size))
    seen = torch.where(good[:, None], seen, 0.0)
    mean = (seen * weight).sum(0) / weight.sum()
    variance = ((seen - mean).square() * weight).sum(0) / weight.sum()
    return mean, variance.clamp(min=1e-6)


def _read(meta: Meta, history: History, users: Ints) -> tuple[Requests, Evidence | None]:
    """The requests of the users in the fitted part, and what they say."""
    seq = history.seq
    requests = Requests.of(seq, _some(history, users), history.start, np.inf)
    parts = list(
        own_walk.evidence(
            meta, seq, requests, history.catalogue, history.prior, history.options.mask_seen
        )
    )
    if not parts:
        return requests, None
    back = torch.from_numpy(np.concatenate([mine for mine, _ in parts])).argsort()
    return requests, own_weights.joined([found for _, found in parts]).part(back)


def _some(history: History, users: Ints) -> Ints:
    """As many of the users, in their order, as have REQUESTS events in the fitted part."""
    log = history.seq.log
    recent = log.users[int(np.searchsorted(log.times, history.start)) :]
    counts = np.bincount(recent, minlength=int(log.users.max(initial=0)) + 1)
    return users[np.cumsum(counts[users]) <= REQUESTS]


def _after(meta: Meta, turns: list[Ints], requests: Requests, found: Evidence) -> Tensor:
    """Own weights [r, E] after each request."""
    size = len(experts.names(meta.config))
    after = torch.zeros(len(found.good), size)
    users, who = np.unique(requests.users, return_inverse=True)
    current = torch.zeros(len(users), size)
    for turn in turns:
        mine = torch.from_numpy(turn)
        owner = torch.from_numpy(who[turn])
        after[mine] = own_weights.step(meta, found.part(mine), current[owner])
        current[owner] = after[mine]
    return after


def _scores(looks: Looks, weights: Tensor, rest: Tensor) -> Tensor:
    """Scores [n, C] by weights [n, F] of each request, and what is beside the sum [n, C]."""
    return torch.bmm(looks.values, weights[..., None])[..., 0] + rest


def _by_user(values: Tensor, users: Tensor) -> tuple[float, float]:
    """Mean over users of their means, and its standard error."""
    _, owner, count = torch.unique(users, return_inverse=True, return_counts=True)
    means = torch.zeros(len(count)).index_add_(0, owner, values) / count
    return float(means.mean()), float(means.std(unbiased=False)) / len(means) ** 0.5
