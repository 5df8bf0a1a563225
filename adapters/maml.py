"""A head fitted anew to the latest events from a meta-learned start: MAML as it is in the books.

The state is the support set: the last S event inputs with what was thought of them. A user's
interest vector u starts at u0 and takes K gradient steps on the support set (Finn, Abbeel, Levine,
"Model-Agnostic Meta-Learning", 2017). With x_s a projection of the input, w_s its graded value
times a learned weight of its age, and prototypes z that stand for all other items, the inner loss
is logistic,

    m_s = x_s u / sqrt(d) - log sum_j exp(z_j u / sqrt(d))
    loss = sqrt(d) sum_s |w_s| log(1 + exp(-sign(w_s) m_s)) / (1 + sum_s |w_s|)

where w_s > 0 the cross-entropy of the item among the prototypes; a dislike pushes away. Its
gradient is written out, so that steps need no autograd when lists are made,

    g = -sum_s w_s sigmoid(-sign(w_s) m_s) (x_s - z) / (1 + sum_s |w_s|)

with z the mean of the prototypes by softmax(z_j u / sqrt(d)). Step sizes c are learned for every
dimension (Li et al., "Meta-SGD", 2017). The pull back to the start, weight p, is taken implicitly
and so stable however strong it is (the regulariser of iMAML, Rajeswaran et al., 2019; the outer
gradient goes through the steps instead of their fixed point):

    u <- (u - c g + c p u0) / (1 + c p)

`ModelConfig.first_order` takes u inside g as a constant. Reading fits: nothing fitted is stored.

Letters in shape comments as in `adapters.types`, but S = inner_support, and M prototypes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from adapters import event_inputs, windows
from adapters.event_inputs import read_events
from adapters.layers import context, linear, normal, rms
from adapters.types import Block, Field, Meta, ModelConfig, State

_PROTOTYPES = 16
_RUN = 64  # events whose support sets are laid out at once


def fields(config: ModelConfig) -> dict[str, Field]:
    """Storage of one user: last inputs and values (newest first, 0 = none), count and time.

    Raises `ValueError` for a support set that does not hold the two inputs before the first event.
    """
    if config.inner_support < 2:
        raise ValueError(f"inner_support must be at least 2, got {config.inner_support}")
    return {
        "inputs": Field((config.inner_support, config.dim), torch.float16),
        "values": Field((config.inner_support,), torch.float16),
        "count": Field((), torch.int32),
        "time": Field((), torch.float64),
    }


def new_tensors(config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """Untrained meta tensors; steps of size 1 move a vector by about its own length."""
    d, g = config.dim, generator
    return {
        "step_scale": torch.ones(()),
        **event_inputs.new_tensors(config, g),
        "adapter.start_interest": normal(g, config.interests, d, std=0.3),
        "adapter.log_step": torch.zeros(config.interests, d),
        "adapter.support_item": linear(g, d, d),
        "adapter.log_age_weight": torch.zeros(config.inner_support),
        "adapter.prototype": normal(g, _PROTOTYPES, d, std=1.0),
        "adapter.skip": normal(g, d, 2 * d, std=0.5 * (2 * d) ** -0.5),
    }


def init(meta: Meta, n: int, profile: Tensor | None) -> State:
    """The start of n users; a profile [n, d] takes the place of an event's item in the input.

    The two inputs before the first event have value 0: they are read, and not fitted.
    """
    last = event_inputs.start_last(meta, n, profile)
    size = meta.config.inner_support
    return {
        "inputs": functional.pad(last, (0, 0, 0, size - 2)),
        "values": last.new_zeros(n, size),
        "count": torch.zeros(n, dtype=torch.int32, device=last.device),
        "time": torch.zeros(n, dtype=torch.float64, device=last.device),
    }


def step(meta: Meta, state: State, block: Block, vectors: Tensor) -> State:
    """The support set with one event more a user: block [n, 1]."""
    events = read_events(meta, state, state["inputs"][:, :2], block, vectors)
    values = block.values[..., None].to(events.current.dtype)
    return {
        "inputs": windows.push(state["inputs"], events.current, events.valid),
        "values": windows.push(state["values"][..., None], values, events.valid)[..., 0],
        "count": events.shots,
        "time": events.now,
    }


def unroll(meta: Meta, state: State, block: Block, vectors: Tensor) -> tuple[State, Tensor]:
    """State after the block [n, t] and interests after each event [n, t, K, d].

    The fits of all places go side by side, in runs of `_RUN` events that bound the memory.
    """
    runs = []
    for begin in range(0, block.items.shape[1], _RUN):
        part = event_inputs.part(block, begin, begin + _RUN)
        state, line, ends = _append(meta, state, part, vectors)
        runs.append(_interests(meta, line, ends))
    return state, torch.cat(runs, dim=1)


def read(meta: Meta, state: State) -> Tensor:
    """Interests [n, K, d] of users in this state: fits them to the support set."""
    stored = torch.cat([state["inputs"], state["values"][..., None]], dim=2)
    line = stored.to(meta["step_scale"].dtype).flip(1)
    ends = torch.full((len(line), 1), line.shape[1], device=line.device)
    return _interests(meta, line, ends)[:, 0]


def _append(
    meta: Meta, state: State, block: Block, vectors: Tensor
) -> tuple[State, Tensor, Tensor]:
    """State after the block, and the line of inputs and values [n, L, d + 1] with its ends."""
    events = read_events(meta, state, state["inputs"][:, :2], block, vectors)
    size = meta.config.inner_support
    stored = torch.cat([state["inputs"], state["values"][..., None]], dim=2)
    values = block.values[..., None].to(events.current.dtype)
    new = torch.cat([events.current, values], dim=2)
    line, ends = windows.append(stored, torch.full_like(events.shots, size), new, events.valid)
    support = windows.latest(line, ends[:, -1:], size)[:, 0]
    after = {
        "inputs": support[..., :-1].contiguous(),
        "values": support[..., -1].contiguous(),
        "count": events.shots,
        "time": events.now,
    }
    return after, line, ends


def _interests(meta: Meta, line: Tensor, ends: Tensor) -> Tensor:
    """Interests [n, t, K, d] fitted to the S rows before each end [n, t] of a line."""
    inputs, values = line[..., :-1], line[..., -1:]
    items = rms(inputs) @ meta["adapter.support_item"].T
    support = windows.latest(torch.cat([items, values], 2), ends, meta.config.inner_support)
    weight = support[..., -1] * meta["adapter.log_age_weight"].exp()  # [n, t, S]
    fitted = _fit(meta, support[..., :-1], weight)
    current, previous = windows.latest(inputs, ends, 2).unbind(2)
    return fitted + (context(current, previous) @ meta["adapter.skip"].T)[..., None, :]


def _fit(meta: Meta, items: Tensor, weight: Tensor) -> Tensor:
    """Vectors [..., K, d] after all inner steps on items [..., S, d] of these weights [..., S]."""
    start = meta["adapter.start_interest"]
    size = meta["step_scale"] * meta["adapter.log_step"].exp()  # [K, d] c
    pull = size * meta.config.proximal
    vector = start.expand(*weight.shape[:-1], *start.shape)
    for _ in range(meta.config.inner_steps):
        point = vector.detach() if meta.config.first_order else vector
        moved = vector - size * _gradient(point, items, weight, meta["adapter.prototype"])
        vector = (moved + pull * start) / (1.0 + pull)
    return vector


def _gradient(vector: Tensor, items: Tensor, weight: Tensor, prototypes: Tensor) -> Tensor:
    """Gradient [..., K, d] of the inner loss at vectors [..., K, d].

    Items [..., S, d], their weights [..., S], prototypes [M, d].
    """
    scale = 1.0 / math.sqrt(vector.shape[-1])
    others = vector @ prototypes.T * scale  # [..., K, M]
    margin = vector @ items.transpose(-1, -2) * scale - others.logsumexp(-1, keepdim=True)
    weight = weight[..., None, :]  # [..., 1, S]
    push = weight * (-weight.sign() * margin).sigmoid()  # [..., K, S]
    centre = others.softmax(-1) @ prototypes  # [..., K, d]
    total = 1.0 + weight.abs().sum(-1, keepdim=True)
    return (push.sum(-1, keepdim=True) * centre - push @ items) / total
