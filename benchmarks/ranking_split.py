"""Where the time of ranking goes: scores, the best of them, a varied list."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adapters import experts, ranking
from adapters.types import ModelConfig, Support, UserView
from benchmarks import made_up
from benchmarks.made_up import Size
from benchmarks.measure import MICRO, seconds_of
from stream.catalogue import CatalogueTable
from stream.config import Settings
from stream.item_encoder import ItemEncoder
from stream.serving import Serving


@dataclass(frozen=True, kw_only=True)
class RankingSpeed:
    """Microseconds per user, all experts on."""

    interests: int
    scores: float  # candidates and experts: the score of every item
    top_k: float  # the exact best of them, three candidates a place
    diversity: float  # the choice among them


@torch.inference_mode()
def measure(
    size: Size, interests: int, settings: Settings, users: int = 256, repeats: int = 7
) -> RankingSpeed:
    """Users with the history of the worker's runs, at the settings' list length."""
    known = made_up.items(size)
    config = ModelConfig(actions=tuple(settings.messages.actions), interests=interests)
    meta, bundled = made_up.model(known, config, size.seed)
    table = CatalogueTable(meta, bundled, ItemEncoder(made_up.WordEncoder()))
    table.upsert(known)
    prepared = Serving(meta, "made-up", table, bundled.prior).prepared()
    view = _view(size, config, users)
    k, diversity = settings.ranking.top_k, settings.ranking.diversity
    pool = min(ranking.POOL * k, size.items)
    scored = torch.randn(ranking.GROUP, prepared.columns.shape[1])
    whole = seconds_of(lambda: ranking.rank_prepared(meta, prepared, view, k, diversity), repeats)
    plain = seconds_of(lambda: ranking.rank_prepared(meta, prepared, view, pool), repeats)
    top = seconds_of(lambda: ranking.top_k(scored, pool), 10 * repeats) / ranking.GROUP * MICRO
    return RankingSpeed(
        interests=interests,
        scores=plain / users * MICRO - top,
        top_k=top,
        diversity=(whole - plain) / users * MICRO,
    )


def _view(size: Size, config: ModelConfig, users: int) -> UserView:
    """Users with as many events and shown items as made-up users have."""
    generator = torch.Generator().manual_seed(size.seed)

    def rows(width: int) -> torch.Tensor:
        return torch.randint(size.items, (users, width), generator=generator)

    support = rows(size.history + 1)
    times = made_up.START - 60.0 * torch.arange(size.history + 1, dtype=torch.float64)
    return UserView(
        interests=torch.randn(users, config.interests, config.dim, generator=generator),
        shots=torch.full((users,), size.history + 1),
        support=Support(
            items=support, values=torch.ones(support.shape), times=times.expand(support.shape)
        ),
        seen=support,
        shown=rows(made_up.SHOWN),
        delta=torch.zeros(users, len(experts.names(config))),
    )
