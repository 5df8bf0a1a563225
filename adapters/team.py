"""Several processes that train one model: each takes its share of every batch.

All of them hold the same weights and the same generators and draw the same batches. Each learns
from its own episodes of a batch; gradients are averaged, so that all take the same step as one
process over the whole batch would. Adapters are functions over a dict of tensors and no modules:
averaging the gradients after `backward` is simpler than a wrapper such as DistributedDataParallel
would be, and does the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from adapters.episodes import Episodes
from adapters.types import Block

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Team:
    """A process among `size`; the process group of torch.distributed has been joined."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process alone reads, writes and reports."""
        return self.rank == 0

    def share(self, batch: Episodes) -> Episodes:
        """Every `size`-th episode of a batch, which may be none."""
        if self.size == 1:
            return batch
        own, block = slice(self.rank, None, self.size), batch.block
        columns = (block.items, block.actions, block.values, block.times, block.mask)
        return replace(
            batch,
            block=Block(*(column[own] for column in columns)),
            places=batch.places[own],
            targets=batch.targets[own],
            times=batch.times[own],
            query=batch.query[own],
            seen=batch.seen[own],
            seen_from=batch.seen_from[own],
            profiles=None if batch.profiles is None else batch.profiles[own],
        )

    def average(self, leaves: Sequence[Tensor], losses: Sequence[Tensor]) -> list[Tensor]:
        """Average the gradients of all processes in place; the average losses are returned.

        A leaf that no process has a gradient of stays without one.
        """
        if self.size == 1:
            return list(losses)
        parts = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        known = torch.tensor([float(leaf.grad is not None) for leaf in leaves])
        told = torch.stack([loss.detach().float() for loss in losses])
        flat = torch.cat([*(p.flatten().float() for p in parts), known.to(told.device), told])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        sizes = [*(leaf.numel() for leaf in leaves), len(leaves), len(losses)]
        *gradients, known, told = torch.split(flat, sizes)
        for leaf, gradient, there in zip(leaves, gradients, known.tolist(), strict=True):
            leaf.grad = gradient.view_as(leaf).to(leaf.dtype) if there else None
        return list(told)

    def total(self, value: float) -> float:
        """The sum over all processes, the same number in each."""
        if self.size == 1:
            return value
        found = torch.tensor([value], dtype=torch.float64)
        torch.distributed.all_reduce(found)
        return float(found)

    def agreed(self, value: T) -> T:
        """The leader's value; anything that can be pickled."""
        if self.size == 1:
            return value
        box: list[Any] = [value if self.leads else None]
        torch.distributed.broadcast_object_list(box, src=0)
        found: T = box[0]
        return found


ALONE = Team()
"""One process."""
