"""The value objects of learning: plain tensors with names, batched over users.

Letters in shape comments: n users, t events of a user (padded right), S places in the support
set, N rows of the catalogue, d item dimensions, T text dimensions, K interests, E experts,
H half-lives, M neighbours of an item. A row is an item's place in the catalogue; -1 stands for
"no item" or "not in the catalogue".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
"""The adapter's state of n users: one tensor a field, users first. See `adapter.fields`."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the shapes and the meaning of a model's tensors depend on; part of every bundle."""

    kind: str = "fast_weight"
    dim: int = 64
    text_dim: int = 32
    heads: int = 4
    key_dim: int = 16
    value_dim: int = 16
    interests: int = 1
    count_cap: int = 32
    support: int = 64
    neighbours: int = 64
    half_lives: tuple[float, ...] = (86_400.0, 7 * 86_400.0, 30 * 86_400.0)  # seconds
    bucket: float = 3_600.0  # seconds of event time after which signals count
    actions: tuple[str, ...] = ()
    user_delta: bool = False
    decay: bool = True  # fast_weight: False = no pull back to the start
    first_order: bool = False  # fast_weight, maml: no gradient through what a step starts from
    proximal: float = 0.0  # maml: weight of the pull back to the start
    inner_steps: int = 3  # maml: gradient steps of a fit
    inner_support: int = 16  # maml: latest events that are fitted
    window: int = 64  # sasrec: latest inputs that are attended to

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`; unknown names raise `TypeError`."""
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**plain)


@dataclass(frozen=True, slots=True)
class Meta:
    """Everything the outer loop learned: configuration and named tensors."""

    config: ModelConfig
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def to(self, device: torch.device | str) -> Meta:
        """The same on another device."""
        return replace(self, tensors={k: v.to(device) for k, v in self.tensors.items()})


@dataclass(frozen=True, slots=True)
class Field:
    """How one field of one user's state is stored."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Block:
    """The next events of n users, oldest first, padded right; a masked place changes nothing."""

    items: Tensor  # [n, t] int64 rows
    actions: Tensor  # [n, t] int64 index into ModelConfig.actions
    values: Tensor  # [n, t] float32 evidence: action weight x graded value, negative = dislike
    times: Tensor  # [n, t] float64 unix seconds of event time
    mask: Tensor  # [n, t] bool

    def to(self, device: torch.device | str) -> Block:
        """The same on another device."""
        return Block(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Support:
    """The last S events of n users, newest first; empty places have row -1 and time 0."""

    items: Tensor  # [n, S] int64 rows, -1 = empty or not in the catalogue
    values: Tensor  # [n, S] float32
    times: Tensor  # [n, S] float64


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The items that can be ranked, aligned by row."""

    vectors: Tensor  # [N, d] float32 item tower
    text: Tensor  # [N, T] float32 unit length, the backbone's vector reduced to T dimensions
    created: Tensor  # [N] float64 unix seconds of event time when the item appeared, nan = unknown
    alive: Tensor  # [N] bool, False = deleted: never ranked, still usable as evidence
    prior_items: Tensor  # [N, M] int64 rows co-visited in training, -1 = none
    prior_weights: Tensor  # [N, M] float32
    returns: Tensor  # [N, 2] float32 of `repeats.returns` in training, 0 = nothing known


@dataclass(frozen=True, slots=True)
class Shared:
    """What all users did, as of the last closed bucket of event time."""

    now: float  # unix seconds: the bucket's end
    popularity: Tensor  # [N, H] float32 decayed action counts, bundle prior included
    neighbour_items: Tensor  # [N, M] int64 rows co-visited in the stream, -1 = none
    neighbour_weights: Tensor  # [N, M] float32


@dataclass(frozen=True, slots=True)
class UserView:
    """What ranking needs to know of n users."""

    interests: Tensor  # [n, K, d] of adapter.read
    shots: Tensor  # [n] int64 true number of events so far
    support: Support
    seen: Tensor  # [n, L] int64 rows the user acted on, newest first, -1 = none
    shown: Tensor  # [n, R] int64 rows shown and not acted on, -1 = none; repeats add up
    delta: Tensor  # [n, E] float32 the user's own expert weights
    told: Tensor | None = None  # [n] bool: began with a profile that says something; None = nobody
    days: Tensor | None = None  # [n, L] float32 from each of `seen` to the newest; with `repeats`
    hidden: Tensor | None = None  # [n, X] int64 rows never to be ranked, -1 = none
    repeats: bool = False  # whether seen items are ranked again; `seen` then names each event


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best k items of n users, best first; places beyond the last item have row -1."""

    items: Tensor  # [n, k] int64 rows
    scores: Tensor  # [n, k] float32
