"""The inner-loop step of many users at once against the same step user by user."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapters import adapter
from adapters.types import Block, Meta, ModelConfig, State
from benchmarks.measure import MICRO, seconds_of


@dataclass(frozen=True, kw_only=True)
class StepSpeed:
    """Microseconds per step."""

    users: int
    batched: float
    loop: float

    @property
    def ratio(self) -> float:
        """How many times as fast the batch is."""
        return self.loop / self.batched


@torch.inference_mode()
def measure(users: int = 256, items: int = 10_000, repeats: int = 15) -> StepSpeed:
    """One event a user, with the default model, its step checked as the worker checks it."""
    meta, vectors = untrained(ModelConfig(actions=("click",)), items)
    state = _stepped(meta, adapter.init(meta, users), clicks(users, 1, items, 0.0), vectors)
    block = clicks(users, 1, items, 60.0)
    single = [({k: v[i : i + 1] for k, v in state.items()}, _only(block, i)) for i in range(users)]
    batched = seconds_of(lambda: _stepped(meta, state, block, vectors), 10 * repeats)
    loop = seconds_of(lambda: [_stepped(meta, *one, vectors) for one in single], repeats)
    return StepSpeed(users=users, batched=batched / users * MICRO, loop=loop / users * MICRO)


def untrained(config: ModelConfig, items: int) -> tuple[Meta, Tensor]:
    """An adapter that nobody trained, and item vectors [items, d]: speed depends on neither."""
    generator = torch.Generator().manual_seed(1)
    meta = Meta(config, adapter.new_tensors(config, generator))
    return meta, torch.randn(items, config.dim, generator=generator)


def clicks(users: int, events: int, items: int, after: float) -> Block:
    """Some clicks of every user on random items, a minute apart, from `after` seconds on."""
    generator, shape = torch.Generator().manual_seed(int(after)), (users, events)
    times = 1.7e9 + after + 60.0 * torch.arange(events, dtype=torch.float64)
    return Block(
        items=torch.randint(items, shape, generator=generator),
        actions=torch.zeros(shape, dtype=torch.int64),
        values=torch.ones(shape),
        times=times.expand(shape),
        mask=torch.ones(shape, dtype=torch.bool),
    )


def _stepped(meta: Meta, state: State, block: Block, vectors: Tensor) -> State:
    new, _ = adapter.guard(state, adapter.step(meta, state, block, vectors))
    return new


def _only(block: Block, user: int) -> Block:
    one = slice(user, user + 1)
    return Block(
        block.items[one], block.actions[one], block.values[one], block.times[one], block.mask[one]
    )
