"""Minima of smooth functions of a few hundred numbers, such as the weights of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def minimise(
    objective: Callable[[Tensor], Tensor], start: Tensor, scale: Tensor, steps: int
) -> Tensor:
    """A smooth function's minimum near `start` by BFGS with backtracking, for a few dozen numbers.

    `scale`, of the shape of `start`, is a first guess of the inverse curvature. Returns the best
    point found; it is never worse than `start`.
    """
    point, value, slope = _tried(objective, start).known()
    inverse = torch.diag(scale.flatten())
    for _ in range(steps):
        move = -(inverse @ slope)
        expected = float(move @ slope)
        if expected > -1e-9:
            break
        size, lower = _backtrack(objective, point, value, move.view_as(point), expected)
        if lower is None:
            break
        old = slope
        point, value, slope = lower.known()
        inverse = _updated(inverse, size * move, slope - old)
    return point


class _Tried(NamedTuple):
    """A point where the objective is known; its slope costs as much again, so it is asked for."""

    leaf: Tensor
    value: Tensor

    def known(self) -> tuple[Tensor, float, Tensor]:
        """The point, its value and its slope, flat."""
        (slope,) = torch.autograd.grad(self.value, self.leaf)
        return self.leaf.detach(), float(self.value.detach()), slope.flatten()


def _tried(objective: Callable[[Tensor], Tensor], at: Tensor) -> _Tried:
    with torch.enable_grad():
        leaf = at.detach().clone().requires_grad_(True)
        return _Tried(leaf, objective(leaf))


def _backtrack(
    objective: Callable[[Tensor], Tensor],
    point: Tensor,
    value: float,
    move: Tensor,
    expected: float,
) -> tuple[float, _Tried | None]:
    """The first of 1, 1/4, 1/16, .. of a move that lowers the objective enough, and the point."""
    for size in (0.25**i for i in range(8)):
        tried = _tried(objective, point + size * move)
        if float(tried.value.detach()) <= value + 1e-4 * size * expected:
            return size, tried
    return 0.0, None


def _updated(inverse: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """The BFGS update of the inverse Hessian; unchanged where the curvature is not positive."""
    curvature = float(step @ change)
    if curvature < 1e-9:
        return inverse
    left = torch.eye(len(step), dtype=step.dtype) - torch.outer(step, change) / curvature
    return left @ inverse @ left.T + torch.outer(step, step) / curvature
