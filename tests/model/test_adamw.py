"""The optimiser of the outer loop."""

from __future__ import annotations

import subprocess
import sys

import torch

from adapters import adamw


def test_it_steps_as_torch_does() -> None:
    """Ten steps of two groups equal those of `torch.optim.AdamW`; a leaf without gradient stays."""
    generator = torch.Generator().manual_seed(0)
    own = [torch.randn(4, 3, generator=generator).requires_grad_() for _ in range(3)]
    theirs = [leaf.detach().clone().requires_grad_() for leaf in own]
    groups = [adamw.group(own[:2], 1.0, 0.1), adamw.group(own[2:], 5.0, 0.0)]
    other = torch.optim.AdamW(
        [
            {"params": theirs[:2], "lr": 1e-2, "weight_decay": 0.1},
            {"params": theirs[2:], "lr": 5e-2, "weight_decay": 0.0},
        ]
    )
    for step in range(10):
        for mine, yours in zip(own, theirs, strict=True):
            grad = torch.randn(4, 3, generator=generator)
            still = step == 3 and mine is own[0]
            mine.grad, yours.grad = (None, None) if still else (grad, grad.clone())
        adamw.descend(groups, 1e-2)
        other.step()
    for mine, yours in zip(own, theirs, strict=True):
        torch.testing.assert_close(mine, yours)


def test_training_does_not_import_the_compiler() -> None:
    """Neither the optimiser nor the outer loop loads `torch._dynamo`, which takes seconds."""
    code = (
        "import sys, torch; from adapters import adamw, meta_train;"
        "leaf = torch.ones(2, requires_grad=True); leaf.sum().backward();"
        "adamw.descend([adamw.group([leaf], 1.0, 0.0)], 0.1);"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
