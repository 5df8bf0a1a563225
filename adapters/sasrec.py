"""Self-attention over the latest event inputs: the transformer control beside the inner loop.

SASRec (Kang and McAuley, "Self-Attentive Sequential Recommendation", 2018) with two layers of two
heads, norms before each part, and the event inputs and the read-out of the other kinds. The state
is the last `window` inputs; reading encodes them anew. There are no inner steps:
`adapter.steps_off` leaves it as it is.

What is learned about places is counted backwards, as a bias on attention by distance (Raffel et
al., "T5", 2020), so that a full window slides. With attention over the whole window in every
layer, a layer's output would depend on where the window begins, and a history could not be encoded
at once. So attention is banded (Beltagy, Peters, Cohan, "Longformer", 2020): the first layer sees
b = w // 2 inputs back and the second w - b + 1 outputs of the first, the event's own included.
Together they reach exactly the last w inputs; the parallel form and the encoding of the window
alone are the same function. Up to w // 2 inputs this is SASRec's full attention.

Letters in shape comments as in `adapters.types`, and w = window, L places of a line, Q of them
that are asked for, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from adapters import event_inputs, windows
from adapters.event_inputs import read_events
from adapters.layers import by_head, linear, normal, read_hidden, read_out_tensors, rms
from adapters.types import Block, Field, Meta, ModelConfig, State

HEADS = 2
_RUN = 128  # events encoded at once


def fields(config: ModelConfig) -> dict[str, Field]:
    """Storage of one user: the last inputs (newest first), how many there are, count and time.

    The two inputs before the first event count as inputs. Raises `ValueError` for a window that
    does not hold them or dimensions that the heads cannot share.
    """
    if config.window < 2:
        raise ValueError(f"window must be at least 2, got {config.window}")
    if config.dim % HEADS:
        raise ValueError(f"dim must be a multiple of {HEADS} for sasrec, got {config.dim}")
    return {
        "inputs": Field((config.window, config.dim), torch.float16),
        "length": Field((), torch.int32),
        "count": Field((), torch.int32),
        "time": Field((), torch.float64),
    }


def new_tensors(config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """Untrained meta tensors."""
    d, g = config.dim, generator
    tensors = {"step_scale": torch.ones(()), **event_inputs.new_tensors(config, g)}
    for number, band in enumerate(bands(config)):
        tensors |= {
            f"adapter.attend_{number}": linear(g, 3 * d, d),  # query, key, value
            f"adapter.distance_{number}": torch.zeros(HEADS, band),
            f"adapter.merge_{number}": normal(g, d, d, std=0.5 * d**-0.5),
            f"adapter.expand_{number}": linear(g, 2 * d, d),
            f"adapter.contract_{number}": normal(g, d, 2 * d, std=0.5 * (2 * d) ** -0.5),
        }
    return {
        **tensors,
        "adapter.interest_query": normal(g, config.interests, d, std=0.3),
        **read_out_tensors(config, g),
    }


def init(meta: Meta, n: int, profile: Tensor | None) -> State:
    """The start of n users; a profile [n, d] takes the place of an event's item in the input."""
    last = event_inputs.start_last(meta, n, profile)
    return {
        "inputs": functional.pad(last, (0, 0, 0, meta.config.window - 2)),
        "length": torch.full((n,), 2, dtype=torch.int32, device=last.device),
        "count": torch.zeros(n, dtype=torch.int32, device=last.device),
        "time": torch.zeros(n, dtype=torch.float64, device=last.device),
    }


def step(meta: Meta, state: State, block: Block, vectors: Tensor) -> State:
    """The window with one event more a user: block [n, 1]."""
    events = read_events(meta, state, state["inputs"][:, :2], block, vectors)
    length = state["length"] + events.valid[:, 0].to(state["length"].dtype)
    return {
        "inputs": windows.push(state["inputs"], events.current, events.valid),
        "length": length.clamp(max=meta.config.window),
        "count": events.shots,
        "time": events.now,
    }


def unroll(meta: Meta, state: State, block: Block, vectors: Tensor) -> tuple[State, Tensor]:
    """State after the block [n, t] and interests after each event [n, t, K, d].

    Long blocks go in runs of `_RUN` events, so that the cost grows with t and not with its square.
    """
    runs = []
    for begin in range(0, block.items.shape[1], _RUN):
        part = event_inputs.part(block, begin, begin + _RUN)
        state, line, ends = _append(meta, state, part, vectors)
        hidden = _pick(_encode(meta, line), ends - 1)  # [n, t, d]
        current, previous = windows.latest(line, ends, 2).unbind(2)
        runs.append(read_hidden(meta, hidden, current, previous))
    return state, torch.cat(runs, dim=1)


def read(meta: Meta, state: State) -> Tensor:
    """Interests [n, K, d] of users in this state: encodes the window."""
    return encode(meta, state, bands(meta.config)[1])


def encode(meta: Meta, state: State, reach: int) -> Tensor:
    """`read`, with the first layer at the newest `reach` places and the second at the newest one.

    Where the second looks is enough; a SASRec whose layers see the whole window needs all of it.
    """
    stored = state["inputs"].to(meta["step_scale"].dtype)
    line = stored.flip(1)  # [n, w, d] oldest first, empty places in front
    place = torch.arange(line.shape[1], device=line.device)
    empty = place < line.shape[1] - state["length"][:, None]
    first = layer(meta, 0, rms(line), reach, empty)
    hidden = layer(meta, 1, first, 1, empty[:, -reach:])[:, 0]
    return read_hidden(meta, hidden, stored[:, 0], stored[:, 1])


def _append(
    meta: Meta, state: State, block: Block, vectors: Tensor
) -> tuple[State, Tensor, Tensor]:
    """State after the block, and the line of inputs [n, L, d] with its ends [n, t]."""
    events = read_events(meta, state, state["inputs"][:, :2], block, vectors)
    line, ends = windows.append(state["inputs"], state["length"], events.current, events.valid)
    size = meta.config.window
    new = {
        "inputs": windows.latest(line, ends[:, -1:], size)[:, 0],
        "length": ends[:, -1].clamp(max=size).to(state["length"].dtype),
        "count": events.shots,
        "time": events.now,
    }
    return new, line, ends


def bands(config: ModelConfig) -> tuple[int, int]:
    """How many places back each layer attends, its own included."""
    first = config.window // 2
    return first, config.window - first + 1


def _encode(meta: Meta, line: Tensor) -> Tensor:
    """Outputs of both layers at all places of the inputs [n, L, d]."""
    size = line.shape[1]
    return layer(meta, 1, layer(meta, 0, rms(line), size), size)


def layer(meta: Meta, number: int, x: Tensor, last: int, empty: Tensor | None = None) -> Tensor:
    """Attention and a feed-forward part at the `last` places of x [n, L, d]: [n, last, d].

    Nobody but themselves attends to `empty` places [n, L] bool; what comes out there is undefined.
    """
    d, here = x.shape[-1], x[:, x.shape[1] - last :]
    weight = meta[f"adapter.attend_{number}"]
    query = by_head(rms(here) @ weight[:d].T, HEADS).transpose(1, 2)  # [n, H, last, d / H]
    key, value = by_head(rms(x) @ weight[d:].T, 2 * HEADS).transpose(1, 2).chunk(2, dim=1)
    places = torch.arange(x.shape[1], device=x.device)
    distance = places[len(places) - last :, None] - places  # [last, L]
    bias = _bias(meta[f"adapter.distance_{number}"], distance)
    if empty is not None:
        hidden = empty[:, None] & (distance != 0)  # [n, last, L]
        bias = torch.where(hidden[:, None], -math.inf, bias)
    scores = query @ key.transpose(-1, -2) / math.sqrt(d // HEADS) + bias  # [n, H, last, L]
    attended = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    return feed_forward(meta, number, here, attended)


def feed_forward(meta: Meta, number: int, here: Tensor, attended: Tensor) -> Tensor:
    """A layer's output [..., d] from its input [..., d] and what its heads gathered [..., d]."""
    here = here + attended @ meta[f"adapter.merge_{number}"].T
    inner = functional.silu(rms(here) @ meta[f"adapter.expand_{number}"].T)
    return here + inner @ meta[f"adapter.contract_{number}"].T


def _bias(by_distance: Tensor, distance: Tensor) -> Tensor:
    """What is added to attention at distances [Q, L]: [H, Q, L].

    Learned by distance [H, band], and -inf outside the band.
    """
    band = by_distance.shape[1]
    bias = by_distance[:, distance.clamp(0, band - 1)]
    return bias.masked_fill((distance < 0) | (distance >= band), -math.inf)


def _pick(x: Tensor, at: Tensor) -> Tensor:
    """Rows [n, Q, d] of x [n, L, d] at places [n, Q]."""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[2]))
