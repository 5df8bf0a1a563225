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
    generator = torch.Generator().manual_seed(1)
    config = ModelConfig(actions=("click",))
    meta = Meta(config, adapter.new_tensors(config, generator))
    vectors = torch.randn(items, config.dim, generator=generator)
    state = _stepped(meta, adapter.init(meta, users), _block(users, items, 0.0), vectors)
    block = _block(users, items, 60.0)
    single = [({k: v[i : i + 1] for k, v in state.items()}, _only(block, i)) for i in range(users)]
    batched = seconds_of(lambda: _stepped(meta, state, block, vectors), 10 * repeats)
    loop = seconds_of(lambda: [_stepped(meta, *one, vectors) for one in single], repeats)
    return StepSpeed(users=users, batched=batched / users * MICRO, loop=loop / users * MICRO)


def _stepped(meta: Meta, state: State, block: Block, vectors: Tensor) -> State:
    new, _ = adapter.guard(state, adapter.step(meta, state, block, vectors))
    return new


def _block(users: int, items: int, after: float) -> Block:
    generator = torch.Generator().manual_seed(int(after))
    return Block(
        items=torch.randint(items, (users, 1), generator=generator),
        actions=torch.zeros(users, 1, dtype=torch.int64),
        values=torch.ones(users, 1),
        times=torch.full((users, 1), 1.7e9 + after, dtype=torch.float64),
        mask=torch.ones(users, 1, dtype=torch.bool),
    )


def _only(block: Block, user: int) -> Block:
    one = slice(user, user + 1)
    return Block(
        block.items[one], block.actions[one], block.values[one], block.times[one], block.mask[one]
    )
