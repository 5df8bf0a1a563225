"""A second look at the best candidates: features too dear for every item of the catalogue.

The experts' mix chooses the candidates, as cheaply as one matmul can. Here they are scored again,
with the experts and with what tells apart items that the mix finds alike: how near an item is to
the latest event and to the nearest of the latest events, who goes on from the latest item, how
often and how lately the user took it. Scores are a sum of weight times number, with weights that
depend on the user's circumstances, and of what `interplay` says of all numbers together, so that a
list can be explained. Two stages with weights of their own are how large recommenders rank
(Covington, Adams, Sargin, "Deep Neural Networks for YouTube Recommendations", 2016).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from adapters import experts, interplay, repeats
from adapters.features import Links, Prepared, Products, Seeds, columns_of, lend, shares
from adapters.types import Meta, ModelConfig, UserView

CANDIDATES = 64
"""Items of the mix that are looked at again, or twice the length of the list where that is more."""

NAMES = (
    "near_last",
    "near_best",
    "near_mean",
    "text_best",
    "covisit_prior_last",
    "covisit_stream_last",
    *repeats.NAMES,
)
"""The features beside the experts: cosines of item vectors and texts, links of the latest item,
and what `repeats` says. New ones are added at the end: a model from before them gives them no
weight."""

UNFITTED = {
    "near_last": 0.1,
    "near_best": 0.1,
    "near_mean": 0.1,
    "text_best": 0.1,
    "covisit_prior_last": 1.0,
    "covisit_stream_last": 1.0,
    "repeat_lately": 0.2,
    "repeat_count": 0.2,
    "repeat_last": 0.2,
}
"""Weights of the features where none were fitted; those that are not here weigh nothing."""

SETTLED = 16.0
"""Events after which weights may change in another way with every further one."""

CIRCUMSTANCES = 7
"""Numbers that weights depend on; see `circumstances`."""

HEARD = CIRCUMSTANCES + repeats.HABITS
"""Numbers that `interplay` hears of a user; see `heard`. New ones are added at the end."""

_WEIGHT = "rerank_weight"


def names(config: ModelConfig) -> tuple[str, ...]:
    """What a score is a sum of: the experts, then the features of this module; F names."""
    return (*experts.names(config), *NAMES)


def fitted(meta: Meta) -> bool:
    """Whether this model looks again: one without these weights ranks by the experts' mix."""
    return _WEIGHT in meta.tensors


def with_weights(weight: Tensor) -> dict[str, Tensor]:
    """The tensors of a model with these weights [F, CIRCUMSTANCES]."""
    return {_WEIGHT: weight.contiguous()}


def completed(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a model from before some numbers were there: these weigh nothing in it."""
    weight = tensors.get(_WEIGHT)
    if weight is None:
        return tensors
    more = max(len(names(config)) - len(weight), 0)
    whole = with_weights(functional.pad(weight, (0, 0, 0, more)))
    return {**tensors, **whole, **interplay.completed(tensors, more, HEARD)}


def default_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Weights where none were fitted: those of the mix, and a little for what is near."""
    start = experts.default_tensors(config)["expert_weight"][:, 0]
    weight = torch.zeros(len(names(config)), CIRCUMSTANCES)
    weight[:, 0] = torch.cat([start, torch.tensor([UNFITTED.get(name, 0.0) for name in NAMES])])
    return with_weights(weight)


def without(meta: Meta) -> Meta:
    """The same model with the experts' mix alone."""
    tensors = {name: tensor for name, tensor in meta.tensors.items() if name != _WEIGHT}
    return interplay.without(replace(meta, tensors=tensors))


def keeping(meta: Meta, keep: Tensor) -> Meta:
    """The model with the second look's weights of experts [E] times `keep`."""
    if not fitted(meta):
        return meta
    kept = functional.pad(keep, (0, len(NAMES)), value=1.0)[:, None]
    changed = with_weights(meta[_WEIGHT] * kept) | interplay.keeping(meta, keep)
    return replace(meta, tensors={**meta.tensors, **changed})


def weights(meta: Meta, view: UserView, trend: Tensor) -> Tensor:
    """Weights [n, F] of users in their circumstances, the user's delta on the experts included."""
    delta = functional.pad(view.delta, (0, len(NAMES)))
    warm = (view.shots > 0)[:, None]
    mixed: Tensor = circumstances(view, trend) @ meta[_WEIGHT].T
    return mixed + torch.where(warm, delta, 0.0)


def optimism(meta: Meta, view: UserView, trend: Tensor) -> Tensor:
    """What the age of a new item weighs more than the fit says, for each user: [n], at least 0.

    Hardly any item of the fit was as new as one that still borrows, so the second look has no
    weight for its age that could be trusted: where the mix's is larger it counts.
    """
    age = experts.names(meta.config).index("age")
    mix, own = experts.weights(meta, view, trend)[:, age], weights(meta, view, trend)[:, age]
    return (mix - own).clamp(min=0)


def circumstances(view: UserView, trend: Tensor) -> Tensor:
    """Those of the experts; log shots beyond SETTLED; no events yet; and a profile then: [n, 7]."""
    plain = experts.circumstances(view, trend)
    grown = torch.log((1 + view.shots.float()) / (1 + SETTLED)).clamp(min=0)
    begins = (view.shots == 0).float()
    told = torch.zeros_like(begins) if view.told is None else begins * view.told
    return torch.cat([plain, torch.stack([grown, begins, told], 1)], 1)


def heard(view: UserView, trend: Tensor) -> Tensor:
    """What the network hears of users: their circumstances, and how they repeat; [n, HEARD].

    The sum does not: with so many weights it would learn by heart what few requests can tell.
    """
    return torch.cat([circumstances(view, trend), repeats.habits(view)], 1)


def features(
    prepared: Prepared,
    view: UserView,
    latest: Seeds,
    found: Products,
    rows: Tensor,
    memory: Tensor,
) -> list[Tensor]:
    """The features of `rows` [n, r] in the order of NAMES: [n, r] each.

    `found` are the rows' products with the latest events; `memory` [n, Np] is 0 before and after.
    """
    liked = (latest.strength > 0).float()[..., None]  # [n, s, 1]
    return [
        found.near[:, 0] * latest.signed[:, :1].sign(),
        (found.near * liked).amax(1).clamp(min=0),
        torch.bmm(shares(latest)[:, None], found.near)[:, 0],
        (found.texts * liked).amax(1).clamp(min=0),
        *(_linked(prepared, links, latest, rows, memory) for links in prepared.links.values()),
        *repeats.numbers(view, prepared.catalogue.returns, rows),
    ]


def _linked(
    prepared: Prepared, links: Links, latest: Seeds, rows: Tensor, memory: Tensor
) -> Tensor:
    """Weight [n, r] of the link from the latest liked item to each row, 0 where none is.

    New items, to which no link leads yet, borrow as they do in the mix.
    """
    newest = latest.rows[:, 0]
    columns = columns_of(prepared, links[0].index_select(0, newest))
    weights = links[1].index_select(0, newest) * (latest.strength[:, :1] > 0)
    memory.scatter_add_(1, columns, weights)
    memory[:, prepared.size] = 0.0  # what is no neighbour
    found = lend(memory, prepared.loans).gather(1, rows)
    memory.scatter_(1, columns, 0.0)
    memory[:, prepared.loans.rows] = 0.0
    return found
