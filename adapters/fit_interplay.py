"""The network of the second look, fitted by cross-validation over users.

Users are cut into FOLDS parts, and each network learns from the users of all parts but one, beside
a weighted sum that was fitted to the same users. All stop after the round in which the loss of
requests was least, each judged by the network that had not seen its user (cross-validated early
stopping). The average of networks that saw different users, as in bagging (Breiman, 1996), is one
network with all of their units. It is kept only where it lowers the loss of users that it had not
seen, and where one that learned from the first three quarters of the time lowers it in the last:
users share their time, and what was the rage in one hour must not be learned by heart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from adapters import interplay
from adapters.fit_history import worth
from adapters.looks import Looks, sums

FOLDS = 4
UNITS = 16
"""Of each network."""

EPOCHS = 24
"""Rounds through the requests, of which the best one is kept."""

MEAN = 0.95
"""Share of the running mean of the weights that a step keeps."""

BATCH = 128
"""Requests of a step."""

RATE, DECAY, DROPOUT = 5e-3, 1e-2, 0.2
"""Of AdamW, and the share of units that are left out of a step."""

ERRORS = 2.0
"""Standard errors over users by which the loss must fall."""

EDGE = 1e-3
"""Share of candidates on either side whose numbers are taken as no further out than the others."""


class _Scaling(NamedTuple):
    """How the numbers of candidates become numbers of mean 0 and spread 1; [F] each."""

    low: Tensor
    high: Tensor
    shift: Tensor
    scale: Tensor


class _Data(NamedTuple):
    """Requests as the networks read them; n of them, C candidates."""

    values: Tensor  # [n, F, C] of mean 0 and spread 1
    context: Tensor  # [n, HEARD]
    scores: Tensor  # [n, C] the weighted sum; NEVER = no candidate
    target: Tensor  # [n, C] 1 / relevant items for those that are relevant, else 0
    weight: Tensor  # [n] mean 1

    def part(self, rows: Tensor) -> _Data:
        return _Data(*(column[rows] for column in self))


def fit(
    looks: Looks, solve: Callable[[Looks, float], Tensor], weighting: float, seed: int
) -> dict[str, Tensor]:
    """Tensors of `interplay` that help the weighted sum; none where none help.

    `solve` fits the sum's weights [F, CIRCUMSTANCES] with `weighting` of users, as in
    `fit_history.worth`. Equal seeds give equal networks.
    """
    with torch.no_grad():
        return _fit(looks, solve, weighting, seed)


def _fit(
    looks: Looks, solve: Callable[[Looks, float], Tensor], weighting: float, seed: int
) -> dict[str, Tensor]:
    scaling = _scaling(looks)
    data = _data(looks, scaling, weighting)
    generator = torch.Generator().manual_seed(seed)
    users, owner = torch.unique(looks.users, return_inverse=True)
    fold = (torch.randperm(len(users), generator=generator) % FOLDS)[owner]
    late = torch.arange(len(owner)) >= len(owner) * (FOLDS - 1) // FOLDS  # they are in time order
    parts = [*(fold == number for number in range(FOLDS)), late]
    if any(bool(part.all()) or not bool(part.any()) for part in parts):
        return {}
    gain, nets = torch.zeros(EPOCHS, len(owner)), []
    for judged in parts[:-1]:
        rounds, gain[:, judged] = _learned(
            *_split(looks, data, judged, solve(_of(looks, ~judged), weighting)), generator
        )
        nets.append(rounds)
    best = int(gain.mean(1).argmax())
    by_user = torch.zeros(len(users)).index_add_(0, owner, gain[best])
    error = float(by_user.std()) / len(users) ** 0.5
    if not float(by_user.mean()) > ERRORS * error:
        return {}
    _, later = _learned(*_split(looks, data, late, solve(_of(looks, ~late), weighting)), generator)
    if not float(later[best].mean()) > 0:
        return {}
    read, told, say = (torch.cat(x) for x in zip(*(rounds[best] for rounds in nets), strict=True))
    read, constant = read * scaling.scale, read @ (scaling.scale * scaling.shift)
    told[:, 0] -= constant  # the constant among the circumstances
    return {
        interplay.LOW: scaling.low,
        interplay.HIGH: scaling.high,
        interplay.READ: read,
        interplay.TOLD: told,
        interplay.SAY: say / FOLDS,
    }


def _of(looks: Looks, rows: Tensor) -> Looks:
    return Looks(*(column[rows] for column in looks))


def _split(looks: Looks, data: _Data, judged: Tensor, weights: Tensor) -> tuple[_Data, _Data]:
    """What is learned from and what is judged, beside sums with these weights."""
    own = data._replace(scores=sums(looks, weights))
    return own.part(~judged), own.part(judged)


def _scaling(looks: Looks) -> _Scaling:
    rows = looks.values[looks.known]  # [c, F]
    edges = torch.tensor([EDGE, 1 - EDGE])
    low, high = torch.stack(
        [torch.quantile(column, edges, interpolation="nearest") for column in rows.T], 1
    )
    inside = rows.clamp(low, high)
    spread = inside.std(0)
    scale = torch.where(spread > 1e-3, 1 / spread.clamp(min=1e-3), 0.0)
    return _Scaling(low, high, inside.mean(0), scale)


def _data(looks: Looks, scaling: _Scaling, weighting: float) -> _Data:
    values = (looks.values.clamp(scaling.low, scaling.high) - scaling.shift) * scaling.scale
    weight = worth(looks.users, looks.recency, weighting).float()
    return _Data(
        values=values.transpose(1, 2).contiguous(),
        context=looks.context,
        scores=torch.zeros(looks.known.shape),  # those of a part of the users
        target=looks.hits / looks.relevant.clamp(min=1)[:, None],
        weight=weight / weight.mean(),
    )


def _learned(
    learned: _Data, judged: _Data, generator: torch.Generator
) -> tuple[list[list[Tensor]], Tensor]:
    """A network after each round, and how much it lowers the loss of what is judged: [EPOCHS, n].

    What is kept of a round is the running mean of the weights.
    """
    net = _begin(learned, generator)
    optimiser = torch.optim.AdamW(net, lr=RATE, weight_decay=DECAY)
    before = _loss(judged, torch.zeros_like(judged.scores))
    rounds, gains = [], []
    mean = [p.detach().clone() for p in net]
    for _ in range(EPOCHS):
        order = torch.randperm(len(learned.weight), generator=generator)
        for rows in torch.split(order, BATCH):
            batch = learned.part(rows)
            heard = torch.rand(batch.scores.shape[0], len(net[2]), generator=generator) >= DROPOUT
            with torch.enable_grad():
                said = _said(net, batch, heard / (1 - DROPOUT))
                loss = _loss(batch, said).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            for old, new in zip(mean, net, strict=True):
                old.lerp_(new.detach(), 1 - MEAN)
        rounds.append([p.clone() for p in mean])
        gains.append(before - _loss(judged, _said(mean, judged)))
    return rounds, torch.stack(gains)


def _begin(data: _Data, generator: torch.Generator) -> list[Tensor]:
    """Random units that nobody listens to yet: `interplay.READ`, TOLD and SAY of one network.

    The constant among the circumstances is their bias.
    """
    numbers, told = data.values.shape[1], data.context.shape[1]
    read = torch.randn(UNITS, numbers, generator=generator) / numbers**0.5
    spread = data.context.std(0).clamp(min=0.1)
    context = torch.randn(UNITS, told, generator=generator) / spread / told**0.5
    context[:, 0] = torch.rand(UNITS, generator=generator) * 2 - 1
    context[:, 0] -= context[:, 1:] @ data.context[:, 1:].mean(0)
    return [p.requires_grad_() for p in (read, context, torch.zeros(UNITS))]


def _said(net: list[Tensor], data: _Data, listening: Tensor | None = None) -> Tensor:
    """What a network adds to the scores: [n, C]; `listening` [n, UNITS] weighs its units."""
    read, told, say = net
    units = torch.relu(torch.matmul(read, data.values) + (data.context @ told.T)[..., None])
    weights = say.expand(len(units), -1) if listening is None else say * listening
    return torch.bmm(weights[:, None], units)[:, 0]


def _loss(data: _Data, said: Tensor) -> Tensor:
    """Log-softmax of the relevant candidates, as in `fit_rerank.loss`: [n], weighted."""
    chances = functional.log_softmax(data.scores + said, 1)
    return -(chances * data.target).sum(1) * data.weight
