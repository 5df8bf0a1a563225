"""A gated recurrent unit over the event inputs: the recurrent control beside the inner loop.

The encoder of GRU4Rec (Hidasi et al., "Session-based Recommendations with Recurrent Neural
Networks", 2016), one layer, with the event inputs and the read-out of the other kinds. It has no
inner steps: `adapter.steps_off` leaves it as it is.

Letters in shape comments as in `adapters.types`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adapters import event_inputs
from adapters.event_inputs import Events, read_events
from adapters.layers import linear, normal, read_hidden, read_out_tensors, rms
from adapters.types import Block, Field, Meta, ModelConfig, State


def fields(config: ModelConfig) -> dict[str, Field]:
    """Storage of one user: hidden units, inputs of the last two events, count and time."""
    return {
        "hidden": Field((config.dim,), torch.float16),
        "last": Field((2, config.dim), torch.float16),
        "count": Field((), torch.int32),
        "time": Field((), torch.float64),
    }


def new_tensors(config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """Untrained meta tensors; rows of the gates in torch's order: reset, update, new."""
    d, g = config.dim, generator
    return {
        "step_scale": torch.ones(()),
        "adapter.start_hidden": torch.zeros(d),
        **event_inputs.new_tensors(config, g),
        "adapter.input_weight": linear(g, 3 * d, d),
        "adapter.hidden_weight": linear(g, 3 * d, d),
        "adapter.input_bias": torch.zeros(3 * d),
        "adapter.hidden_bias": torch.zeros(3 * d),
        "adapter.interest_query": normal(g, config.interests, d, std=0.3),
        **read_out_tensors(config, g),
    }


def init(meta: Meta, n: int, profile: Tensor | None) -> State:
    """The start of n users; a profile [n, d] takes the place of an event's item in the input."""
    hidden = meta["adapter.start_hidden"].expand(n, -1)
    return {
        "hidden": hidden.contiguous(),
        "last": event_inputs.start_last(meta, n, profile),
        "count": torch.zeros(n, dtype=torch.int32, device=hidden.device),
        "time": torch.zeros(n, dtype=torch.float64, device=hidden.device),
    }


def step(meta: Meta, state: State, block: Block, vectors: Tensor) -> State:
    """The hidden units after one event a user: block [n, 1]."""
    return _run(meta, state, block, vectors)[0]


def unroll(meta: Meta, state: State, block: Block, vectors: Tensor) -> tuple[State, Tensor]:
    """State after the block [n, t] and interests after each event [n, t, K, d]."""
    new, events, hidden = _run(meta, state, block, vectors)
    return new, read_hidden(meta, hidden, events.current, events.previous)


def read(meta: Meta, state: State) -> Tensor:
    """Interests [n, K, d] of users in this state."""
    last = state["last"].to(meta["step_scale"].dtype)
    return read_hidden(meta, state["hidden"].to(last.dtype), last[:, 0], last[:, 1])


def _run(meta: Meta, state: State, block: Block, vectors: Tensor) -> tuple[State, Events, Tensor]:
    """State after the block, its events, and the hidden units after each [n, t, d].

    One event after the other, as a GRU must; users side by side.
    """
    events = read_events(meta, state, state["last"], block, vectors)
    inputs = rms(events.current)
    hidden = state["hidden"].to(inputs.dtype)
    after = []
    for place in range(inputs.shape[1]):
        new = torch.gru_cell(
            inputs[:, place],
            hidden,
            meta["adapter.input_weight"],
            meta["adapter.hidden_weight"],
            meta["adapter.input_bias"],
            meta["adapter.hidden_bias"],
        )
        hidden = torch.where(events.valid[:, place, None], new, hidden)
        after.append(hidden)
    last = torch.stack([events.current[:, -1], events.previous[:, -1]], dim=1)
    return (
        {"hidden": hidden, "last": last, "count": events.shots, "time": events.now},
        events,
        torch.stack(after, dim=1),
    )
