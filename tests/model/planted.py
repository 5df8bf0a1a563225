"""Small worlds with known answers for the tests of ranking and evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from adapters import adapter, experts
from adapters.episodes import Log, make_log
from adapters.experts import Prior
from adapters.types import Catalogue, Meta, ModelConfig, Shared, Support, UserView

DAY = 86_400.0
BEGIN = 1_000 * DAY


def config(**changes: object) -> ModelConfig:
    """A small model with one action."""
    return replace(
        ModelConfig(dim=8, text_dim=8, neighbours=8, support=16, actions=("click",)),
        **changes,  # type: ignore[arg-type]
    )


def model(settings: ModelConfig, seed: int = 0) -> Meta:
    """An untrained adapter with the default expert weights."""
    generator = torch.Generator().manual_seed(seed)
    return Meta(
        settings,
        {**adapter.new_tensors(settings, generator), **experts.default_tensors(settings)},
    )


def catalogue(settings: ModelConfig, size: int, prior: Prior | None = None) -> Catalogue:
    """Items with random vectors and texts, known since ever."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(size, settings.text_dim, generator=generator)
    none = torch.full((size, settings.neighbours), -1)
    zero = torch.zeros(size, settings.neighbours)
    return Catalogue(
        vectors=torch.randn(size, settings.dim, generator=generator),
        text=torch.nn.functional.normalize(text, dim=1),
        created=torch.full((size,), torch.nan, dtype=torch.float64),
        alive=torch.ones(size, dtype=torch.bool),
        prior_items=none if prior is None else torch.from_numpy(prior.neighbour_items),
        prior_weights=zero if prior is None else torch.from_numpy(prior.neighbour_weights),
        returns=torch.zeros(size, 2),
    )


def shared(settings: ModelConfig, size: int) -> Shared:
    """Random popularity and neighbours."""
    generator = torch.Generator().manual_seed(2)
    shape = (size, settings.neighbours)
    return Shared(
        now=BEGIN,
        popularity=torch.rand(size, len(settings.half_lives), generator=generator) * 9,
        neighbour_items=torch.randint(-1, size, shape, generator=generator),
        neighbour_weights=torch.rand(shape, generator=generator) * 0.2,
    )


def view(settings: ModelConfig, n: int, size: int, seed: int = 3) -> UserView:
    """Users with a few events, some items seen and some shown; the first has no events."""
    g = torch.Generator().manual_seed(seed)
    shots = torch.randint(1, 40, (n,), generator=g)
    shots[0] = 0
    items = torch.randint(-1, size, (n, settings.support), generator=g)
    values = torch.rand(n, settings.support, generator=g) * 2 - 0.5
    items[0], values[0] = -1, 0.0
    return UserView(
        interests=torch.randn(n, settings.interests, settings.dim, generator=g),
        shots=shots,
        support=Support(items, values, torch.zeros(n, settings.support, dtype=torch.float64)),
        seen=torch.randint(-1, size, (n, 12), generator=g),
        shown=torch.randint(-1, size, (n, 6), generator=g),
        delta=torch.randn(n, len(experts.names(settings)), generator=g) * 0.1,
    )


def log(events: list[tuple[int, int, float]], value: float = 1.0) -> Log:
    """A log of (user, item, seconds after BEGIN)."""
    users, items, times = (np.array(column) for column in zip(*events, strict=True))
    return make_log(users, items, np.zeros(len(users)), np.full(len(users), value), BEGIN + times)


def random_log(users: int, items: int, events: int, days: float, seed: int = 0) -> Log:
    """Events of a world in which a few items are popular and the favourites change every day."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.random(events)) * days * DAY
    rank = np.minimum(rng.geometric(0.15, events) - 1, items - 1)
    rows = (rank + 7 * (times // DAY).astype(int)) % items
    return make_log(
        rng.integers(0, users, events), rows, np.zeros(events), np.ones(events), BEGIN + times
    )


FAVOURITE = 3
"""The item that `in_favour` plants."""


def in_favour(log: Log, cut: float) -> Log:
    """The same until `cut`; from then on everybody takes the favourite, again and again."""
    late = log.times >= cut
    return Log(
        log.users,
        np.where(late, FAVOURITE, log.items),
        log.actions,
        np.where(late, 5.0, log.values).astype(np.float32),
        log.times,
    )
