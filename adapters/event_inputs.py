"""What an event says to an adapter: one input vector an event, the same for every kind.

An input is the item's vector, scaled by what was thought of it, plus embeddings of the action, of
the gap in time and of how many events came before. Letters in shape comments as in
`adapters.types`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from adapters.layers import normal, normed
from adapters.types import Block, Meta, ModelConfig, State

_GAPS = 34  # log2 buckets of the gap in seconds; the last one means "no event before"
_DAY = 86_400.0


class Events(NamedTuple):
    """What the events say, before any state but count, time and the last inputs is read."""

    current: Tensor  # [n, t, d] input of the latest valid event up to and including this place
    previous: Tensor  # [n, t, d] input of the valid event before that one
    valid: Tensor  # [n, t] bool: these take a step
    log_shots: Tensor  # [n, t] log(1 + capped count before the event)
    log_days: Tensor  # [n, t] log(1 + days since the event before)
    shots: Tensor  # [n] count after the block
    now: Tensor  # [n] time after the block


def new_tensors(config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """The untrained tensors of event inputs and of the inputs that stand before the first event."""
    d = config.dim
    return {
        "adapter.start_last": normal(generator, 2, d, std=0.5),
        "adapter.item_scale": torch.stack([torch.ones(d), torch.full((d,), 0.3)]),
        "adapter.action_scale": torch.zeros(len(config.actions) + 1, d),
        "adapter.value_input": normal(generator, d, std=0.02),
        "adapter.action_input": normal(generator, len(config.actions) + 1, d, std=0.02),
        "adapter.gap_input": normal(generator, _GAPS, d, std=0.02),
        "adapter.count_input": normal(generator, config.count_cap + 1, d, std=0.02),
    }


def start_last(meta: Meta, n: int, profile: Tensor | None) -> Tensor:
    """The two inputs that stand before the first event, newest first: [n, 2, d].

    A profile [n, d] takes the place of an event's item in the newest one.
    """
    last = meta["adapter.start_last"].expand(n, -1, -1)
    if profile is not None:
        moved = last[:, 0] + normed(profile) * meta["adapter.item_scale"][0]
        last = torch.stack([moved, last[:, 1]], dim=1)
    return last.contiguous()


def part(block: Block, begin: int, end: int) -> Block:
    """The places from `begin` up to `end`."""
    columns = (block.items, block.actions, block.values, block.times, block.mask)
    return Block(*(column[:, begin:end] for column in columns))


def read_events(meta: Meta, state: State, last: Tensor, block: Block, vectors: Tensor) -> Events:
    """The events of a block after the last two inputs [n, 2, d], newest first."""
    taken = block.mask.int()
    before = state["count"][:, None] + taken.cumsum(1) - taken  # [n, t] events before this one
    times = torch.cat(
        [state["time"][:, None], torch.where(block.mask, block.times, -math.inf)], dim=1
    ).cummax(1)[0]  # [n, t + 1] latest event time so far
    gap = (times[:, 1:] - times[:, :-1]).float().masked_fill(before == 0, 0.0)
    shots = before.clamp(max=meta.config.count_cap)
    valid = block.mask & (block.items >= 0)
    inputs = _inputs(meta, block, vectors, gap, before == 0, shots)
    current, previous = _latest(last.to(meta["step_scale"].dtype), inputs, valid)
    return Events(
        current=current,
        previous=previous,
        valid=valid,
        log_shots=shots.float().log1p(),
        log_days=(gap / _DAY).log1p(),
        shots=state["count"] + taken.sum(1).to(state["count"].dtype),
        now=times[:, -1],
    )


def _inputs(
    meta: Meta, block: Block, vectors: Tensor, gap: Tensor, first: Tensor, shots: Tensor
) -> Tensor:
    """Event inputs [n, t, d]: the item scaled by what was thought of it, and the circumstances."""
    plain, by_value = meta["adapter.item_scale"]
    value = block.values[..., None].to(vectors.dtype)
    rows = vectors if len(vectors) else vectors.new_zeros(1, meta.config.dim)
    item = normed(functional.embedding(block.items.clamp(min=0), rows))
    bucket = (1.0 + gap).log2().long().clamp(0, _GAPS - 2).masked_fill(first, _GAPS - 1)
    unknown = len(meta.config.actions)
    action = block.actions.masked_fill((block.actions < 0) | (block.actions >= unknown), unknown)
    inputs: Tensor = (
        item * (plain + by_value * value.tanh() + meta["adapter.action_scale"][action])
        + value * meta["adapter.value_input"]
        + functional.embedding(action, meta["adapter.action_input"])
        + functional.embedding(bucket, meta["adapter.gap_input"])
        + functional.embedding(shots, meta["adapter.count_input"])
    )
    return inputs


def _latest(last: Tensor, inputs: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of the latest and the last but one valid event at every place, each [n, t, d]."""
    if valid.shape[1] == 1:
        keep = valid[..., None]
        newest = torch.where(keep, inputs, last[:, :1])
        return newest, torch.where(keep, last[:, :1], last[:, 1:])
    line = torch.cat([last[:, 1:], last[:, :1], inputs], dim=1)  # [n, 2 + t, d] oldest first
    place = torch.arange(2, line.shape[1], device=line.device)
    place = torch.where(valid, place, 1).cummax(1)[0]  # [n, t] of the latest in `line`
    stem = torch.tensor([0, 1], device=line.device).expand(len(line), 2)
    before = torch.cat([stem, place], dim=1).gather(1, place - 1)

    def pick(where: Tensor) -> Tensor:
        return line.gather(1, where[..., None].expand(-1, -1, line.shape[2]))

    return pick(place), pick(before)
