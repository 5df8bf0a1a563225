"""The adapter as pure functions: `init`, `step`, `unroll`, `read`; every kind behind the same ones.

State in, state out, batched over users. Training, evaluation and the worker call these and
nothing else, so that they cannot differ. A kind is chosen by `ModelConfig.kind`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from adapters import fast_weight, gru, maml, own_weights, sasrec, sasrec_cached
from adapters.types import Block, Field, Meta, ModelConfig, State

__all__ = [
    "KINDS",
    "TRUST_RADIUS",
    "Field",
    "Kind",
    "advance",
    "chosen",
    "fields",
    "guard",
    "init",
    "new_tensors",
    "read",
    "rebuilt",
    "refused",
    "step",
    "steps_off",
    "unroll",
]

TRUST_RADIUS = 100.0
"""Largest Euclidean distance that one call may move any field of a user's adapter.

Of a window of inputs or of what is kept of them, any place.
"""

_FIXED_STEP = ("count", "time", "length")  # bookkeeping: not subject to the trust region
_BY_PLACE = ("inputs", *sasrec_cached.CACHES)  # a block replaces many: each counts for itself


class Kind(Protocol):
    """A module with the functions of one kind of adapter; what they do is said in this one."""

    def fields(self, config: ModelConfig, /) -> dict[str, Field]:
        """Storage of one user."""

    def new_tensors(self, config: ModelConfig, generator: torch.Generator, /) -> dict[str, Tensor]:
        """Untrained meta tensors."""

    def init(self, meta: Meta, n: int, profile: Tensor | None, /) -> State:
        """The start of n users."""

    def step(self, meta: Meta, state: State, block: Block, vectors: Tensor, /) -> State:
        """The state after one event a user."""

    def unroll(
        self, meta: Meta, state: State, block: Block, vectors: Tensor, /
    ) -> tuple[State, Tensor]:
        """The state after a block, and interests after each event."""

    def read(self, meta: Meta, state: State, /) -> Tensor:
        """Interests of users in this state."""


KINDS: dict[str, Kind] = {
    "fast_weight": fast_weight,
    "gru": gru,
    "maml": maml,
    "sasrec": sasrec,
    "sasrec_cached": sasrec_cached,
}
"""Kinds of adapters by the name that `ModelConfig.kind` gives."""


def fields(config: ModelConfig) -> dict[str, Field]:
    """The fields of one user's state with the types they are stored in. Raises `ValueError`."""
    return _kind(config).fields(config)


def new_tensors(config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """Meta tensors of an untrained adapter, drawn from `generator`; part of `Meta.tensors`."""
    return _kind(config).new_tensors(config, generator)


def init(meta: Meta, n: int, profile: Tensor | None = None) -> State:
    """The meta-learned start of n users.

    `profile` [n, d] is a point in the space of item vectors, such as the mean of the vectors that
    match the fields of a profile; a row of zeros says nothing about that user.
    """
    return _kind(meta.config).init(meta, n, profile)


def step(meta: Meta, state: State, block: Block, vectors: Tensor) -> State:
    """One inner-loop step on one event a user: block [n, 1], vectors [N, d].

    A masked place changes nothing; an item that is not in the catalogue (row -1) changes count and
    time only. Raises `ValueError` for a block of another length.
    """
    if block.items.shape[1] != 1:
        raise ValueError(f"a step takes one event a user, got {block.items.shape[1]}")
    return _kind(meta.config).step(meta, state, block, vectors)


def unroll(meta: Meta, state: State, block: Block, vectors: Tensor) -> tuple[State, Tensor]:
    """The state after all events of the block, and what `read` gives after each: [n, t, K, d].

    Equal to t steps, computed at once. vectors [N, d].
    """
    return _kind(meta.config).unroll(meta, state, block, vectors)


def advance(meta: Meta, state: State, block: Block, vectors: Tensor) -> State:
    """The state after all events of the block, where what `read` gives between is not wanted."""
    if block.items.shape[1] == 1:
        return step(meta, state, block, vectors)
    return unroll(meta, state, block, vectors)[0]


def rebuilt(meta: Meta, block: Block, counts: Tensor, vectors: Tensor) -> State:
    """Adapters of n users anew from the events of the block; counts [n] of their events go on."""
    state = advance(meta, init(meta, len(counts)), block, vectors)
    return {**state, "count": counts.to(state["count"])}


def read(meta: Meta, state: State) -> Tensor:
    """Interests [n, K, d]; the score of an item is its largest dot product with one of them."""
    return _kind(meta.config).read(meta, state)


def refused(old: State, new: State) -> Tensor:
    """Users [n] bool whose new state is not finite or left the trust region around the old one."""
    bad = torch.zeros(old["count"].shape[0], dtype=torch.bool, device=old["count"].device)
    for name in old.keys() - set(_FIXED_STEP):
        moved = new[name].float() - old[name].float()
        places = moved if name in _BY_PLACE else moved.flatten(1)[:, None]
        bad |= ~(places.norm(dim=-1) <= TRUST_RADIUS).flatten(1).all(1)  # nan <= r is False
    return bad


def guard(old: State, new: State) -> tuple[State, Tensor]:
    """The new state, but the old one for users whose step is refused; and those users [n] bool."""
    bad = refused(old, new)
    if not bool(bad.any()):
        return new, bad
    return chosen(bad, old, new), bad


def chosen(where: Tensor, one: State, other: State) -> State:
    """State `one` for the users [n] where it says so, `other` for the rest, of the types of it."""
    return {
        k: torch.where(where.view(-1, *[1] * (v.dim() - 1)), one[k].to(v.dtype), v)
        for k, v in other.items()
    }


def steps_off(meta: Meta) -> Meta:
    """The same model whose inner steps have size zero: what the steps alone contribute.

    The kinds `gru`, `sasrec` and `sasrec_cached` have no inner steps and stay as they are.
    """
    zero = torch.zeros_like(meta["step_scale"])
    still = Meta(config=meta.config, tensors={**meta.tensors, "step_scale": zero})
    return own_weights.off(still)


def _kind(config: ModelConfig) -> Kind:
    try:
        return KINDS[config.kind]
    except KeyError:
        raise ValueError(f"no adapter kind {config.kind!r}; there are {sorted(KINDS)}") from None
