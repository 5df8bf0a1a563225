"""Weights of the experts, fitted for ranking on events later in time than the encoder's.

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

from adapters import evaluate, experts, features, fit_own_weights, fit_rerank, ranking, rerank
from adapters.episodes import Log
from adapters.experts import Prior
from adapters.fit_history import DEFAULTS, Asked, FitOptions, History, worth
from adapters.minimise import minimise
from adapters.signals import Ints
from adapters.types import Catalogue, Meta, UserView
from adapters.walking import Step

__all__ = ["FitOptions", "Fitted", "Sample", "fit", "pool_loss", "sampled_loss"]

COLLECTED = (0.0, 0.35)
"""Share of the time of a fit that collecting the sample takes, roughly: from and to."""


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
    recency: Tensor  # [n]


def fit(
    meta: Meta,
    log: Log,
    start: float,
    catalogue: Catalogue,
    prior: Prior | None,
    users: Ints | None = None,
    options: FitOptions = DEFAULTS,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> Fitted:
    """Fit the weights on positions of `users` (None = all) at `start` (unix seconds) or later.

    `start` must lie after the events that trained the encoder and `prior` must end by `start`: the
    caller splits. All users' events in `log` make the signals. The mix is fitted first, then the
    second look at the candidates that it chooses. Without positions the default weights are
    returned, and no second look. `progress` is told the share of the work that is done.
    """
    tensors = {**meta.tensors, **experts.default_tensors(meta.config)}
    meta = rerank.without(replace(meta, tensors=tensors))
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(np.unique(log.users) if users is None else users)
    count = int(len(chosen) * options.validation)
    history = History.of(log, start, catalogue, prior, options, seed, progress)
    with torch.no_grad():
        sample = _collect(meta, history, chosen[count:])
    if sample is None:
        return Fitted(meta, 0, float("nan"), float("nan"), {}, own_zero=False)
    weight, zero, told, loss, default = _solve(meta, sample, options)
    models = {"shared": _with(meta, weight, weight[:, 0]), "own": _with(meta, weight, zero)}
    scores, ahead = _zero_shot(models, history, chosen[:count], profiled=False)
    best = models["own" if ahead else "shared"]
    if told is not None:
        tried = {"untold": best, "told": _told(best, told)}
        more, useful = _zero_shot(tried, history, chosen[:count], profiled=True)
        scores, best = {**scores, **more}, tried["told" if useful else "untold"]
    looked = fit_rerank.fit(best, history, chosen)
    if meta.config.user_delta:
        looked = fit_own_weights.fit(looked, history, chosen[count:], chosen[:count])
    return Fitted(looked, len(sample.shots), loss, default, scores, ahead)


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

    In twice the precision: where the minimum is flat, rounding would decide.
    """
    sample = Sample(*(_double(getattr(sample, name)) for name in Sample.__slots__))
    default, told = meta["expert_weight"].double(), sample.shots < 0
    counts = worth(sample.users, sample.recency, options.weighting)
    rest = sample if told.all() else _rows(sample, torch.nonzero(~told)[:, 0])
    own = worth(rest.users, rest.recency, options.weighting)
    pull = options.pull * (_variance(rest) + 0.1)
    scale = 1 / (_variance(rest) + 0.1)

    def mean_loss(each: Tensor, part: Sample, weight: Tensor) -> Tensor:
        loss = pool_loss(each, part) + options.full * sampled_loss(each, part)
        return (loss * weight).sum() / weight.sum()

    def warm(w: Tensor) -> Tensor:
        return mean_loss(rest.context @ w.T, rest, own)

    def begin(which: Tensor, free: int) -> Tensor:
        """The first `free` weights of users who begin, from some positions."""
        part, weight = _rows(sample, torch.nonzero(which)[:, 0]), counts[which]
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
    encoder = begin(told, 1).float() if told.any() else None  # a profile moves no other expert
    return fitted.float(), zero.float(), encoder, float(warm(fitted)), float(warm(default))


def _double(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values


def _collect(meta: Meta, history: History, users: Ints) -> Sample | None:
    generator = torch.Generator().manual_seed(history.seed)
    walk = history.walk(meta, users, part=COLLECTED)
    parts = [_sample(meta, asked, history.options, generator) for asked in walk]
    if not parts:
        return None
    return Sample(*(torch.cat([getattr(p, name) for p in parts]) for name in Sample.__slots__))


def _sample(meta: Meta, asked: Asked, options: FitOptions, generator: torch.Generator) -> Sample:
    view, wanted, prepared = asked.view, asked.wanted, asked.step.prepared
    chance = _proposal(asked.step, options.uniform)
    n, m = len(wanted), options.negatives
    drawn = torch.multinomial(chance, n * m, replacement=True, generator=generator).view(n, m)
    rows = torch.cat([wanted.clamp(min=0), drawn], 1)
    values = ranking.expert_values(meta, prepared, view, rows)
    clash = (drawn[:, :, None] == wanted[:, None, :]).any(2)
    allowed = features.masked(torch.zeros(n, prepared.columns.shape[1]), prepared, view) == 0
    clash |= ~allowed.gather(1, drawn)
    scale = -torch.log(chance[drawn] * m)
    good = (wanted >= 0) & allowed.gather(1, wanted.clamp(min=0))
    good &= prepared.columns[-1][wanted.clamp(min=0)] == 0
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
        users=asked.users,
        recency=asked.recency,
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


def _variance(sample: Sample) -> Tensor:
    """Variance [E] of each expert over the candidates of a position, averaged."""
    return sample.values.var(1).mean(0)


def _zero_shot(
    models: dict[str, Meta], history: History, users: Ints, *, profiled: bool
) -> tuple[dict[str, float], bool]:
    """Mean nDCG@10 of two models, and whether the second is ahead by a standard error.

    At the first events of users who have a profile, or of those who have none.
    """
    first, second = models
    lists: dict[str, list[Tensor]] = {name: [] for name in models}
    wanted: list[Tensor] = []
    with torch.no_grad():
        for step, view, relevant, *_ in history.walk(models[first], users, fresh=True):
            told = torch.zeros(len(relevant), dtype=torch.bool) if view.told is None else view.told
            mine = torch.nonzero(told == profiled)[:, 0]
            if not len(mine):
                continue
            own = ranking.select(view, mine)
            wanted.append(relevant[mine])
            for name, model in models.items():
                lists[name].append(ranking.rank_prepared(model, step.prepared, own, 10).items)
    good = torch.cat(wanted).numpy() if wanted else np.zeros((0, 1), np.int64)
    if not len(good):
        return {}, False
    ndcg = {n: evaluate.figures(torch.cat(x).numpy(), good)[:, 0] for n, x in lists.items()}
    ahead = ndcg[second] - ndcg[first]
    error = float(ahead.std()) / len(ahead) ** 0.5
    return {n: float(x.mean()) for n, x in ndcg.items()}, bool(ahead.mean() > error)
