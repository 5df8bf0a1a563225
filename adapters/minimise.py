"""Minima of smooth functions of a few hundred numbers, such as the weights of experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def minimise(
    objective: Callable[[Tensor], Tensor], start: Tensor, scale: Tensor, steps: int
) -> Tensor:
    """A smooth function's minimum near `start` by BFGS with backtracking, for a few dozen numbers.

    `scale`, of the shape of `start`, is a first guess of the inverse curvature. Returns the best
    point found; it is never worse than `start`.
    """
    point, inverse = start.clone(), torch.diag(scale.flatten())
    value, slope = _value_and_slope(objective, point)
    for _ in range(steps):
        move = -(inverse @ slope)
        expected = float(move @ slope)
        if expected > -1e-9:
            break
        size = _backtrack(objective, point, value, move.view_as(point), expected)
        if size == 0:
            break
        step = size * move
        point = point + step.view_as(point)
        value, new = _value_and_slope(objective, point)
        inverse = _updated(inverse, step, new - slope)
        slope = new
    return point


def _value_and_slope(objective: Callable[[Tensor], Tensor], at: Tensor) -> tuple[float, Tensor]:
    with torch.enable_grad():
        leaf = at.detach().clone().requires_grad_(True)
        value = objective(leaf)
        (slope,) = torch.autograd.grad(value, leaf)
    return float(value.detach()), slope.flatten()


def _backtrack(
    objective: Callable[[Tensor], Tensor],
    point: Tensor,
    value: float,
    move: Tensor,
    expected: float,
) -> float:
    """The first of 1, 1/4, 1/16, .. that lowers the objective enough; 0 if none does."""
    with torch.no_grad():
        for size in (0.25**i for i in range(8)):
            if float(objective(point + size * move)) <= value + 1e-4 * size * expected:
                return size
    return 0.0


def _updated(inverse: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """The BFGS update of the inverse Hessian; unchanged where the curvature is not positive."""
    curvature = float(step @ change)
    if curvature < 1e-9:
        return inverse
    left = torch.eye(len(step), dtype=step.dtype) - torch.outer(step, change) / curvature
    return left @ inverse @ left.T + torch.outer(step, step) / curvature
