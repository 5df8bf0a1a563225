"""Records of the topic `state` as a worker writes them, of users with some events each."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from adapters import adapter
from adapters.types import Block, Meta, ModelConfig
from benchmarks.made_up import DAY, START
from stream.user_state import Events, Layout, Records, fold_events, fold_impressions

_ITEMS = 10_000


def user_records(count: int, events: int = 10, seed: int = 7) -> list[bytes]:
    """`count` records with the default model's dimensions, no two of them alike."""
    random = np.random.default_rng(seed)
    config = ModelConfig(actions=("click",))
    layout = Layout.of(config)
    rows = random.integers(0, _ITEMS, (count, events))
    times = START + np.sort(random.random((count, events)) * DAY, axis=1)
    records = _folded(layout.decode([None] * count), rows, times, random)
    adapted = layout.set_adapter(records, _state(config, rows, times, seed))
    return layout.encode(adapted)


def _folded(
    records: Records,
    rows: NDArray[np.int64],
    times: NDArray[np.float64],
    random: np.random.Generator,
) -> Records:
    """The events in the support set, and as many items in the ring of impressions."""
    hashes = random.integers(1, 2**63, _ITEMS).astype(np.uint64)[rows]
    every = np.ones(rows.shape, np.bool_)
    at = (1000 * times).astype(np.int64)
    ids = random.integers(1, 2**63, rows.shape).astype(np.uint64)
    ones = np.ones(rows.shape, np.float32)
    events = Events(hashes, np.zeros(rows.shape, np.uint8), ones, at, ids, every)
    return fold_events(fold_impressions(records, hashes, at, every), events)


@torch.inference_mode()
def _state(
    config: ModelConfig, rows: NDArray[np.int64], times: NDArray[np.float64], seed: int
) -> dict[str, torch.Tensor]:
    """The adapters after a step for every event."""
    generator = torch.Generator().manual_seed(seed)
    meta = Meta(config, adapter.new_tensors(config, generator))
    vectors = torch.randn(_ITEMS, config.dim, generator=generator)
    state = adapter.init(meta, len(rows))
    for items, at in zip(torch.from_numpy(rows).T, torch.from_numpy(times).T, strict=True):
        one = torch.ones(len(rows), 1)
        block = Block(items[:, None], one.long() - 1, one, at[:, None], one.bool())
        state = adapter.step(meta, state, block, vectors)
    return state
