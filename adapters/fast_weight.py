"""The fast-weight adapter: a small matrix W per head, moved by one gradient step an event.

An event gives a unit key k and a value v; its inner loss is 1/2 |W k - v|^2. The step is

    W' = W0 + a (W - W0);  W <- W' - b (W' k - v) k^T

with decay a in (0, 1] towards the meta-learned start W0 and step size b in (0, 1), both functions
of the event (the gated delta rule). With D = W - W0 and r = v - W0 k it reads

    D_t = a_t D_{t-1} + e_t k_t^T,   e_t = b_t (r_t - a_t D_{t-1} k_t)

so that the residuals e of a whole history solve one unit lower-triangular system.

Letters in shape comments as in `adapters.types`, and H heads, p = key_dim, v = value_dim.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from adapters.types import Block, Field, Meta, ModelConfig, State

_GAPS = 34  # log2 buckets of the gap in seconds; the last one means "no event before"
_DAY = 86_400.0
_RUN = 64  # events solved at once; 32 to 128 cost about the same, 200 clearly more


class _Events(NamedTuple):
    """What the events say, before any state but count, time and the last inputs is read."""

    current: Tensor  # [n, t, d] input of the latest valid event up to and including this place
    previous: Tensor  # [n, t, d] input of the valid event before that one
    valid: Tensor  # [n, t] bool: these take a step
    log_shots: Tensor  # [n, t] log(1 + capped count before the event)
    log_days: Tensor  # [n, t] log(1 + days since the event before)
    shots: Tensor  # [n] count after the block
    now: Tensor  # [n] time after the block


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
    d, H, p, v = config.dim, config.heads, config.key_dim, config.value_dim

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * std

    def linear(out: int, inputs: int) -> Tensor:
        return normal(out, inputs, std=inputs**-0.5)

    gates = torch.zeros(2 * H)
    gates[H:] = 4.0
    return {
        "step_scale": torch.ones(()),
        "adapter.start_weight": torch.zeros(H, v, p),
        "adapter.start_last": normal(2, d, std=0.5),
        "adapter.item_scale": torch.stack([torch.ones(d), torch.full((d,), 0.3)]),
        "adapter.value_input": normal(d, std=0.02),
        "adapter.action_input": normal(len(config.actions) + 1, d, std=0.02),
        "adapter.gap_input": normal(_GAPS, d, std=0.02),
        "adapter.count_input": normal(config.count_cap + 1, d, std=0.02),
        "adapter.write": torch.cat([linear(H * (p + v), 2 * d), normal(2 * H, 2 * d, std=0.01)]),
        "adapter.write_bias": torch.cat([torch.zeros(H * v), gates]),
        "adapter.address_bias": normal(H, p, std=1.0),  # shared by keys and queries
        "adapter.size_by_shots": torch.full((H,), -0.5),
        "adapter.decay_by_days": torch.zeros(H),
        "adapter.query": linear(H * p, 2 * d),
        "adapter.interest_query": normal(config.interests, H, p, std=0.3),
        "adapter.gate": linear(H * v, 2 * d),
        "adapter.merge": linear(d, H * v),
        "adapter.expand": linear(2 * d, d),
        "adapter.contract": normal(d, 2 * d, std=0.5 * (2 * d) ** -0.5),
        "adapter.interest": linear(d, d),
        "adapter.skip": normal(d, 2 * d, std=0.5 * (2 * d) ** -0.5),
        "adapter.interest_bias": normal(config.interests, d, std=0.02),
    }


def init(meta: Meta, n: int, profile: Tensor | None) -> State:
    """The start of n users; a profile [n, d] takes the place of an event's item in the input."""
    weight = meta["adapter.start_weight"].expand(n, -1, -1, -1)
    last = meta["adapter.start_last"].expand(n, -1, -1)
    if profile is not None:
        moved = last[:, 0] + _normed(profile) * meta["adapter.item_scale"][0]
        last = torch.stack([moved, last[:, 1]], dim=1)
    return {
        "weight": weight.contiguous(),
        "last": last.contiguous(),
        "count": torch.zeros(n, dtype=torch.int32, device=weight.device),
        "time": torch.zeros(n, dtype=torch.float64, device=weight.device),
    }


def step(meta: Meta, state: State, block: Block, vectors: Tensor) -> State:
    """One step on one event a user, in closed form: block [n, 1]."""
    events = _events(meta, state, block, vectors)
    writes = _writes(meta, events)
    key, value, size, log_decay = (x[:, 0] for x in writes)
    start = meta["adapter.start_weight"]
    before = state["weight"].to(start.dtype)
    # where no step is taken, decay 1 and size 0 keep the matrices to the last bit
    decayed = torch.lerp(start.expand_as(before), before, log_decay.exp()[..., None, None])
    residual = torch.matmul(decayed, key[..., None])[..., 0] - value  # [n, H, v]: W' k - v
    error = size[..., None] * residual
    weight = torch.addcmul(decayed, error[..., None], key[..., None, :], value=-1)
    return _after(state, events, weight)


def unroll(meta: Meta, state: State, block: Block, vectors: Tensor) -> tuple[State, Tensor]:
    """State after the block [n, t] and interests after each event [n, t, K, d].

    Long blocks go in runs of `_RUN` events, so that the cost grows with t and not with its square.
    """
    runs = []
    for begin in range(0, block.items.shape[1], _RUN):
        state, interests = _run(meta, state, _part(block, begin, begin + _RUN), vectors)
        runs.append(interests)
    return state, runs[0] if len(runs) == 1 else torch.cat(runs, dim=1)


def _part(block: Block, begin: int, end: int) -> Block:
    columns = (block.items, block.actions, block.values, block.times, block.mask)
    return Block(*(column[:, begin:end] for column in columns))


def _run(meta: Meta, state: State, block: Block, vectors: Tensor) -> tuple[State, Tensor]:
    """`unroll` of one run, all steps at once."""
    if block.items.shape[1] == 1:
        new = step(meta, state, block, vectors)
        return new, read(meta, new)[:, None]
    events = _events(meta, state, block, vectors)
    writes = _writes(meta, events)
    start = meta["adapter.start_weight"]
    moved = state["weight"].to(start.dtype) - start  # D before the block [n, H, v, p]
    key, value, size = (x.transpose(1, 2) for x in writes[:3])  # users, heads, events
    total = writes.log_decay.transpose(1, 2).cumsum(-1)  # [n, H, t] log G
    between = _lower_exp(total[..., :, None] - total[..., None, :])  # [n, H, t, t] G_t / G_s
    error = _residuals(key, value, size[..., None], total, between, moved, start)  # [n, H, t, v]
    recalled = _recall(meta, events, key, error, total, between, moved)
    tail = between[..., -1, :, None] * error  # [n, H, t, v]
    weight = start + total[..., -1, None, None].exp() * moved + tail.transpose(-1, -2) @ key
    stepped = events.valid.any(1)[:, None, None, None]
    weight = torch.where(stepped, weight, state["weight"].to(weight.dtype))
    interests = _read_out(meta, events.current, events.previous, recalled)
    return _after(state, events, weight), interests


def read(meta: Meta, state: State) -> Tensor:
    """Interests [n, K, d] of users in this state."""
    last = state["last"].to(meta["step_scale"].dtype)
    query = _queries(meta, _context(last[:, 0], last[:, 1]))  # [n, K, H, p]
    recalled = torch.einsum("nhvp,nkhp->nkhv", state["weight"].to(query.dtype), query)
    return _read_out(meta, last[:, 0], last[:, 1], recalled)


def _events(meta: Meta, state: State, block: Block, vectors: Tensor) -> _Events:
    taken = block.mask.int()
    before = state["count"][:, None] + taken.cumsum(1) - taken  # [n, t] events before this one
    times = torch.cat(
        [state["time"][:, None], torch.where(block.mask, block.times, -math.inf)], dim=1
    ).cummax(1)[0]  # [n, t + 1] latest event time so far
    gap = (times[:, 1:] - times[:, :-1]).float().masked_fill(before == 0, 0.0)
    shots = before.clamp(max=meta.config.count_cap)
    valid = block.mask & (block.items >= 0)
    inputs = _inputs(meta, block, vectors, gap, before == 0, shots)
    current, previous = _latest(state["last"].to(meta["step_scale"].dtype), inputs, valid)
    return _Events(
        current=current,
        previous=previous,
        valid=valid,
        log_shots=shots.float().log1p(),
        log_days=(gap / _DAY).log1p(),
        shots=state["count"] + taken.sum(1).to(state["count"].dtype),
        now=times[:, -1],
    )


def _inputs(
    meta: Meta, block: Block, vectors: Tensor, gap: Tensor, first: Tensor, shots: Tensor
) -> Tensor:
    """Event inputs [n, t, d]: the item scaled by what was thought of it, and the circumstances."""
    plain, by_value = meta["adapter.item_scale"]
    value = block.values[..., None].to(vectors.dtype)
    rows = vectors if len(vectors) else vectors.new_zeros(1, meta.config.dim)
    item = _normed(rows[block.items.clamp(min=0)])
    bucket = (1.0 + gap).log2().long().clamp(0, _GAPS - 2).masked_fill(first, _GAPS - 1)
    unknown = len(meta.config.actions)
    action = block.actions.masked_fill((block.actions < 0) | (block.actions >= unknown), unknown)
    inputs: Tensor = (
        item * (plain + by_value * value.tanh())
        + value * meta["adapter.value_input"]
        + meta["adapter.action_input"][action]
        + meta["adapter.gap_input"][bucket]
        + meta["adapter.count_input"][shots]
    )
    return inputs


def _latest(last: Tensor, inputs: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of the latest and the last but one valid event at every place, each [n, t, d]."""
    if valid.shape[1] == 1:
        keep = valid[..., None]
        newest = torch.where(keep, inputs, last[:, :1])
        return newest, torch.where(keep, last[:, :1], last[:, 1:])
    line = torch.cat([last[:, 1:], last[:, :1], inputs], dim=1)  # [n, 2 + t, d] oldest first
    place = torch.arange(2, line.shape[1], device=line.device)
    place = torch.where(valid, place, 1).cummax(1)[0]  # [n, t] of the latest in `line`
    stem = torch.tensor([0, 1], device=line.device).expand(len(line), 2)
    before = torch.cat([stem, place], dim=1).gather(1, place - 1)

    def pick(where: Tensor) -> Tensor:
        return line.gather(1, where[..., None].expand(-1, -1, line.shape[2]))

    return pick(place), pick(before)


def _writes(meta: Meta, events: _Events) -> _Writes:
    c = meta.config
    hv, hp = c.heads * c.value_dim, c.heads * c.key_dim
    context = _context(events.current, events.previous)
    mixed = context @ meta["adapter.write"].T  # [n, t, H (p + v) + 2 H]
    key, rest = _by_head(mixed[..., :hp], c.heads), mixed[..., hp:]
    rest = rest + meta["adapter.write_bias"]
    size, decay = rest[..., hv : hv + c.heads], rest[..., hv + c.heads :]
    size = size + meta["adapter.size_by_shots"] * events.log_shots[..., None]
    decay = decay + meta["adapter.decay_by_days"] * events.log_days[..., None]
    valid = events.valid[..., None]
    return _Writes(
        key=functional.normalize(key + meta["adapter.address_bias"], dim=-1),
        value=_by_head(rest[..., :hv], c.heads),
        size=torch.where(valid, size.sigmoid() * meta["step_scale"], 0.0),
        log_decay=torch.where(valid, functional.logsigmoid(decay), 0.0),
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
    solved: Tensor = torch.linalg.solve_triangular(
        left.tril(-1), right, upper=False, unitriangular=True
    )
    return solved


def _recall(
    meta: Meta,
    events: _Events,
    key: Tensor,
    error: Tensor,
    total: Tensor,
    between: Tensor,
    moved: Tensor,
) -> Tensor:
    """W_t q_t of every place: [n, t, K, H, v]."""
    query = _queries(meta, _context(events.current, events.previous))  # [n, t, K, H, p]
    start = torch.einsum("hvp,ntkhp->ntkhv", meta["adapter.start_weight"], query)
    decayed = torch.einsum("nhvp,ntkhp->nhtkv", moved, query) * total[..., None, None].exp()
    match = torch.einsum("nhsp,ntkhp->nhtks", key, query) * between[..., :, None, :]
    written = torch.einsum("nhtks,nhsv->nhtkv", match, error)
    return start + (decayed + written).permute(0, 2, 3, 1, 4)


def _queries(meta: Meta, context: Tensor) -> Tensor:
    """Unit queries [..., K, H, p] from the context [..., 2 d]."""
    query = _by_head(context @ meta["adapter.query"].T, meta.config.heads)[..., None, :, :]
    bias = meta["adapter.address_bias"] + meta["adapter.interest_query"]
    return functional.normalize(query + bias, dim=-1)


def _read_out(meta: Meta, current: Tensor, previous: Tensor, recalled: Tensor) -> Tensor:
    """Interests [..., K, d] from what W recalls [..., K, H, v] and the latest inputs [..., d]."""
    context = _context(current, previous)
    gate = functional.silu(context @ meta["adapter.gate"].T)[..., None, :]  # [..., 1, H v]
    memory = _rms(recalled).flatten(-2) * gate
    hidden = current[..., None, :] + memory @ meta["adapter.merge"].T
    inner = functional.silu(_rms(hidden) @ meta["adapter.expand"].T)
    hidden = hidden + inner @ meta["adapter.contract"].T
    skip = (context @ meta["adapter.skip"].T)[..., None, :]
    return _rms(hidden) @ meta["adapter.interest"].T + skip + meta["adapter.interest_bias"]


def _after(state: State, events: _Events, weight: Tensor) -> State:
    last = torch.stack([events.current[:, -1], events.previous[:, -1]], dim=1)
    return {"weight": weight, "last": last, "count": events.shots, "time": events.now}


def _context(current: Tensor, previous: Tensor) -> Tensor:
    """Both latest inputs, each normed: [..., 2 d]."""
    return torch.cat([_rms(current), _rms(previous)], dim=-1)


def _lower_exp(x: Tensor) -> Tensor:
    """exp on and below the diagonal, 0 above, where it would overflow."""
    upper = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
    return x.masked_fill(upper, -math.inf).exp()


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[..., H m] as [..., H, m]."""
    return x.reshape(*x.shape[:-1], heads, -1)


def _normed(x: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the last dimension."""
    return functional.layer_norm(x, x.shape[-1:])


def _rms(x: Tensor) -> Tensor:
    """Root mean square 1 over the last dimension."""
    return functional.rms_norm(x, x.shape[-1:], eps=1e-6)
