"""User records for tests, and events that are folded into them."""

from __future__ import annotations

import numpy as np
import torch

from adapters.types import ModelConfig, State
from stream.user_state import (
    Events,
    Layout,
    Records,
    fold_events,
)

LAYOUT = Layout.of(ModelConfig())
SMALL = Layout.of(ModelConfig(dim=16, heads=2, key_dim=4, value_dim=4))
AGAIN = Layout.of(ModelConfig(), repeats=True)
S = LAYOUT.support


def fresh(n: int = 1) -> Records:
    """n users nobody has seen."""
    return LAYOUT.decode([None] * n)


def block(
    items: list[list[int]],
    values: list[list[float]] | None = None,
    times: list[list[int]] | None = None,
    ids: list[list[int]] | None = None,
    mask: list[list[bool]] | None = None,
) -> Events:
    """Events with ids equal to the items, times 1, 2, 3 s, evidence 1 and action 3."""
    held = np.array(items, np.uint64)
    n, t = held.shape
    return Events(
        items=held,
        actions=np.full((n, t), 3, np.uint8),
        values=np.array(values or np.ones((n, t)), np.float32),
        times=np.array(times or [[1000 * (i + 1) for i in range(t)]] * n, np.int64),
        ids=np.array(ids or items, np.uint64),
        mask=np.array(mask if mask is not None else np.ones((n, t)), bool),
    )


def many(first: int, count: int) -> Records:
    """A user with `count` clicks on items `first`, `first + 1`, …"""
    records = fresh()
    for at in range(first, first + count, 50):
        records = fold_events(records, block([list(range(at, min(at + 50, first + count)))]))
    return records


def random_state(n: int) -> State:
    """Adapters of n users, any values of the storage types."""
    g = torch.Generator().manual_seed(1)
    return {
        "weight": torch.randn(n, 4, 16, 16, generator=g),
        "last": torch.randn(n, 2, 64, generator=g),
        "count": torch.arange(n),
        "time": torch.rand(n, generator=g, dtype=torch.float64) * 1e9,
    }
