"""AdamW over a list of tensors, without `torch.optim`, whose import costs seconds of every run.

"Decoupled Weight Decay Regularization" (Loshchilov and Hutter, 2019); the arithmetic is torch's
own fused kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
"""Decay of the running means of the gradient and of its square, a step."""

EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class Group:
    """Leaf tensors that share a rate and a decay; changed in place by `descend`."""

    leaves: tuple[Tensor, ...]
    scale: float  # learning rate relative to that of the run
    weight_decay: float  # a step, times the learning rate
    means: tuple[Tensor, ...]  # of the gradients
    squares: tuple[Tensor, ...]  # of their squares
    counts: tuple[Tensor, ...]  # steps taken, a float32 scalar each


def group(leaves: Sequence[Tensor], scale: float, weight_decay: float) -> Group:
    """Leaves before their first step."""
    return Group(
        leaves=tuple(leaves),
        scale=scale,
        weight_decay=weight_decay,
        means=tuple(torch.zeros_like(leaf) for leaf in leaves),
        squares=tuple(torch.zeros_like(leaf) for leaf in leaves),
        counts=tuple(torch.zeros((), device=leaf.device) for leaf in leaves),
    )


@torch.no_grad()
def descend(groups: Sequence[Group], learning_rate: float) -> None:
    """One step along the gradients that lie in `grad` of the leaves; the others stay."""
    for own in groups:
        rows = [i for i, leaf in enumerate(own.leaves) if leaf.grad is not None]
        if not rows:
            continue
        counts = [own.counts[i] for i in rows]
        torch._foreach_add_(counts, 1)
        torch._fused_adamw_(
            [own.leaves[i] for i in rows],
            [own.leaves[i].grad for i in rows],  # type: ignore[misc]
            [own.means[i] for i in rows],
            [own.squares[i] for i in rows],
            [],
            counts,
            lr=learning_rate * own.scale,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=own.weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )
