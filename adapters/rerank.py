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

from adapters import experts, interplay
from adapters.features import AGAIN, Links, Prepared, Products, Seeds, columns_of, lend, shares
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
    "repeat_lately",
    "repeat_count",
    "repeat_last",
    "repeat_days",
    "repeat_weeks",
    "repeat_due",
)
"""The features beside the experts: cosines of item vectors and texts, links of the latest item,
and where items may come again, how often and how lately the user took them, and whether it is time
again. New ones are added at the end: a model from before them gives them no weight."""

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
    "repeat_days": 0.0,
    "repeat_weeks": 0.0,
    "repeat_due": 0.0,
}
"""Weights of the features where none were fitted."""

LATELY = 12.0
"""Events after which one that is repeated counts half in `repeat_lately` and `repeat_last`."""

HALF_DAYS = (3.0, 14.0)
"""Days before the latest event at which one counts half in `repeat_days` and `repeat_weeks`."""

USUAL_LAG, LAG_FLOOR = 40.0, 3.0
"""Events from one time that an item is taken to the next where nothing is known, and events that
are added to both sides of `repeat_due`: a basket has no order."""

SETTLED = 16.0
"""Events after which weights may change in another way with every further one."""

CIRCUMSTANCES = 7
"""Numbers that weights depend on; see `circumstances`."""

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
    """The tensors of a model from before some of NAMES were there: these weigh nothing in it."""
    weight = tensors.get(_WEIGHT)
    if weight is None or len(weight) >= len(names(config)):
        return tensors
    more = len(names(config)) - len(weight)
    return {**tensors, **with_weights(functional.pad(weight, (0, 0, 0, more)))}


def default_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Weights where none were fitted: those of the mix, and a little for what is near."""
    start = experts.default_tensors(config)["expert_weight"][:, 0]
    weight = torch.zeros(len(names(config)), CIRCUMSTANCES)
    weight[:, 0] = torch.cat([start, torch.tensor([UNFITTED[name] for name in NAMES])])
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
        *_repeats(view, rows),
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


def _repeats(view: UserView, rows: Tensor) -> tuple[Tensor, ...]:
    """How often and how lately the user took each candidate, by events and by days: [n, C] each."""
    if not view.repeats:
        none = torch.zeros(rows.shape, device=rows.device)
        return (none,) * 6
    seen = view.seen[:, :AGAIN]
    lag = torch.arange(seen.shape[1], device=rows.device, dtype=torch.float32)
    fading = torch.exp2(-lag / LATELY)
    same = rows[:, :, None] == seen[:, None, :]  # [n, C, L]
    count = same.sum(2).float()
    return (
        (same * fading).sum(2),
        count.log1p(),
        (same * fading).amax(2),
        *_decayed(view, rows),
        _due(same, lag, count),
    )


def _decayed(view: UserView, rows: Tensor) -> list[Tensor]:
    """How often the user took each candidate among the support set, fading with days: [n, C]."""
    past = view.support
    same = (rows[:, :, None] == past.items[:, None, :]) & (past.values > 0)[:, None]
    days = ((past.times[:, :1] - past.times) / 86_400.0).clamp(min=0).float()
    return [(same * torch.exp2(-days / half)[:, None]).sum(2).log1p() for half in HALF_DAYS]


def _due(same: Tensor, lag: Tensor, count: Tensor) -> Tensor:
    """Log of the events since an item was taken over those from one time to the next: [n, C].

    Items taken once are taken for ones of USUAL_LAG. 0 for what was never taken.
    """
    if not same.shape[2]:
        return count
    first = torch.where(same, lag, -1.0).amax(2)
    last = torch.where(same, lag, float(same.shape[2])).amin(2)
    usual = (first - last + USUAL_LAG) / count.clamp(min=1)
    due = torch.log((last + LAG_FLOOR) / (usual + LAG_FLOOR))
    return torch.where(count > 0, due, 0.0)
