"""The best k items of n users, and why: candidates by the experts' mix, then a second look.

The dense experts and the encoder are one matmul of [n, D] with the item columns [D, N]; the sparse
ones touch a few hundred items of each user. Users go through in groups whose scores fit the cache.
The exact best of the mix are the candidates that `rerank` scores again, where the model has weights
for it; a score is that of the last stage.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapters import experts, features, interplay, rerank
from adapters.diversity import diversify
from adapters.features import BLOCKS, NEVER, Prepared, Seeds, prepare
from adapters.types import Catalogue, Meta, Ranking, Shared, Support, UserView

GROUP = 64
"""Users scored at once on the CPU, and twice as many where the catalogue is small."""

SMALL = 16_384
"""Items up to which a catalogue is."""

POOL = 2
"""Candidates per place of the list among which the diversity re-ranker chooses."""

SPARSE = 4
"""The last experts, which are sparse: both co-visitations, repeat, shown."""

__all__ = ["Prepared", "cold", "explain", "names", "prepare", "rank", "rank_prepared", "score"]


def score(meta: Meta, view: UserView, catalogue: Catalogue, shared: Shared) -> Tensor:
    """The mix's scores [n, N]; items that must not be ranked have a score below -1e29."""
    prepared = prepare(meta.config, catalogue, shared)
    memory, plan = _Memory(prepared, len(view.shots)), _plan(meta, prepared, view)
    sums = _summed(prepared, view, plan.seeds, memory.sums)
    return _scores(prepared, plan, sums, memory.scores)[:, : prepared.size]


def rank(
    meta: Meta, view: UserView, catalogue: Catalogue, shared: Shared, k: int, diversity: float
) -> Ranking:
    """The best k items of each user: `rank_prepared` for callers that rank once."""
    return rank_prepared(meta, prepare(meta.config, catalogue, shared), view, k, diversity)


def rank_prepared(
    meta: Meta, prepared: Prepared, view: UserView, k: int, diversity: float = 0.0
) -> Ranking:
    """The best k items of each user, without those in `view.seen`.

    `diversity` in [0, 1] trades relevance for items unlike those above; 0 costs nothing. Scores
    are relevance, so with diversity they need not fall from place to place.
    """
    wide = k if diversity == 0 else POOL * k
    pool = min(prepared.size, max(wide, rerank.CANDIDATES) if rerank.fitted(meta) else wide)
    plan = _plan(meta, prepared, view)
    groups = _groups(plan.seeds.lengths, prepared.size)
    with _lent(prepared, len(groups[0][0]) if groups else 0) as memory:
        parts = [_best(meta, prepared, _part(plan, *g), memory, pool, wide) for g in groups]
    scores, rows = (torch.cat(x) for x in zip(*parts, strict=True))
    if diversity > 0:
        scores, rows = diversify(scores, rows, prepared.text, min(k, pool), diversity)
    back = torch.cat([users for users, _ in groups]).argsort()
    scores, rows = scores[back], rows[back]
    return _widen(torch.where(scores > NEVER / 2, rows, -1), scores, k)


def cold(meta: Meta, interests: Tensor, prepared: Prepared, k: int, diversity: float) -> Ranking:
    """The list of users nobody has seen; `interests` [1, K, d] are those of `adapter.init`."""
    return rank_prepared(meta, prepared, empty_view(meta, interests), k, diversity)


def empty_view(meta: Meta, interests: Tensor) -> UserView:
    """What is known of n users without events: interests [n, K, d] and nothing else."""
    n, device = len(interests), interests.device
    none = torch.full((n, 1), -1, dtype=torch.int64, device=device)
    zero = torch.zeros((n, 1), device=device)
    return UserView(
        interests=interests,
        shots=torch.zeros(n, dtype=torch.int64, device=device),
        support=Support(items=none, values=zero, times=zero.double()),
        seen=none,
        shown=none,
        delta=zero.expand(n, len(experts.names(meta.config))),
    )


def names(meta: Meta) -> tuple[str, ...]:
    """What a score is a sum of, in the order of `contributions`: F names."""
    if not rerank.fitted(meta):
        return experts.names(meta.config)
    together = (interplay.NAME,) if interplay.present(meta) else ()
    return (*rerank.names(meta.config), *together)


def explain(
    meta: Meta, view: UserView, catalogue: Catalogue, shared: Shared, rows: Tensor
) -> Tensor:
    """What each part adds to the scores of `rows` [r] for one user: [r, F]; sums to the score."""
    prepared = prepare(meta.config, catalogue, shared)
    return contributions(meta, prepared, view, rows[None])[0]


def contributions(meta: Meta, prepared: Prepared, view: UserView, rows: Tensor) -> Tensor:
    """What each of `names` adds to the scores of `rows` [n, r] of each user: [n, r, F]."""
    trend = features.trend(meta.config, prepared, features.seeds(view))
    if not rerank.fitted(meta):
        weights = experts.weights(meta, view, trend)
        return expert_values(meta, prepared, view, rows) * weights[:, None]
    values = all_values(meta, prepared, view, rows)
    parts = values * rerank.weights(meta, view, trend)[:, None]
    age = experts.names(meta.config).index("age")
    parts[..., age] += rerank.optimism(meta, view, trend)[:, None] * _newness(prepared)[rows]
    if not interplay.present(meta):
        return parts
    together = interplay.added(meta, values, rerank.heard(view, trend))
    return torch.cat([parts, together[..., None]], 2)


def _newness(prepared: Prepared) -> Tensor:
    """The age feature [Np] of items that borrow because they are new, 0 for all others."""
    found, rows = torch.zeros_like(prepared.columns[-1]), prepared.loans.rows
    found[rows] = prepared.columns[-2, rows]
    return found


def expert_values(meta: Meta, prepared: Prepared, view: UserView, rows: Tensor) -> Tensor:
    """The experts' unweighted numbers for `rows` [n, r] of each user: [n, r, E]."""
    return all_values(meta, prepared, view, rows)[..., : len(experts.names(meta.config))]


def all_values(meta: Meta, prepared: Prepared, view: UserView, rows: Tensor) -> Tensor:
    """The experts' numbers and those of the second look for `rows` [n, r]: [n, r, F]."""
    seeds, memory = features.seeds(view), _Memory(prepared, len(rows))
    sums = _summed(prepared, view, seeds, memory.sums)
    return _values(meta, prepared, view, seeds, sums, memory, rows).transpose(1, 2).contiguous()


def _values(
    meta: Meta,
    prepared: Prepared,
    view: UserView,
    seeds: Seeds,
    sums: list[_Sum],
    memory: _Memory,
    rows: Tensor,
) -> Tensor:
    """`all_values` [n, F, r] where the sums of the sparse experts are there."""
    (n, r), first = rows.shape, meta.config.dim + meta.config.text_dim
    found = features.products(prepared, view.interests, seeds, rows)
    text = torch.bmm(features.shares(seeds)[:, None], found.texts)[:, 0]
    counted = prepared.columns[first:-1].index_select(1, rows.reshape(-1)).view(-1, n, r)
    sparse = [_number(one, rows) for one in sums]
    more = rerank.features(prepared, view, seeds, found, rows, memory.scratch[:n])
    return torch.stack([found.encoder, text, *counted, *sparse, *more], 1)


def top_k(
    scores: Tensor, k: int, blocks: tuple[int, ...] = BLOCKS, *, ordered: bool = True
) -> tuple[Tensor, Tensor]:
    """The exact k largest of [n, width], in order or in any, and their columns.

    The k blocks with the largest maxima hold the k largest scores; both searches, for the blocks
    and inside of them, go by smaller blocks in turn.
    """
    n, width = scores.shape
    size = blocks[0] if blocks else 1
    if size == 1 or width % size or width // size <= k:
        return torch.topk(scores, k, sorted=ordered)
    parts = scores.view(n, size, width // size)  # columns of a block lie width / size apart
    _, best = top_k(parts.amax(1), k, blocks[1:], ordered=False)  # [n, k]
    inside = parts.gather(2, best[:, None].expand(-1, size, -1)).view(n, -1)
    top, place = top_k(inside, k, blocks[1:], ordered=ordered)
    column = best.gather(1, place % k) + place // k * parts.shape[2]
    return top, column


class _Plan(NamedTuple):
    """The user side of ranking."""

    view: UserView
    seeds: Seeds
    rest: Tensor  # [n, D - d] weighted query of all columns but the encoder's
    weights: Tensor  # [n, E] of the mix
    again: Tensor | None  # [n, F] of the second look, None without one
    hope: Tensor | None  # [n] what newness weighs in it besides
    told: Tensor | None  # [n, H] what circumstances say to its network, None without one


def _plan(meta: Meta, prepared: Prepared, view: UserView) -> _Plan:
    seeds = features.seeds(view)
    trend = features.trend(meta.config, prepared, seeds)
    weights = experts.weights(meta, view, trend)
    rest = features.queries(meta.config, features.profiles(prepared.text, seeds), weights)
    if not rerank.fitted(meta):
        return _Plan(view, seeds, rest, weights, None, None, None)
    hope = rerank.optimism(meta, view, trend) if len(prepared.loans.rows) else None
    told = interplay.circumstances(meta, rerank.heard(view, trend))
    return _Plan(view, seeds, rest, weights, rerank.weights(meta, view, trend), hope, told)


def _part(plan: _Plan, users: Tensor, width: int) -> _Plan:
    """The plan of some users [g], of whose seeds the first `width` places are in use."""
    wide = slice(max(width, 1))
    seeds = Seeds(*(getattr(plan.seeds, name)[users, wide] for name in Seeds.__slots__))
    second = (plan.again, plan.hope, plan.told)
    again, hope, told = (None if x is None else x[users] for x in second)
    view = select(plan.view, users)
    return _Plan(view, seeds, plan.rest[users], plan.weights[users], again, hope, told)


class _Memory:
    """What a group's users are scored in, used by one group after the other.

    Fresh pages cost more than sums, so `_lent` keeps it from call to call.
    """

    @torch.inference_mode(mode=False)  # or it could be used in that mode alone
    def __init__(self, prepared: Prepared, n: int) -> None:
        self.scores = prepared.columns.new_empty(n, prepared.columns.shape[1])
        self.scratch = torch.zeros_like(self.scores)
        self.sums = [torch.zeros_like(self.scores) for _ in range(SPARSE)]
        self.nothing = self.scores.new_zeros(1, 1)  # what is scattered to make a sum 0 again

    def fits(self, prepared: Prepared, n: int) -> bool:
        """Whether n users can be scored in it."""
        columns, scores = prepared.columns, self.scores
        same = columns.device == scores.device and columns.dtype == scores.dtype
        return same and columns.shape[1] == scores.shape[1] and n <= len(scores)


_KEPT = threading.local()


@contextmanager
def _lent(prepared: Prepared, n: int) -> Iterator[_Memory]:
    """Memory for n users at a time, that of this thread's last call where it fits.

    What fails on the way leaves sums behind, and is not kept.
    """
    memory: _Memory | None = vars(_KEPT).pop("memory", None)
    if memory is not None and not memory.fits(prepared, n):
        memory = None  # gone before the new one is there
    memory = memory or _Memory(prepared, n)
    yield memory
    _KEPT.memory = memory


class _Sum(NamedTuple):
    """What a sparse expert sums up, and where: a part of the memory that is 0 elsewhere."""

    name: str
    columns: Tensor  # [n, q]
    sums: Tensor  # [n, Np]


def _best(
    meta: Meta, prepared: Prepared, plan: _Plan, memory: _Memory, pool: int, k: int
) -> tuple[Tensor, Tensor]:
    """The best k of a group's users, chosen from `pool` candidates: scores, columns [g, <= k]."""
    sums = _summed(prepared, plan.view, plan.seeds, memory.sums)
    ordered = plan.again is None
    scores, columns = top_k(_scores(prepared, plan, sums, memory.scores), pool, ordered=ordered)
    if plan.again is not None:
        rows = torch.where(scores > NEVER / 2, columns, 0)  # padding has no features
        values = _values(meta, prepared, plan.view, plan.seeds, sums, memory, rows)
        again = torch.bmm(plan.again[:, None], values)[:, 0]
        if plan.hope is not None:
            again += plan.hope[:, None] * _newness(prepared)[rows]
        if plan.told is not None:
            again += interplay.part(meta, values, plan.told)
        scores, place = torch.topk(torch.where(scores > NEVER / 2, again, NEVER), min(k, pool))
        columns = columns.gather(1, place)
    for one in sums:
        one.sums.scatter_(1, one.columns, memory.nothing.expand(one.columns.shape))
    return scores, columns


def _scores(prepared: Prepared, plan: _Plan, sums: list[_Sum], out: Tensor) -> Tensor:
    """[n, Np] with seen items and padding at `NEVER`; a part of `out`."""
    scores = out[: len(plan.weights)]
    _dense(prepared.columns, plan.view.interests, plan.weights[:, :1], plan.rest, scores)
    for place, one in enumerate(sums):
        weight = plan.weights[:, plan.weights.shape[1] - SPARSE + place, None]
        value = _number(one, one.columns).mul_(weight)
        # an item touched twice is written twice with the same number
        scores.scatter_(1, one.columns, value.add_(scores.gather(1, one.columns)))
    return features.masked(scores, prepared, plan.view)


def _summed(prepared: Prepared, view: UserView, seeds: Seeds, memory: list[Tensor]) -> list[_Sum]:
    """What the sparse experts sum up for n users, in memory that was 0."""
    sums = []
    for (name, columns, values), whole in zip(_touched(prepared, view, seeds), memory, strict=True):
        own = whole[: len(columns)].scatter_add_(1, columns, values)
        sums.append(
            _Sum(
                name, columns, features.lend(own, prepared.loans) if name in prepared.links else own
            )
        )
    return sums


def _touched(
    prepared: Prepared, view: UserView, seeds: Seeds
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, columns and summands of the sparse experts in their order."""
    for name in prepared.links:
        yield name, *features.touched(prepared, name, seeds)
    yield "repeat", *features.touched_again(prepared, view)
    yield "shown", *features.touched_shown(prepared, view)


def _number(one: _Sum, rows: Tensor) -> Tensor:
    """A sparse expert's numbers [n, r] of rows [n, r]."""
    return one.sums.gather(1, rows).mul_(1 / features.SOFT[one.name]).log1p_()


def _dense(columns: Tensor, interests: Tensor, gain: Tensor, rest: Tensor, out: Tensor) -> None:
    n, k, d = interests.shape
    if k == 1:
        torch.mm(torch.cat([gain * interests[:, 0], rest], 1), columns, out=out)
        return
    best = (interests.reshape(n * k, d) @ columns[:d]).view(n, k, -1).amax(1)
    torch.addmm(best.mul_(gain), rest, columns[d:], out=out)


def _groups(lengths: Tensor, items: int) -> list[tuple[Tensor, int]]:
    """Users [g] that are scored together, and how many seeds the richest of them has.

    Users with about as many seeds go together, so that one long history does not widen all.
    """
    size = 1024
    if lengths.device.type == "cpu":
        size = 2 * GROUP if items <= SMALL else GROUP
    parts = torch.split(lengths.argsort(descending=True), size)
    return [(users, int(lengths[users[0]])) for users in parts]


def select(view: UserView, users: slice | Tensor) -> UserView:
    """The view of some of the users."""
    support = Support(**{f.name: getattr(view.support, f.name)[users] for f in fields(Support)})
    columns = {f.name: getattr(view, f.name) for f in fields(UserView) if f.name != "support"}
    own: dict[str, Any] = {n: c[users] for n, c in columns.items() if torch.is_tensor(c)}
    return replace(view, support=support, **own)


def _widen(items: Tensor, scores: Tensor, k: int) -> Ranking:
    short = k - items.shape[1]
    if short > 0:
        items = torch.nn.functional.pad(items, (0, short), value=-1)
        scores = torch.nn.functional.pad(scores, (0, short), value=NEVER)
    return Ranking(items=items, scores=scores)
