"""What every kind of adapter is built of: norms, draws of weights, and the read-out.

Letters in shape comments as in `adapters.types`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from adapters.types import Meta, ModelConfig


def normal(generator: torch.Generator, *shape: int, std: float) -> Tensor:
    """Weights of this shape with mean 0."""
    return torch.randn(*shape, generator=generator) * std


def linear(generator: torch.Generator, out: int, inputs: int) -> Tensor:
    """Weights [out, inputs] that keep the variance of what comes in."""
    return normal(generator, out, inputs, std=inputs**-0.5)


def normed(x: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the last dimension."""
    return functional.layer_norm(x, x.shape[-1:])


def rms(x: Tensor) -> Tensor:
    """Root mean square 1 over the last dimension."""
    return functional.rms_norm(x, x.shape[-1:], eps=1e-6)


def context(current: Tensor, previous: Tensor) -> Tensor:
    """Both latest inputs, each normed: [..., 2 d]."""
    return torch.cat([rms(current), rms(previous)], dim=-1)


def by_head(x: Tensor, heads: int) -> Tensor:
    """[..., H m] as [..., H, m]."""
    return x.reshape(*x.shape[:-1], heads, -1)


def read_out_tensors(config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """The untrained tensors of `read_out`."""
    d = config.dim
    return {
        "adapter.expand": linear(generator, 2 * d, d),
        "adapter.contract": normal(generator, d, 2 * d, std=0.5 * (2 * d) ** -0.5),
        "adapter.interest": linear(generator, d, d),
        "adapter.skip": normal(generator, d, 2 * d, std=0.5 * (2 * d) ** -0.5),
        "adapter.interest_bias": normal(generator, config.interests, d, std=0.02),
    }


def read_out(meta: Meta, hidden: Tensor, latest: Tensor) -> Tensor:
    """Interests [..., K, d] from what is remembered [..., K, d] and the `context` [..., 2 d].

    A small feed-forward layer, and a skip from the latest inputs.
    """
    inner = functional.silu(rms(hidden) @ meta["adapter.expand"].T)
    hidden = hidden + inner @ meta["adapter.contract"].T
    skip = (latest @ meta["adapter.skip"].T)[..., None, :]
    return rms(hidden) @ meta["adapter.interest"].T + skip + meta["adapter.interest_bias"]


def read_hidden(meta: Meta, hidden: Tensor, current: Tensor, previous: Tensor) -> Tensor:
    """Interests [..., K, d] from hidden units and the latest inputs, each [..., d]."""
    asked = hidden[..., None, :] + meta["adapter.interest_query"]
    return read_out(meta, asked, context(current, previous))
