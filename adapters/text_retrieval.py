"""How well vectors of texts alone find what a user takes next: does another backbone help?

No model is trained for it: a user is the mean of what the latest liked items say, and the whole
catalogue is ranked by the cosine with it. So two backbones can be compared in seconds, position by
position, on events that neither has seen.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapters import episodes, report
from adapters.episodes import Episodes
from adapters.report import Figure

KEEP = 0.8
"""What is left of an event's weight after the next one."""

_AT_ONCE = 64  # positions whose scores are in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Gains of two sets of vectors on the same positions."""

    positions: int
    users: int
    before: float  # mean over users
    after: float
    ahead: Figure  # after minus before, with its 95% interval

    @property
    def better(self) -> bool:
        """Whether the interval of the difference lies above zero."""
        return self.positions > 0 and self.ahead.low > 0

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return {**asdict(self), "better": self.better}


def compare(before: Tensor, after: Tensor, batches: list[Episodes], there: Tensor) -> Compared:
    """Vectors of the same N items [N, D] and [N, D'], on the positions of `batches`.

    `there` are the rows of the catalogue. Nothing is known of positions without anything liked
    before; where no other is left, neither is better.
    """
    one, users = gains(before, batches, there)
    other, _ = gains(after, batches, there)
    if not len(users):
        return Compared(positions=0, users=0, before=0.0, after=0.0, ahead=Figure(0.0, 0.0, 0.0))
    return Compared(
        positions=len(users),
        users=len(np.unique(users)),
        before=float(report.per_user(users, one).mean()),
        after=float(report.per_user(users, other).mean()),
        ahead=report.compare(users, other, one),
    )


def gains(text: Tensor, batches: list[Episodes], there: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """1 / log2(1 + rank) of the next positive at m positions [m], and whose they are [m].

    That is nDCG over the whole list: with a cut-off, texts alone would have too little to say.
    """
    unit = functional.normalize(text - text[there].mean(0), dim=-1)
    gone = torch.ones(len(text), dtype=torch.bool)
    gone[there] = False
    found, owners, past = [], [], 0
    for batch in batches:
        users, liked = _liked(batch, unit)
        seen = episodes.seen_at(batch, len(text)) | gone
        targets = batch.targets[batch.targets >= 0]
        known = liked.square().sum(1) > 0
        found.append(_gains(liked, unit, seen, targets)[known])
        owners.append((users + past)[known])
        past += len(batch.targets)
    if not found:
        return np.zeros(0), np.zeros(0, np.int64)
    return torch.cat(found).numpy(), torch.cat(owners).numpy()


def _liked(batch: Episodes, unit: Tensor) -> tuple[Tensor, Tensor]:
    """The lines of a batch's positions [m], and what was liked before each [m, D]."""
    owner, slot = (batch.targets >= 0).nonzero(as_tuple=True)
    place = batch.places[owner, slot][:, None]
    ago = place - 1 - torch.arange(batch.block.items.shape[1])  # [m, t] events back, < 0 = later
    weight = batch.block.values.clamp(min=0) * batch.block.mask * (batch.block.items >= 0)
    weight = torch.where(ago >= 0, weight[owner] * KEEP ** ago.clamp(min=0), 0.0)
    said = unit[batch.block.items.clamp(min=0)]  # [n, t, D]
    return owner, torch.einsum("mt,mtd->md", weight, said[owner])


def _gains(liked: Tensor, unit: Tensor, hidden: Tensor, targets: Tensor) -> Tensor:
    """Gains [m] of `targets` [m] among items that are not `hidden` [m, N]; ties share a place."""
    parts = []
    for at in range(0, len(liked), _AT_ONCE):
        part = slice(at, at + _AT_ONCE)
        scores = (liked[part] @ unit.T).masked_fill(hidden[part], -torch.inf)
        own = (liked[part] * unit[targets[part]]).sum(1, keepdim=True)
        scores.scatter_(1, targets[part][:, None], -torch.inf)  # a seen item may come again
        rank = 1 + (scores > own).sum(1) + 0.5 * (scores == own).sum(1)
        parts.append(1 / (1 + rank).log2())
    return torch.cat(parts) if parts else torch.zeros(0)
