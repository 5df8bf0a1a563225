"""The candidates of past requests, with all that the second look sees of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from adapters import features, ranking, rerank
from adapters.features import NEVER
from adapters.fit_history import Asked
from adapters.types import Meta

CUTOFF = 10
"""Place of a list up to which relevant items count."""


class Looks(NamedTuple):
    """The candidates of n positions."""

    values: Tensor  # [n, C, F]
    hits: Tensor  # [n, C] bool: relevant
    known: Tensor  # [n, C] bool: candidates; the rest is padding
    relevant: Tensor  # [n] items that are relevant, in the candidates or not
    context: Tensor  # [n, HEARD]
    users: Tensor  # [n]
    recency: Tensor  # [n]


def look(meta: Meta, asked: Asked) -> Looks:
    """The candidates of what was asked for."""
    view, wanted, prepared = asked.view, asked.wanted, asked.step.prepared
    best = ranking.rank_prepared(meta, prepared, view, rerank.CANDIDATES).items
    rows = best.clamp(min=0)
    latest = features.seeds(view)
    return Looks(
        values=ranking.all_values(meta, prepared, view, rows),
        hits=((best[:, :, None] == wanted[:, None, :]) & (best >= 0)[:, :, None]).any(2),
        known=best >= 0,
        relevant=(wanted >= 0).sum(1),
        context=rerank.heard(view, features.trend(meta.config, prepared, latest)),
        users=asked.users,
        recency=asked.recency,
    )


def in_context(looks: Looks, weights: Tensor) -> Tensor:
    """The weights [n, F] of requests in their circumstances, of weights [F, CIRCUMSTANCES]."""
    return looks.context[:, : rerank.CIRCUMSTANCES] @ weights.T


def sums(looks: Looks, weights: Tensor) -> Tensor:
    """The weighted sums [n, C] of candidates, weights [F, CIRCUMSTANCES]; NEVER = no candidate."""
    found = (looks.values @ in_context(looks, weights)[..., None])[..., 0]
    return found.masked_fill(~looks.known, NEVER)


def ndcg(looks: Looks, scores: Tensor) -> Tensor:
    """nDCG [n] at CUTOFF where the candidates are ordered by `scores` [n, C]."""
    k = min(CUTOFF, scores.shape[1])
    discount = 1 / torch.log2(torch.arange(CUTOFF) + 2.0)
    best = scores.masked_fill(~looks.known, NEVER).topk(k).indices
    found = looks.hits.gather(1, best).float() @ discount[:k]
    return found / discount.cumsum(0)[looks.relevant.clamp(1, CUTOFF) - 1]
