"""Scores of all items for n users, the exact best k of them, and why.

The dense experts and the encoder are one matmul of [n, D] with the item columns [D, N]; the sparse
ones touch a few hundred items of each user. Users go through in groups whose scores fit the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from adapters import experts, features
from adapters.diversity import diversify
from adapters.features import BLOCKS, NEVER, Prepared, Seeds, prepare
from adapters.types import Catalogue, Meta, Ranking, Shared, Support, UserView

GROUP = 64
"""Users scored at once on the CPU."""

POOL = 2
"""Candidates per place of the list among which the diversity re-ranker chooses."""

SPARSE = 4
"""The last experts, which are sparse: both co-visitations, repeat, shown."""

__all__ = ["Prepared", "cold", "explain", "prepare", "rank", "rank_prepared", "score"]


def score(meta: Meta, view: UserView, catalogue: Catalogue, shared: Shared) -> Tensor:
    """Scores [n, N]; items that must not be ranked have a score below -1e29."""
    prepared = prepare(meta.config, catalogue, shared)
    buffers = _Buffers(prepared, len(view.shots))
    return _scores(prepared, _plan(meta, prepared, view), buffers)[:, : prepared.size]


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
    pool = min(prepared.size, k if diversity == 0 else POOL * k)
    plan = _plan(meta, prepared, view)
    groups = _groups(plan.seeds.lengths)
    buffers = _Buffers(prepared, len(groups[0][0]) if groups else 0)
    parts = [top_k(_scores(prepared, _part(plan, *g), buffers), pool) for g in groups]
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


def explain(
    meta: Meta, view: UserView, catalogue: Catalogue, shared: Shared, rows: Tensor
) -> Tensor:
    """What each expert adds to the scores of `rows` [r] for one user: [r, E]; sums to the score."""
    prepared = prepare(meta.config, catalogue, shared)
    return contributions(meta, prepared, view, rows[None])[0]


def contributions(meta: Meta, prepared: Prepared, view: UserView, rows: Tensor) -> Tensor:
    """What each expert adds to the scores of `rows` [n, r] of each user: [n, r, E]."""
    trend = features.trend(meta.config, prepared, features.seeds(view))
    weights = experts.weights(meta, view, trend)
    return expert_values(meta, prepared, view, rows) * weights[:, None]


def expert_values(meta: Meta, prepared: Prepared, view: UserView, rows: Tensor) -> Tensor:
    """The experts' unweighted numbers for `rows` [n, r] of each user: [n, r, E]."""
    d, t, names = meta.config.dim, meta.config.text_dim, experts.names(meta.config)
    n, r = rows.shape
    flat, items = rows.flatten(), prepared.catalogue
    vectors = items.vectors.index_select(0, flat).view(n, r, d)
    encoder = torch.bmm(vectors, view.interests.transpose(1, 2)).amax(2, keepdim=True)
    ones = torch.ones(n, len(names), device=rows.device)
    query = features.queries(meta.config, prepared.text, features.seeds(view), ones)[:, :t]
    text = torch.bmm(items.text.index_select(0, flat).view(n, r, t), query[..., None])
    counted = prepared.columns[d + t : -1].index_select(1, flat).T.view(n, r, -1)
    return torch.cat([encoder, text, counted, *_touched_values(prepared, view, rows)], -1)


def top_k(scores: Tensor, k: int, blocks: tuple[int, ...] = BLOCKS) -> tuple[Tensor, Tensor]:
    """The exact k largest of [n, width] in order, and their columns.

    The k blocks with the largest maxima hold the k largest scores; both searches, for the blocks
    and inside of them, go by smaller blocks in turn.
    """
    n, width = scores.shape
    size = blocks[0] if blocks else 1
    if size == 1 or width % size or width // size <= k:
        return torch.topk(scores, k)
    parts = scores.view(n, size, width // size)  # columns of a block lie width / size apart
    _, best = top_k(parts.amax(1), k, blocks[1:])  # [n, k]
    inside = parts.gather(2, best[:, None].expand(-1, size, -1)).view(n, -1)
    top, place = top_k(inside, k, blocks[1:])
    column = best.gather(1, place % k) + place // k * parts.shape[2]
    return top, column


class _Plan(NamedTuple):
    """The user side of ranking."""

    encoder: Tensor  # [n, K, d] interests
    gain: Tensor  # [n, 1] weight of the encoder
    rest: Tensor  # [n, D - d] query of the other columns
    weights: Tensor  # [n, E]
    seeds: Seeds
    shown: tuple[Tensor, Tensor]  # columns and summands, [n, R]
    seen: Tensor  # [n, L] columns


def _plan(meta: Meta, prepared: Prepared, view: UserView) -> _Plan:
    seeds = features.seeds(view)
    weights = experts.weights(meta, view, features.trend(meta.config, prepared, seeds))
    return _Plan(
        encoder=view.interests,
        gain=weights[:, :1],
        rest=features.queries(meta.config, prepared.text, seeds, weights),
        weights=weights,
        seeds=seeds,
        shown=features.touched_shown(prepared, view),
        seen=torch.where(view.seen >= 0, view.seen, prepared.size),
    )


def _part(plan: _Plan, users: Tensor, width: int) -> _Plan:
    """The plan of some users [g], of whose seeds the first `width` places are in use."""
    seeds = Seeds(*(getattr(plan.seeds, name)[users, :width] for name in Seeds.__slots__))
    return _Plan(
        encoder=plan.encoder[users],
        gain=plan.gain[users],
        rest=plan.rest[users],
        weights=plan.weights[users],
        seeds=seeds,
        shown=(plan.shown[0][users], plan.shown[1][users]),
        seen=plan.seen[users],
    )


class _Buffers:
    """Memory of a group's scores, used again by the next group: fresh pages cost more than sums."""

    def __init__(self, prepared: Prepared, n: int) -> None:
        self.scores = prepared.columns.new_empty(n, prepared.columns.shape[1])
        self.sums = torch.zeros_like(self.scores)


def _scores(prepared: Prepared, plan: _Plan, buffers: _Buffers) -> Tensor:
    """[n, Np] with seen items and padding at `NEVER`; a part of the buffers."""
    n = len(plan.gain)
    scores, sums = buffers.scores[:n], buffers.sums[:n]
    _dense(prepared.columns, plan.encoder, plan.gain, plan.rest, scores)
    for place, (name, columns, values) in enumerate(_touched(prepared, plan.seeds, plan.shown)):
        weight = plan.weights[:, plan.weights.shape[1] - SPARSE + place, None]
        value = _sparse(prepared, name, columns, values, columns, sums).mul_(weight)
        # an item touched twice is written twice with the same number
        scores.scatter_(1, columns, value.add_(scores.gather(1, columns)))
    return scores.scatter_(1, plan.seen, NEVER)


def _touched(
    prepared: Prepared, seeds: Seeds, shown: tuple[Tensor, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, columns and summands of the sparse experts in their order."""
    for name in (*prepared.links, "repeat"):
        yield name, *features.touched(prepared, name, seeds)
    yield "shown", *shown


def _sparse(
    prepared: Prepared, name: str, columns: Tensor, values: Tensor, at: Tensor, sums: Tensor
) -> Tensor:
    """A sparse expert's numbers [n, r] in the columns `at` [n, r]; `sums` is 0 before and after."""
    sums.scatter_add_(1, columns, values)
    if name in prepared.links:
        features.lend(sums, prepared.loans)
    found = sums.gather(1, at)
    sums.scatter_(1, columns, 0.0)
    return found.mul_(1 / features.SOFT[name]).log1p_()


def _dense(columns: Tensor, interests: Tensor, gain: Tensor, rest: Tensor, out: Tensor) -> None:
    n, k, d = interests.shape
    if k == 1:
        torch.mm(torch.cat([gain * interests[:, 0], rest], 1), columns, out=out)
        return
    best = (interests.reshape(n * k, d) @ columns[:d]).view(n, k, -1).amax(1)
    torch.addmm(best.mul_(gain), rest, columns[d:], out=out)


def _touched_values(prepared: Prepared, view: UserView, rows: Tensor) -> list[Tensor]:
    sums = torch.zeros(len(rows), prepared.columns.shape[1], device=rows.device)
    shown = features.touched_shown(prepared, view)
    return [
        _sparse(prepared, name, columns, values, rows, sums)[..., None]
        for name, columns, values in _touched(prepared, features.seeds(view), shown)
    ]


def _groups(lengths: Tensor) -> list[tuple[Tensor, int]]:
    """Users [g] that are scored together, and how many seeds the richest of them has.

    Users with about as many seeds go together, so that one long history does not widen all.
    """
    size = GROUP if lengths.device.type == "cpu" else 1024
    parts = torch.split(lengths.argsort(descending=True), size)
    return [(users, int(lengths[users[0]])) for users in parts]


def select(view: UserView, users: slice | Tensor) -> UserView:
    """The view of some of the users."""
    support = Support(**{f.name: getattr(view.support, f.name)[users] for f in fields(Support)})
    columns = {f.name: getattr(view, f.name) for f in fields(UserView) if f.name != "support"}
    own = {name: column[users] for name, column in columns.items() if column is not None}
    return replace(view, support=support, **own)


def _widen(items: Tensor, scores: Tensor, k: int) -> Ranking:
    short = k - items.shape[1]
    if short > 0:
        items = torch.nn.functional.pad(items, (0, short), value=-1)
        scores = torch.nn.functional.pad(scores, (0, short), value=NEVER)
    return Ranking(items=items, scores=scores)
