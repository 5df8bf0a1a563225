"""SASRec one event at a time: keys and values are kept, the window is not encoded anew.

The same function of the same tensors as `adapters.sasrec`, so that a model trained as one runs as
the other. Where that one keeps inputs, this one keeps what they left in each layer, as decoders of
language models do (Shazeer, "Fast Transformer Decoding", 2019; Pope et al., "Efficiently Scaling
Transformer Inference", 2022): an event costs the attention of one place, and a user twice the
memory. Attention is banded, so nothing that is kept ever has to be computed again.

A layer's keys and values are rings: the input with number i lies at place i modulo band.

Letters in shape comments as in `adapters.types`, and H heads, b = band of a layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adapters import event_inputs, sasrec
from adapters.event_inputs import Events, read_events
from adapters.layers import read_hidden, rms
from adapters.sasrec import HEADS, bands, feed_forward, new_tensors
from adapters.types import Block, Field, Meta, ModelConfig, State

__all__ = ["CACHES", "fields", "init", "new_tensors", "read", "step", "unroll"]

CACHES = ("keys_0", "values_0", "keys_1", "values_1")


def fields(config: ModelConfig) -> dict[str, Field]:
    """Storage of one user: rings, output and last two inputs (newest first), counts and time.

    `length` is the number of inputs so far, the two before the first event included. Raises
    `ValueError` as `adapters.sasrec.fields` does.
    """
    sasrec.fields(config)
    size = config.dim // HEADS
    rings = {
        f"{name}_{number}": Field((HEADS, band, size), torch.float16)
        for number, band in enumerate(bands(config))
        for name in ("keys", "values")
    }
    return {
        **rings,
        "hidden": Field((config.dim,), torch.float16),
        "last": Field((2, config.dim), torch.float16),
        "length": Field((), torch.int32),
        "count": Field((), torch.int32),
        "time": Field((), torch.float64),
    }


def init(meta: Meta, n: int, profile: Tensor | None) -> State:
    """The start of n users, who have met the two inputs before the first event.

    A profile [n, d] takes the place of an event's item in the newer one.
    """
    last = event_inputs.start_last(meta, n, profile)
    layout = fields(meta.config)
    state = {name: last.new_zeros(n, *layout[name].shape) for name in (*CACHES, "hidden")}
    state["length"] = torch.zeros(n, dtype=torch.int32, device=last.device)
    everybody = torch.ones(n, dtype=torch.bool, device=last.device)
    for place in (1, 0):  # the older one first
        state = _append(meta, state, last[:, place], everybody)
    return {
        **state,
        "last": last,
        "count": torch.zeros(n, dtype=torch.int32, device=last.device),
        "time": torch.zeros(n, dtype=torch.float64, device=last.device),
    }


def step(meta: Meta, state: State, block: Block, vectors: Tensor) -> State:
    """One place of attention in each layer: block [n, 1]."""
    return _run(meta, state, block, vectors)[0]


def unroll(meta: Meta, state: State, block: Block, vectors: Tensor) -> tuple[State, Tensor]:
    """State after the block [n, t] and interests after each event [n, t, K, d].

    One event after the other; for training, `adapters.sasrec` takes them at once.
    """
    new, events, hidden = _run(meta, state, block, vectors)
    return new, read_hidden(meta, torch.stack(hidden, dim=1), events.current, events.previous)


def read(meta: Meta, state: State) -> Tensor:
    """Interests [n, K, d] of users in this state."""
    last = state["last"].to(meta["step_scale"].dtype)
    return read_hidden(meta, state["hidden"].to(last.dtype), last[:, 0], last[:, 1])


def _run(
    meta: Meta, state: State, block: Block, vectors: Tensor
) -> tuple[State, Events, list[Tensor]]:
    """State after the block, its events, and the output after each [n, d]."""
    events = read_events(meta, state, state["last"], block, vectors)
    hidden = []
    for place in range(block.items.shape[1]):
        state = _append(meta, state, events.current[:, place], events.valid[:, place])
        hidden.append(state["hidden"])
    last = torch.stack([events.current[:, -1], events.previous[:, -1]], dim=1)
    return {**state, "last": last, "count": events.shots, "time": events.now}, events, hidden


def _append(meta: Meta, state: State, current: Tensor, valid: Tensor) -> State:
    """State with the inputs [n, d] of the `valid` users [n]; the others keep every bit."""
    new, x = dict(state), rms(current)
    for number in range(2):
        x, keys, values = _layer(meta, number, x, state, valid)
        new |= {f"keys_{number}": keys, f"values_{number}": values}
    new["hidden"] = torch.where(valid[:, None], x, state["hidden"].to(x.dtype))
    new["length"] = state["length"] + valid.to(state["length"].dtype)
    return new


def _layer(
    meta: Meta, number: int, x: Tensor, state: State, valid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's output [n, d] for its newest input [n, d], and the rings with it [n, H, b, d/H]."""
    n, d = x.shape
    mixed = (rms(x) @ meta[f"adapter.attend_{number}"].T).view(n, 3 * HEADS, 1, d // HEADS)
    query, key, value = mixed.chunk(3, dim=1)  # [n, H, 1, d / H]
    length = state["length"].long()
    keys = _put(state[f"keys_{number}"], length, key, valid)
    values = _put(state[f"values_{number}"], length, value, valid)
    scores = query @ keys.transpose(-1, -2) / math.sqrt(d // HEADS)  # [n, H, 1, b]
    bias = _bias(meta[f"adapter.distance_{number}"], length)
    attended = ((scores + bias[:, :, None]).softmax(-1) @ values).flatten(1)
    return feed_forward(meta, number, x, attended), keys, values


def _put(ring: Tensor, length: Tensor, row: Tensor, valid: Tensor) -> Tensor:
    """The rings [n, H, b, d/H] with a row [n, H, 1, d/H] behind the first `length` [n] ones."""
    ring = ring.to(row.dtype)
    at = (length % ring.shape[2]).view(-1, 1, 1, 1).expand_as(row)
    return ring.scatter(2, at, torch.where(valid.view(-1, 1, 1, 1), row, ring.gather(2, at)))


def _bias(by_distance: Tensor, newest: Tensor) -> Tensor:
    """What is added to attention from inputs with these numbers [n] to a ring: [n, H, b].

    Learned by distance [H, b], and -inf where no input has been yet.
    """
    band = by_distance.shape[1]
    distance = (newest[:, None] - torch.arange(band, device=newest.device)) % band  # [n, b]
    bias = by_distance[:, distance].transpose(0, 1)
    return bias.masked_fill((distance > newest[:, None])[:, None], -math.inf)
