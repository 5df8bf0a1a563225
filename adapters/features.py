"""What the experts say, as columns of an item matrix and as few touched items of a user.

No feature depends on how many users there are, so that weights fitted on a small log hold on a
large one: popularity is relative to the average item, co-visitation is a cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from adapters.types import Catalogue, ModelConfig, Shared, UserView

BLOCKS = (16, 4)
"""Items whose maximum is taken first when the best k are searched, level by level."""

SEEDS = 12
"""Latest events of the support set whose neighbours and texts count."""

SEED_DECAY = 0.9
"""Weight of an event of the support set relative to that of the event after it."""

POPULARITY_FLOOR = 2.0
"""Added to popularity relative to the average item before the logarithm."""

FRESH = 86_400.0
"""Age in seconds up to which an item counts as new."""

AGED = 10 * 365 * 86_400.0
"""Age in seconds from which on all items are equally old."""

AGAIN = 320
"""Latest events of a user that are looked through for repeats: every record has room for them."""

REPEATED = 100.0
"""Events of a user after which one that is repeated counts half."""

NEAREST = 32
"""Neighbours of a seed that count: the heaviest ones."""

BORROWERS = 128
"""The newest items, at most so many, that borrow what users did with items like them."""

LENDERS = 8
"""Items nearest in text from which a new item borrows."""

LENT = 86_400.0
"""Age in seconds at which an item borrows a half."""

SOFT = {"covisit_prior": 0.02, "covisit_stream": 0.02, "repeat": 1.0, "shown": 1.0}
"""The sums of the sparse experts enter as log(1 + sum / soft)."""

_NO_SIGN = 2**62 - 1
"""Makes -1 a number above all rows, in one pass over the neighbours."""

NEVER = -1e30
"""Score of what must not be ranked: deleted, not yet there, seen, padding."""


Links = tuple[Tensor, Tensor]
"""Neighbours of items, -1 or above N = none, and their weights, both [N, NEAREST]."""


@dataclass(frozen=True, slots=True)
class Seeds:
    """The latest events of users, newest first, whose neighbours and texts count."""

    rows: Tensor  # [n, s] int64, 0 = none
    strength: Tensor  # [n, s] float32 0 to 1, falling from event to event; 0 where there is none
    signed: Tensor  # [n, s] float32 the same with dislikes below 0

    @property
    def lengths(self) -> Tensor:
        """Places [n] up to the last one that is not empty."""
        place = torch.arange(1, self.rows.shape[1] + 1, device=self.rows.device)
        lengths: Tensor = ((self.signed != 0) * place).amax(1)
        return lengths

    def part(self, users: slice, width: int) -> Seeds:
        """Of some users the first `width` places."""
        return Seeds(*(x[users, :width] for x in (self.rows, self.strength, self.signed)))


@dataclass(frozen=True, slots=True)
class Loans:
    """What new items borrow: nobody has done anything with them that could speak for them."""

    rows: Tensor  # [F] int64 new items
    lenders: Tensor  # [F, LENDERS] int64 rows of older items nearest in text
    share: Tensor  # [F, LENDERS] float32 what is borrowed of each, falling with the item's age


@dataclass(frozen=True, slots=True)
class Prepared:
    """The item side of ranking: computed once for a catalogue and shared signals."""

    catalogue: Catalogue
    size: int  # N; columns from N on are padding
    columns: Tensor  # [d + T + H + 2, Np] vectors, text, popularity, age, bias
    unit: Tensor  # [N, d] item vectors of unit length
    norm: Tensor  # [N] their lengths
    links: dict[str, Links]  # sparse expert -> neighbours
    loans: Loans

    @property
    def text(self) -> Tensor:
        """Unit vectors [N, T]."""
        return self.catalogue.text


def prepare(
    config: ModelConfig, catalogue: Catalogue, shared: Shared, earlier: Prepared | None = None
) -> Prepared:
    """The item side for `ranking`; cheap enough for every closed bucket of event time.

    Signals may know fewer rows than the catalogue (new items) or more. Items created after the
    bucket that begins at `shared.now` are not ranked. What `earlier` computed for the same
    catalogue object is used again.
    """
    n = len(catalogue.alive)
    there = catalogue.alive & ~(catalogue.created >= shared.now + config.bucket)
    step = math.prod(BLOCKS)
    pad = (n // step + 1) * step - n
    popular = popularity_features(_fit(shared.popularity, n, 0), there).T
    loans = borrow(catalogue, there, popular[-1], shared.now)
    popular = lend(popular, loans)
    counted = (popular, age_feature(catalogue.created, shared.now)[None])
    bias = torch.where(there, 0.0, NEVER).to(torch.float32)[None]
    moving = torch.cat(
        (functional.pad(torch.cat(counted), (0, pad)), functional.pad(bias, (0, pad), value=NEVER))
    )
    if earlier is not None and earlier.catalogue is catalogue:
        still, prior = earlier.columns[: -len(moving)], earlier.links["covisit_prior"]
        unit, norm = earlier.unit, earlier.norm
    else:
        unit, norm = functional.normalize(catalogue.vectors, dim=1), catalogue.vectors.norm(dim=1)
        still = functional.pad(torch.cat((catalogue.vectors, catalogue.text), 1).T, (0, pad))
        prior = _links(catalogue.prior_items, catalogue.prior_weights, n)
    stream = _links(shared.neighbour_items, shared.neighbour_weights, n)
    links = {"covisit_prior": prior, "covisit_stream": stream}
    return Prepared(catalogue, n, torch.cat((still, moving)), unit, norm, links, loans)


def _links(items: Tensor, weights: Tensor, n: int) -> Links:
    """Signals may know more or fewer rows than the catalogue, whose size is n."""
    items, weights = _fit(items[:, :NEAREST], n, -1), _fit(weights[:, :NEAREST], n, 0)
    return items.contiguous(), weights.contiguous()


def borrow(catalogue: Catalogue, there: Tensor, popular: Tensor, now: float) -> Loans:
    """The newest items and what they borrow of the known ones that are nearest in text.

    Known items are older and more popular than the average, by the feature `popular` [N].
    """
    age = torch.nan_to_num(now - catalogue.created, nan=torch.inf).clamp(min=0)
    new = there & (age < 4 * LENT)
    old = there & ~new & (popular >= math.log(1 + 1 / POPULARITY_FLOOR))
    rows = torch.nonzero(new)[:, 0]
    rows = rows[age[rows].argsort(stable=True)[:BORROWERS]]
    if not len(rows) or int(old.sum()) < LENDERS:
        none = rows.new_zeros(0, LENDERS)
        return Loans(rows[:0], none, none.float())
    alike = (catalogue.text[rows] @ catalogue.text.T).masked_fill(~old, -torch.inf)
    near = alike.topk(LENDERS)
    part = torch.exp2(-age[rows] / LENT).float()[:, None]
    return Loans(rows, near.indices, part * near.values.clamp(min=0))


def lend(values: Tensor, loans: Loans) -> Tensor:
    """Values [.., N] with what new items borrow added, in place: that of their best lender.

    Optimism where nothing is known: what suits nobody is soon shown to and passed over.
    """
    if len(loans.rows):
        values[..., loans.rows] += (values[..., loans.lenders] * loans.share).amax(-1)
    return values


def popularity_features(counts: Tensor, there: Tensor) -> Tensor:
    """log(popularity relative to the average of the items that are there + floor): [N, H]."""
    counts = counts * there[:, None]
    mean = counts.sum(0) / there.sum().clamp(min=1)
    relative = counts / mean.clamp(min=1e-12)
    return torch.log(relative + POPULARITY_FLOOR) - torch.log(torch.tensor(POPULARITY_FLOOR))


def age_feature(created: Tensor, now: float) -> Tensor:
    """1 for an item younger than FRESH, falling with the logarithm of age to 0 at AGED: [N].

    Logarithmic, so that the items on which a weight is fitted span most of the range, and a new
    item does not lie far outside. Unknown ages count as AGED.
    """
    age = torch.nan_to_num(now - created, nan=AGED).clamp(FRESH, AGED)
    return (1 - torch.log(age / FRESH) / math.log(AGED / FRESH)).to(torch.float32)


def seeds(view: UserView) -> Seeds:
    """The latest SEEDS events of the support sets, as wide as the longest of them."""
    rows, values = view.support.items[:, :SEEDS], view.support.values[:, :SEEDS]
    decay = SEED_DECAY ** torch.arange(rows.shape[1], device=rows.device)
    signed = torch.where(rows >= 0, values.clamp(-1.0, 1.0) * decay, 0.0)
    found = Seeds(rows.clamp(min=0), signed.clamp(min=0), signed)
    longest = int(found.lengths.max()) if len(rows) else 0
    return found.part(slice(None), max(longest, 1))


def profiles(text: Tensor, latest: Seeds) -> Tensor:
    """Signed means [n, T] of the unit texts [N, T] of users' latest events."""
    n, s = latest.rows.shape
    texts = text.index_select(0, latest.rows.reshape(-1)).view(n, s, text.shape[1])
    return torch.bmm(shares(latest)[:, None], texts)[:, 0]


class Products(NamedTuple):
    """What items have in common with a user's interests and latest events."""

    encoder: Tensor  # [n, r] the largest product with an interest
    near: Tensor  # [n, s, r] cosine of item vectors
    texts: Tensor  # [n, s, r] cosine of texts


def products(prepared: Prepared, interests: Tensor, latest: Seeds, rows: Tensor) -> Products:
    """The products of `rows` [n, r] with interests [n, K, d] and events: each row read once."""
    (n, r), s = rows.shape, latest.rows.shape[1]
    flat, events = rows.reshape(-1), latest.rows.reshape(-1)
    unit, text = prepared.unit, prepared.text
    others = torch.cat([unit.index_select(0, events).view(n, s, -1), interests], 1)
    near = torch.bmm(others, unit.index_select(0, flat).view(n, r, -1).transpose(1, 2))
    texts = torch.bmm(
        text.index_select(0, events).view(n, s, -1),
        text.index_select(0, flat).view(n, r, -1).transpose(1, 2),
    )
    encoder = near[:, s:].amax(1) * prepared.norm.index_select(0, flat).view(n, r)
    return Products(encoder, near[:, :s], texts)


def shares(latest: Seeds) -> Tensor:
    """Weights [n, s] of the latest events in a signed mean."""
    return latest.signed / latest.signed.abs().sum(1, keepdim=True).clamp(min=1e-6)


def queries(config: ModelConfig, profile: Tensor, weights: Tensor) -> Tensor:
    """The user side of the columns without the encoder: [n, T + H + 2], weighted."""
    counted = weights[:, 2 : 3 + len(config.half_lives)]
    return torch.cat([weights[:, 1:2] * profile, counted, torch.ones_like(weights[:, :1])], 1)


def touched(prepared: Prepared, name: str, latest: Seeds) -> tuple[Tensor, Tensor]:
    """Columns [n, q] and summands [n, q] of a co-visitation; column N takes what is nothing."""
    items, linked = prepared.links[name]
    n, rows = len(latest.rows), latest.rows.reshape(-1)
    width = latest.rows.shape[1] * items.shape[1]
    columns = columns_of(prepared, items.index_select(0, rows))
    values = linked.index_select(0, rows).mul_(latest.strength.reshape(-1, 1))
    columns, values = columns.view(n, width), values.view(n, width)
    borrowers = prepared.loans.rows
    if len(borrowers):  # touched too: `lend` fills them
        columns = torch.cat([columns, borrowers.expand(n, -1)], 1)
        values = functional.pad(values, (0, len(borrowers)))
    return columns, values


def columns_of(prepared: Prepared, items: Tensor) -> Tensor:
    """Columns of rows, in place; N for -1 and for rows beyond the catalogue."""
    return items.bitwise_and_(_NO_SIGN).clamp_(max=prepared.size)


def touched_again(prepared: Prepared, view: UserView) -> tuple[Tensor, Tensor]:
    """What `touched` gives, for the items that users acted on, where these may be ranked again."""
    seen = view.seen[:, : AGAIN if view.repeats else 1]
    columns = torch.where((seen >= 0) & view.repeats, seen, prepared.size)
    fading = torch.exp2(-torch.arange(seen.shape[1], device=seen.device) / REPEATED)
    return columns, fading.expand(columns.shape)


def touched_shown(prepared: Prepared, view: UserView) -> tuple[Tensor, Tensor]:
    """What `touched` gives, for the items that were shown and not acted on."""
    shown = torch.where(view.shown >= 0, view.shown, prepared.size)
    return shown, torch.ones_like(shown, dtype=torch.float32)


def masked(scores: Tensor, prepared: Prepared, view: UserView) -> Tensor:
    """Scores [n, Np] with what a user must not get at `NEVER`, in place: hidden and seen items."""
    never = [
        rows for rows in (view.hidden, None if view.repeats else view.seen) if rows is not None
    ]
    for rows in never:
        scores.scatter_(1, torch.where(rows >= 0, rows, prepared.size), NEVER)
    return scores


def trend(config: ModelConfig, prepared: Prepared, latest: Seeds) -> Tensor:
    """How popular users' latest events are now, relative to the most popular item: [n], 0 to 1.

    Who picks what is off the trend goes on doing so. 0 for users without events.
    """
    middle = config.dim + config.text_dim + (len(config.half_lives) - 1) // 2
    popular = prepared.columns[middle, : prepared.size]
    if not len(popular):
        return latest.strength.sum(1)
    n, s = latest.rows.shape
    own = popular.index_select(0, latest.rows.reshape(-1)).view(n, s)
    total = latest.strength.sum(1).clamp(min=1e-6)
    return (own * latest.strength).sum(1) / (total * popular.amax().clamp(min=1e-6))


def _fit(values: Tensor, n: int, fill: float) -> Tensor:
    if len(values) >= n:
        return values[:n]
    rest = values.new_full((n - len(values), *values.shape[1:]), fill)
    return torch.cat([values, rest])
