"""Weights of the experts, fitted for ranking on held-out users, later in time than the encoder.

Two losses are added. In the first each relevant item competes with the best items of a fixed mix;
a relevant item that is not among them says nothing (put there by force it would reverse the
weights). It sharpens the head of the list. In the second it competes with items sampled from a
known distribution, the sum over all others being estimated by importance; it keeps items outside
of the head in their place. The likelihood alone ranked worse than plain recency popularity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapters import evaluate, experts, features, ranking
from adapters.episodes import Log
from adapters.evaluate import Step
from adapters.experts import Prior
from adapters.positions import Sequences, interests_at, relevant, told_of, views
from adapters.signals import Ints, bucket_start
from adapters.types import Catalogue, Meta, UserView


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How weights are fitted."""

    buckets: int = 160  # of event time, from which all positions are taken
    negatives: int = 128  # sampled items a position
    pool: int = 100  # best items of the default mix that compete in the first loss
    full: float = 0.1  # weight of the second loss
    uniform: float = 0.5  # share of the sampling distribution that ignores popularity
    pull: float = 1e-3  # L2 towards the default weights, per unit of a feature's variance
    validation: float = 0.25  # share of users that decide on the zero-shot weights
    validation_buckets: int = 80
    horizon: int = 10
    mask_seen: bool = True
    steps: int = 60  # of the optimiser


@dataclass(frozen=True, slots=True)
class Fitted:
    """The model with expert weights, and what the fit saw."""

    meta: Meta
    positions: int
    loss: float  # of the fitted weights, mean over users
    loss_default: float  # the same with the default weights
    zero_ndcg: dict[str, float]  # validation nDCG at 0 shots: `shared` and `own` weights, and
    # of users with a profile without and with theirs: `untold` and `told`
    own_zero: bool  # whether zero shots got weights of their own


@dataclass(frozen=True, slots=True)
class Sample:
    """Candidates of n positions: in `values` relevant ones first, sampled ones after them."""

    values: Tensor  # [n, r + m, E]
    good: Tensor  # [n, r] bool: relevant
    log_scale: Tensor  # [n, m] log importance of a sampled item, -inf = left out
    best: Tensor  # [n, C, E] the pool
    hits: Tensor  # [n, C] bool: relevant
    shots: Tensor  # [n], -1 = none, and a profile
    context: Tensor  # [n, 4] of experts.circumstances
    users: Tensor  # [n]


def fit(
    meta: Meta,
    log: Log,
    start: float,
    catalogue: Catalogue,
    prior: Prior | None,
    users: Ints,
    options: FitOptions = FitOptions(),
    seed: int = 0,
) -> Fitted:
    """Fit the weights on positions of `users` at `start` (unix seconds) or later.

    `users` must not have trained the encoder, `start` must lie after its training events and
    `prior` must end by `start`: the caller splits. All users' events in `log` make the signals.
    Without positions the default weights are returned.
    """
    meta = replace(meta, tensors={**meta.tensors, **experts.default_tensors(meta.config)})
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(users)
    count = int(len(chosen) * options.validation)
    with torch.no_grad():
        sample = _collect(meta, log, start, catalogue, prior, chosen[count:], options, seed)
    if sample is None:
        return Fitted(meta, 0, float("nan"), float("nan"), {}, own_zero=False)
    weight, zero, told, loss, default = _solve(meta, sample, options)
    models = {"shared": _with(meta, weight, weight[:, 0]), "own": _with(meta, weight, zero)}

    def better(models: dict[str, Meta], profiled: bool) -> tuple[dict[str, float], bool]:
        return _zero_shot(
            models, log, start, catalogue, prior, chosen[:count], profiled, options, seed
        )

    scores, ahead = better(models, False)
    best = models["own" if ahead else "shared"]
    if told is not None:
        tried = {"untold": best, "told": _told(best, told)}
        more, useful = better(tried, True)
        scores, best = {**scores, **more}, tried["told" if useful else "untold"]
    return Fitted(best, len(sample.shots), loss, default, scores, ahead)


def sampled_loss(weights: Tensor, sample: Sample) -> Tensor:
    """Loss [n]: each relevant item against the estimated sum over all others, mean over relevant.

    `weights` is [n, E].
    """
    scores = (sample.values @ weights[..., None])[..., 0]
    r = sample.good.shape[1]
    rest = torch.logsumexp(scores[:, r:] + sample.log_scale, 1, keepdim=True)  # [n, 1]
    loss = functional.softplus(rest - scores[:, :r])
    return (loss * sample.good).sum(1) / sample.good.sum(1).clamp(min=1)


def pool_loss(weights: Tensor, sample: Sample) -> Tensor:
    """Loss [n]: log-softmax of the relevant items in the pool, over the number of relevant items.

    `weights` is [n, E]; a relevant item outside of the pool adds nothing.
    """
    chances = (sample.best @ weights[..., None])[..., 0].log_softmax(1)
    return -(chances * sample.hits).sum(1) / sample.good.sum(1).clamp(min=1)


def _with(meta: Meta, weight: Tensor, zero: Tensor) -> Meta:
    tensors = {"expert_weight": weight.contiguous(), "expert_weight_zero": zero.contiguous()}
    return replace(meta, tensors={**meta.tensors, **tensors})


def _told(meta: Meta, encoder: Tensor) -> Meta:
    """The weights of users without events, with another weight [1] of the encoder."""
    weight = torch.cat([encoder, meta["expert_weight_zero"][1:]])
    return replace(meta, tensors={**meta.tensors, experts.TOLD: weight})


def _solve(
    meta: Meta, sample: Sample, options: FitOptions
) -> tuple[Tensor, Tensor, Tensor | None, float, float]:
    """Weights [E, 4] for users with shots, [E] for those without, the encoder's [1] for those of
    them with a profile (None = nobody has one), loss, loss of the defaults.
    """
    default, told = meta["expert_weight"], sample.shots < 0
    importance = _per_user(sample.users)
    rest = sample if told.all() else _rows(sample, torch.nonzero(~told)[:, 0])
    pull = options.pull * (_variance(rest) + 0.1)
    scale = 1 / (_variance(rest) + 0.1)

    def mean_loss(each: Tensor, part: Sample, weight: Tensor) -> Tensor:
        loss = pool_loss(each, part) + options.full * sampled_loss(each, part)
        return (loss * weight).sum() / weight.sum()

    def warm(w: Tensor) -> Tensor:
        return mean_loss(rest.context @ w.T, rest, _per_user(rest.users))

    def begin(which: Tensor, free: int) -> Tensor:
        """The first `free` weights of users who begin, from some positions."""
        part, weight = _rows(sample, torch.nonzero(which)[:, 0]), importance[which]
        near, rest = fitted[:free, 0], fitted[free:, 0]

        def loss(w: Tensor) -> Tensor:
            each = torch.cat([w, rest]).expand(len(weight), -1)
            return mean_loss(each, part, weight) + (pull[:free] * (w - near) ** 2).sum()

        return minimise(loss, near, scale[:free], options.steps)

    fitted = minimise(
        lambda w: warm(w) + (pull[:, None] * (w - default) ** 2).sum(),
        default,
        scale[:, None].expand(-1, default.shape[1]),
        options.steps,
    )
    cold = sample.shots == 0
    zero = begin(cold, len(fitted)) if cold.any() else fitted[:, 0]
    encoder = begin(told, 1) if told.any() else None  # a profile moves no other expert
    return fitted, zero, encoder, float(warm(fitted)), float(warm(default))


def minimise(
    objective: Callable[[Tensor], Tensor], start: Tensor, scale: Tensor, steps: int
) -> Tensor:
    """A smooth function's minimum near `start` by BFGS with backtracking, for a few dozen numbers.

    `scale`, of the shape of `start`, is a first guess of the inverse curvature. Returns the best
    point found; it is never worse than `start`.
    """
    point, inverse = start.clone(), torch.diag(scale.flatten())
    value, slope = _value_and_slope(objective, point)
    for _ in range(steps):
        move = -(inverse @ slope)
        expected = float(move @ slope)
        if expected > -1e-9:
            break
        size = _backtrack(objective, point, value, move.view_as(point), expected)
        if size == 0:
            break
        step = size * move
        point = point + step.view_as(point)
        value, new = _value_and_slope(objective, point)
        inverse = _updated(inverse, step, new - slope)
        slope = new
    return point


def _value_and_slope(objective: Callable[[Tensor], Tensor], at: Tensor) -> tuple[float, Tensor]:
    with torch.enable_grad():
        leaf = at.detach().clone().requires_grad_(True)
        value = objective(leaf)
        (slope,) = torch.autograd.grad(value, leaf)
    return float(value.detach()), slope.flatten()


def _backtrack(
    objective: Callable[[Tensor], Tensor],
    point: Tensor,
    value: float,
    move: Tensor,
    expected: float,
) -> float:
    """The first of 1, 1/4, 1/16, .. that lowers the objective enough; 0 if none does."""
    with torch.no_grad():
        for size in (0.25**i for i in range(8)):
            if float(objective(point + size * move)) <= value + 1e-4 * size * expected:
                return size
    return 0.0


def _updated(inverse: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """The BFGS update of the inverse Hessian; unchanged where the curvature is not positive."""
    curvature = float(step @ change)
    if curvature < 1e-9:
        return inverse
    left = torch.eye(len(step)) - torch.outer(step, change) / curvature
    return left @ inverse @ left.T + torch.outer(step, step) / curvature


def _collect(
    meta: Meta,
    log: Log,
    start: float,
    catalogue: Catalogue,
    prior: Prior | None,
    users: Ints,
    options: FitOptions,
    seed: int,
) -> Sample | None:
    seq = Sequences.of(log)
    events, wanted = _events(meta, seq, start, users, options)
    events, wanted = _busy(meta, seq, events, wanted, options.buckets, seed)
    if not len(events):
        return None
    interests = interests_at(meta, seq, events, "request", catalogue.vectors)
    size = len(experts.names(meta.config))
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for step in evaluate.walk(meta, seq, events, catalogue, prior):
        at = step.inside
        view = views(meta, seq, events[at], "request", options.mask_seen, size)
        view = replace(view, interests=interests[at])
        owner = torch.from_numpy(log.users[events[at]])
        parts.append(
            _sample(meta, step, view, torch.from_numpy(wanted[at]), owner, options, generator)
        )
    return Sample(*(torch.cat([getattr(p, name) for p in parts]) for name in Sample.__slots__))


def _events(
    meta: Meta, seq: Sequences, start: float, users: Ints, options: FitOptions
) -> tuple[Ints, Ints]:
    """Places in the log with something relevant after them, and the relevant items."""
    log = seq.log
    begin = int(np.searchsorted(log.times, start))
    events = np.flatnonzero(np.isin(log.users[begin:], users)) + begin
    wanted = relevant(seq, events, "request", options.horizon, options.mask_seen)
    some = (wanted >= 0).any(1)
    return events[some], wanted[some]


def _busy(
    meta: Meta, seq: Sequences, events: Ints, wanted: Ints, buckets: int, seed: int
) -> tuple[Ints, Ints]:
    """The positions of some buckets of event time, drawn by their number of positions."""
    if not len(events):
        return events, wanted
    kinds, place, sizes = np.unique(
        bucket_start(seq.log.times[events], meta.config.bucket),
        return_inverse=True,
        return_counts=True,
    )
    rng = np.random.default_rng(seed)
    size = min(buckets, len(kinds))
    taken = np.zeros(len(kinds), np.bool_)
    taken[rng.choice(len(kinds), size, replace=False, p=sizes / sizes.sum())] = True
    return events[taken[place]], wanted[taken[place]]


def _sample(
    meta: Meta,
    step: Step,
    view: UserView,
    wanted: Tensor,
    users: Tensor,
    options: FitOptions,
    generator: torch.Generator,
) -> Sample:
    prepared = step.prepared
    chance = _proposal(step, options.uniform)
    n, m = len(users), options.negatives
    drawn = torch.multinomial(chance, n * m, replacement=True, generator=generator).view(n, m)
    rows = torch.cat([wanted.clamp(min=0), drawn], 1)
    values = ranking.expert_values(meta, prepared, view, rows)
    clash = (drawn[:, :, None] == wanted[:, None, :]).any(2)
    clash |= (drawn[:, :, None] == view.seen[:, None, :]).any(2)
    scale = -torch.log(chance[drawn] * m)
    good = (wanted >= 0) & (prepared.columns[-1][wanted.clamp(min=0)] == 0)
    best = ranking.rank_prepared(meta, prepared, view, min(options.pool, prepared.size)).items
    hits = ((best[:, :, None] == wanted[:, None, :]) & (best >= 0)[:, :, None]).any(2)
    return Sample(
        values=values,
        good=good,
        log_scale=scale.masked_fill(clash, -torch.inf),
        best=ranking.expert_values(meta, prepared, view, best.clamp(min=0)),
        hits=hits,
        shots=_shots(view),
        context=experts.circumstances(
            view, features.trend(meta.config, prepared, features.seeds(view))
        ),
        users=users,
    )


def _shots(view: UserView) -> Tensor:
    """Shots [n], but -1 for users with a profile and without events."""
    if view.told is None:
        return view.shots
    return view.shots.masked_fill(view.told & (view.shots == 0), -1)


def _proposal(step: Step, uniform: float) -> Tensor:
    """Chances [N] of being sampled: popular items more often, every item that is there at times."""
    there = (step.prepared.columns[-1, : step.prepared.size] == 0).float()
    recent = step.shared.popularity[: step.prepared.size] * there[:, None]
    share = (recent / recent.sum(0).clamp(min=1e-12)).mean(1)
    mixed = uniform * there / there.sum() + (1 - uniform) * share
    chances: Tensor = mixed / mixed.sum()
    return chances


def _rows(sample: Sample, rows: Tensor) -> Sample:
    if len(rows) == len(sample.shots):
        return sample
    return Sample(*(getattr(sample, name)[rows] for name in Sample.__slots__))


def _per_user(users: Tensor) -> Tensor:
    """Weight of each position so that every user weighs the same."""
    _, owner, count = torch.unique(users, return_inverse=True, return_counts=True)
    weight: Tensor = 1.0 / count[owner].float()
    return weight


def _variance(sample: Sample) -> Tensor:
    """Variance [E] of each expert over the candidates of a position, averaged."""
    return sample.values.var(1).mean(0)


def _zero_shot(
    models: dict[str, Meta],
    log: Log,
    start: float,
    catalogue: Catalogue,
    prior: Prior | None,
    users: Ints,
    profiled: bool,
    options: FitOptions,
    seed: int,
) -> tuple[dict[str, float], bool]:
    """Mean nDCG@10 of two models, and whether the second is ahead by a standard error.

    At the first events of users who have a profile, or of those who have none.
    """
    seq, (first, second) = Sequences.of(log), models
    any_model = models[first]
    events, wanted = _events(any_model, seq, start, users, options)
    fresh = seq.place[events] == seq.start[seq.place[events]]
    fresh &= told_of(any_model, seq, events).numpy() == profiled
    events, wanted = _busy(
        any_model, seq, events[fresh], wanted[fresh], options.validation_buckets, seed
    )
    if not len(events):
        return {}, False
    interests = interests_at(any_model, seq, events, "request", catalogue.vectors)
    lists: dict[str, list[Tensor]] = {name: [] for name in models}
    with torch.no_grad():
        for step in evaluate.walk(any_model, seq, events, catalogue, prior):
            own = interests[step.inside] if profiled else interests[:1]  # one list for all
            for name, model in models.items():
                view = ranking.empty_view(model, own)
                view = replace(view, told=torch.full((len(own),), profiled))
                ranked = ranking.rank_prepared(model, step.prepared, view, 10).items
                lists[name].append(ranked.expand(step.inside.stop - step.inside.start, -1))
    ndcg = {n: evaluate.figures(torch.cat(x).numpy(), wanted)[:, 0] for n, x in lists.items()}
    ahead = ndcg[second] - ndcg[first]
    error = float(ahead.std()) / len(ahead) ** 0.5
    return {n: float(x.mean()) for n, x in ndcg.items()}, bool(ahead.mean() > error)
