"""Profiles: what is known of a user before the first event, as a point among the items.

The fields of a profile become attributes as those of items do, and a profile stands for an item
with these attributes: its text is the mean text of the items that share them. So a field that
items have, too, means something from the start (`category=drama`), and one that only profiles
have (`age=31`) what training learned for it. Letters in shape comments: P attributes of a profile,
B attributes that the model knows, D text dimensions of the backbone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters import towers
from adapters.impressions import pairs_key
from adapters.signals import Ints
from adapters.towers import ATTRIBUTE_BUCKETS, ItemFeatures
from adapters.types import Meta

LEAST_USERS = 5
"""Profiles of training users that must have an attribute which no item has."""

KNOWN, TEXT = "profile.buckets", "profile.text"
"""Tensors of a trained model: [B] int64 ascending, and [B, D] float16."""


@dataclass(frozen=True, slots=True)
class Profiles:
    """Profiles in a log, sorted by user, then time; a newer one replaces the older as a whole."""

    keys: np.ndarray  # [q] complex: user, unix seconds of event time
    buckets: Ints  # [q, P] attributes, -1 = none

    def known(self, users: Ints, times: np.ndarray) -> Ints:
        """The attributes [n, P] that users' profiles of these times or earlier name."""
        place = np.searchsorted(self.keys, pairs_key(users, times), side="right") - 1
        at = np.maximum(place, 0)
        own = (place >= 0) & (self.keys.real[at] == users)
        return np.where(own[:, None], self.buckets[at], -1)


def make_profiles(users: Any, times: Any, buckets: Any) -> Profiles | None:
    """Profiles from columns in any order; None where there are none."""
    keys = pairs_key(np.asarray(users, np.int64), np.asarray(times, np.float64))
    order = np.argsort(keys, kind="stable")
    return Profiles(keys[order], np.asarray(buckets, np.int64)[order]) if len(keys) else None


def at_start(profiles: Profiles | None, users: Ints, times: np.ndarray) -> Ints | None:
    """Attributes [U, P] as of the first event of each user, users ascending; None = no profiles.

    `users` and `times` are the columns of a log in order of time.
    """
    if profiles is None:
        return None
    names, first = np.unique(users, return_index=True)
    return profiles.known(names, times[first])


def new_tensors(features: ItemFeatures, starts: Ints | None) -> dict[str, Tensor]:
    """What a model has to know of attributes: those of items, and those that profiles often name.

    `starts` [U, P] are the training users' profiles, None = they have none.
    """
    told = np.zeros(0, np.int64) if starts is None else starts[starts >= 0]
    users = np.bincount(told, minlength=ATTRIBUTE_BUCKETS)
    items = torch.zeros(ATTRIBUTE_BUCKETS)
    text = torch.zeros(ATTRIBUTE_BUCKETS, features.text.shape[1])
    for column in features.attributes.T:  # one at a time: all at once would copy the texts
        real = column >= 0
        items.index_add_(0, column[real], torch.ones(int(real.sum())))
        text.index_add_(0, column[real], features.text[real])
    known = torch.nonzero((items > 0) | torch.from_numpy(users >= LEAST_USERS))[:, 0]
    return {KNOWN: known, TEXT: (text[known] / items[known, None].clamp(min=1)).half()}


def known(meta: Meta, buckets: Tensor) -> Tensor:
    """Users [n] bool with an attribute among theirs [n, P] that the model knows."""
    return _found(meta, buckets)[1].any(1)


def vectors(meta: Meta, buckets: Tensor) -> Tensor | None:
    """Points [n, d] for the attributes [n, P] of profiles; zeros where the model knows none.

    None where no user has one that it knows.
    """
    at, real = _found(meta, buckets)
    if not bool(real.any()):
        return None
    used, place = torch.unique(at[real], return_inverse=True)
    none = torch.full_like(used, -1)
    alike = ItemFeatures(meta[TEXT][used].float(), meta[KNOWN][used][:, None], none)
    owner = real.nonzero()[:, 0]
    share = 1 / real.sum(1).clamp(min=1)
    each = towers.item_vectors(meta, alike)[place] * share[owner][:, None]
    return each.new_zeros(len(buckets), each.shape[1]).index_add(0, owner, each)


def _found(meta: Meta, buckets: Tensor) -> tuple[Tensor, Tensor]:
    """Where the attributes [n, P] stand among those that the model knows, and whether they do."""
    names = meta.tensors.get(KNOWN)
    if names is None or not len(names) or not bool((buckets >= 0).any()):
        return torch.zeros_like(buckets), torch.zeros_like(buckets, dtype=torch.bool)
    at = torch.searchsorted(names, buckets.contiguous()).clamp(max=len(names) - 1)
    return at, names[at] == buckets
