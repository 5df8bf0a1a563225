"""How long batches wait for a change of the model, held against a batch of the same worker.

The worker is the real one over in-memory topics: no broker, whose work a swap does not touch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from adapters.types import ModelConfig
from benchmarks import made_up
from benchmarks.made_up import Size
from stream.config import Settings
from stream.testing_worker import MemoryWorld

BATCH = 1_000
_TURNS = 20


@dataclass(frozen=True, kw_only=True)
class SwapSpeed:
    """Milliseconds."""

    items: int
    batch: float  # a thousand events of as many users
    pause: float  # everything that the loop does for the swap

    @property
    def ratio(self) -> float:
        """The pause as a part of a batch."""
        return self.pause / self.batch


def measure(size: Size, settings: Settings, batches: int = 3) -> SwapSpeed:
    """Swap to a model with other weights between two of many batches."""
    known, config = made_up.items(size), ModelConfig(actions=tuple(settings.messages.actions))
    old, new = (made_up.model(known, config, seed) for seed in (size.seed, size.seed + 1))
    world = MemoryWorld(known, settings=settings, partitions=8, model=old)
    world.offer("next", new)
    world.run()
    spent = sorted(_batch(world, known[n % len(known)].item) for n in range(batches + 1))
    world.release("next")
    world.run(_TURNS)
    pause = world.metrics.registry.get_sample_value("innerloop_model_pause_seconds_sum")
    return SwapSpeed(items=size.items, batch=1e3 * spent[batches // 2], pause=1e3 * (pause or 0.0))


def _batch(world: MemoryWorld, item: str) -> float:
    """Seconds of a turn in which everybody acts once."""
    for user in range(BATCH):
        world.click(f"user-{user}", item, after=0.001)
    began = time.perf_counter()
    world.run(1)
    return time.perf_counter() - began
