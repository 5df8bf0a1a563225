"""The fast-weight adapter: a small matrix W per head, moved by one gradient step an event.

An event gives a unit key k and a value v; its inner loss is 1/2 |W k - v|^2. The step is

    W' = W0 + a (W - W0);  W <- W' - b (W' k - v) k^T

with decay a in (0, 1] towards the meta-learned start W0 and step size b in (0, 1), both functions
of the event (the gated delta rule). With D = W - W0 and r = v - W0 k it reads

    D_t = a_t D_{t-1} + e_t k_t^T,   e_t = b_t (r_t - a_t D_{t-1} k_t)

so that the residuals e of a whole history solve one unit lower-triangular system.

Two switches of `ModelConfig`. `decay` off: a = 1, no pull back to the start. `first_order`: the
outer gradient takes W' k inside the residual as a constant, as first-order MAML takes the point
where the inner gradient was computed (Finn, Abbeel, Levine, 2017); values stay the same.

Letters in shape comments as in `adapters.types`, and H heads, p = key_dim, v = value_dim.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from adapters import event_inputs, layers
from adapters.event_inputs import Events, read_events
from adapters.layers import by_head, context, linear, normal, read_out, rms
from adapters.types import Block, Field, Meta, ModelConfig, State

_RUN = 64  # events solved at once; 32 to 128 cost about the same, 200 clearly more


class _Writes(NamedTuple):
    """The inner-loop steps of a block; where no step is taken, size 0 and log decay 0."""

    key: Tensor  # [n, t, H, p] unit length
    value: Tensor  # [n, t, H, v]
    size: Tensor  # [n, t, H] b
    log_decay: Tensor  # [n, t, H] log a


def fields(config: ModelConfig) -> dict[str, Field]:
    """Storage of one user: W, inputs of the last two events (newest first), count and time."""
    c = config
    return {
        "weight": Field((c.heads, c.value_dim, c.key_dim), torch.float16),
        "last": Field((2, c.dim), torch.float16),
        "count": Field((), torch.int32),
        "time": Field((), torch.float64),
    }


def new_tensors(config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """Untrained meta tensors with the starts that train well: b = 1/sqrt(t), a = sigmoid(4)."""
    d, H, p, v, g = config.dim, config.heads, config.key_dim, config.value_dim, generator
    gates = torch.zeros(2 * H)
    gates[H:] = 4.0
    return {
        "step_scale": torch.ones(()),
        "adapter.start_weight": torch.zeros(H, v, p),
        **event_inputs.new_tensors(config, g),
        "adapter.write": torch.cat(
            [linear(g, H * (p + v), 2 * d), normal(g, 2 * H, 2 * d, std=0.01)]
        ),
        "adapter.write_bias": torch.cat([torch.zeros(H * v), gates]),
        "adapter.address_bias": normal(g, H, p, std=1.0),  # shared by keys and queries
        "adapter.size_by_shots": torch.full((H,), -0.5),
        "adapter.decay_by_days": torch.zeros(H),
        "adapter.query": linear(g, H * p, 2 * d),
        "adapter.interest_query": normal(g, config.interests, H, p, std=0.3),
        "adapter.gate": linear(g, H * v, 2 * d),
        "adapter.merge": linear(g, d, H * v),
        **layers.read_out_tensors(config, g),
    }


def init(meta: Meta, n: int, profile: Tensor | None) -> State:
    """The start of n users; a profile [n, d] takes the place of an event's item in the input."""
    weight = meta["adapter.start_weight"].expand(n, -1, -1, -1)
    return {
        "weight": weight.contiguous(),
        "last": event_inputs.start_last(meta, n, profile),
        "count": torch.zeros(n, dtype=torch.int32, device=weight.device),
        "time": torch.zeros(n, dtype=torch.float64, device=weight.device),
    }


def step(meta: Meta, state: State, block: Block, vectors: Tensor) -> State:
    """One step on one event a user, in closed form: block [n, 1]."""
    events = _events(meta, state, block, vectors)
    latest = context(events.current, events.previous)
    writes = _writes(meta, events, latest)
    key, value, size, log_decay = (x[:, 0] for x in writes)
    start = meta["adapter.start_weight"]
    before = state["weight"].to(start.dtype)
    # where no step is taken, decay 1 and size 0 keep the matrices to the last bit
    decayed = torch.lerp(start.expand_as(before), before, log_decay.exp()[..., None, None])
    known = torch.matmul(decayed, key[..., None])[..., 0]  # [n, H, v]: W' k
    if meta.config.first_order:
        known = known.detach()
    error = size[..., None] * (known - value)
    weight = torch.addcmul(decayed, error[..., None], key[..., None, :], value=-1)
    return _after(state, events, weight)


def unroll(meta: Meta, state: State, block: Block, vectors: Tensor) -> tuple[State, Tensor]:
    """State after the block [n, t] and interests after each event [n, t, K, d].

    Long blocks go in runs of `_RUN` events, so that the cost grows with t and not with its square.
    """
    runs = []
    for begin in range(0, block.items.shape[1], _RUN):
        state, interests = _run(meta, state, event_inputs.part(block, begin, begin + _RUN), vectors)
        runs.append(interests)
    return state, runs[0] if len(runs) == 1 else torch.cat(runs, dim=1)


def _run(meta: Meta, state: State, block: Block, vectors: Tensor) -> tuple[State, Tensor]:
    """`unroll` of one run, all steps at once."""
    if block.items.shape[1] == 1:
        new = step(meta, state, block, vectors)
        return new, read(meta, new)[:, None]
    events = _events(meta, state, block, vectors)
    latest = context(events.current, events.previous)
    writes = _writes(meta, events, latest)
    start = meta["adapter.start_weight"]
    moved = state["weight"].to(start.dtype) - start  # D before the block [n, H, v, p]
    key, value, size = (x.transpose(1, 2) for x in writes[:3])  # users, heads, events
    total = writes.log_decay.transpose(1, 2).cumsum(-1)  # [n, H, t] log G
    between = _lower_exp(total[..., :, None] - total[..., None, :])  # [n, H, t, t] G_t / G_s
    error = _residuals(key, value, size[..., None], total, between, moved, start)  # [n, H, t, v]
    if meta.config.first_order:
        error = _first_order(error, key, value, size[..., None], total, between, moved, start)
    recalled = _recall(meta, latest, key, error, total, between, moved)
    tail = between[..., -1, :, None] * error  # [n, H, t, v]
    weight = start + total[..., -1, None, None].exp() * moved + tail.transpose(-1, -2) @ key
    stepped = events.valid.any(1)[:, None, None, None]
    weight = torch.where(stepped, weight, state["weight"].to(weight.dtype))
    interests = _read_out(meta, events.current, latest, recalled)
    return _after(state, events, weight), interests


def read(meta: Meta, state: State) -> Tensor:
    """Interests [n, K, d] of users in this state."""
    last = state["last"].to(meta["step_scale"].dtype)
    latest = rms(last).flatten(1)  # the `context` of both
    query = _queries(meta, latest)  # [n, K, H, p]
    recalled = torch.einsum("nhvp,nkhp->nkhv", state["weight"].to(query.dtype), query)
    return _read_out(meta, last[:, 0], latest, recalled)


def _events(meta: Meta, state: State, block: Block, vectors: Tensor) -> Events:
    return read_events(meta, state, state["last"], block, vectors)


def _writes(meta: Meta, events: Events, latest: Tensor) -> _Writes:
    """What the events write; `latest` [n, t, 2 d] is their `context`."""
    c = meta.config
    hv, hp = c.heads * c.value_dim, c.heads * c.key_dim
    mixed = latest @ meta["adapter.write"].T  # [n, t, H (p + v) + 2 H]
    key, rest = by_head(mixed[..., :hp], c.heads), mixed[..., hp:]
    rest = rest + meta["adapter.write_bias"]
    size, decay = rest[..., hv : hv + c.heads], rest[..., hv + c.heads :]
    size = size + meta["adapter.size_by_shots"] * events.log_shots[..., None]
    decay = decay + meta["adapter.decay_by_days"] * events.log_days[..., None]
    valid = events.valid[..., None]
    return _Writes(
        key=functional.normalize(key + meta["adapter.address_bias"], dim=-1),
        value=by_head(rest[..., :hv], c.heads),
        size=torch.where(valid, size.sigmoid() * meta["step_scale"], 0.0),
        log_decay=torch.where(valid & c.decay, functional.logsigmoid(decay), 0.0),
    )


def _residuals(
    key: Tensor,
    value: Tensor,
    size: Tensor,
    total: Tensor,
    between: Tensor,
    moved: Tensor,
    start: Tensor,
) -> Tensor:
    """Residuals e [n, H, t, v] of all steps: (I + b G_t/G_s k_t k_s) e = b (r - G_t D k)."""
    known = total[..., None].exp() * (key @ moved.transpose(-1, -2))  # G_t D k_t
    right = size * (value - key @ start.transpose(-1, -2) - known)
    left = size * between * (key @ key.transpose(-1, -2))
    exact = torch.promote_types(left.dtype, torch.float32)  # under autocast it is bfloat16
    solved: Tensor = torch.linalg.solve_triangular(
        left.tril(-1).to(exact), right.to(exact), upper=False, unitriangular=True
    )
    return solved


def _first_order(
    error: Tensor,
    key: Tensor,
    value: Tensor,
    size: Tensor,
    total: Tensor,
    between: Tensor,
    moved: Tensor,
    start: Tensor,
) -> Tensor:
    """The same residuals e = b (v - W' k) with W' k, which the solved ones tell, as a constant."""
    with torch.no_grad():
        match = (between * (key @ key.transpose(-1, -2))).tril(-1)
        before = total[..., None].exp() * (key @ moved.transpose(-1, -2)) + match @ error
        known = key @ start.transpose(-1, -2) + before
    return size * (value - known)


def _recall(
    meta: Meta,
    latest: Tensor,
    key: Tensor,
    error: Tensor,
    total: Tensor,
    between: Tensor,
    moved: Tensor,
) -> Tensor:
    """W_t q_t of every place: [n, t, K, H, v]."""
    query = _queries(meta, latest)  # [n, t, K, H, p]
    start = torch.einsum("hvp,ntkhp->ntkhv", meta["adapter.start_weight"], query)
    decayed = torch.einsum("nhvp,ntkhp->nhtkv", moved, query) * total[..., None, None].exp()
    match = torch.einsum("nhsp,ntkhp->nhtks", key, query) * between[..., :, None, :]
    written = torch.einsum("nhtks,nhsv->nhtkv", match, error)
    return start + (decayed + written).permute(0, 2, 3, 1, 4)


def _queries(meta: Meta, latest: Tensor) -> Tensor:
    """Unit queries [..., K, H, p] from the latest inputs [..., 2 d]."""
    query = by_head(latest @ meta["adapter.query"].T, meta.config.heads)[..., None, :, :]
    bias = meta["adapter.address_bias"] + meta["adapter.interest_query"]
    return functional.normalize(query + bias, dim=-1)


def _read_out(meta: Meta, current: Tensor, latest: Tensor, recalled: Tensor) -> Tensor:
    """Interests [..., K, d] from what W recalls [..., K, H, v] and the newest input [..., d].

    `latest` [..., 2 d] is the `context` of that and the one before.
    """
    gate = functional.silu(latest @ meta["adapter.gate"].T)[..., None, :]  # [..., 1, H v]
    memory = rms(recalled).flatten(-2) * gate
    hidden = current[..., None, :] + memory @ meta["adapter.merge"].T
    return read_out(meta, hidden, latest)


def _after(state: State, events: Events, weight: Tensor) -> State:
    last = torch.stack([events.current[:, -1], events.previous[:, -1]], dim=1)
    return {"weight": weight, "last": last, "count": events.shots, "time": events.now}


def _lower_exp(x: Tensor) -> Tensor:
    """exp on and below the diagonal, 0 above, where it would overflow."""
    upper = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
    return x.masked_fill(upper, -math.inf).exp()
