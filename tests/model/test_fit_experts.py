"""Expert weights: the loss is that of the whole catalogue, and planted signals are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from adapters import experts, fit_experts, fit_rerank
from adapters.episodes import Log
from adapters.experts import prior_from_log
from adapters.fit_experts import FitOptions, Sample, pool_loss, sampled_loss
from adapters.fit_history import Asked, History
from adapters.minimise import minimise
from adapters.types import Meta
from tests.model import planted
from tests.model.planted import BEGIN, DAY

SIZE = 40


def sample(n: int, m: int, values: torch.Tensor, chances: torch.Tensor, seed: int) -> Sample:
    """n positions whose relevant item is row 0, and m items drawn by `chances` from the rest."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(chances, n * m, replacement=True, generator=generator).view(n, m)
    rows = torch.cat([torch.zeros(n, 1, dtype=torch.int64), drawn], 1)
    scale = -torch.log(chances[drawn] * m)
    return Sample(
        values=values[rows],
        good=torch.ones(n, 1, dtype=torch.bool),
        log_scale=scale.masked_fill(drawn == 0, -torch.inf),
        best=values[rows],
        hits=torch.zeros(n, m + 1, dtype=torch.bool),
        shots=torch.ones(n),
        context=torch.ones(n, 4),
        users=torch.arange(n),
        recency=torch.ones(n),
    )


def test_the_sampled_loss_estimates_the_full_one() -> None:
    """With many samples the loss is that of a softmax over all items, whatever is sampled more."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(SIZE, 3, generator=generator)
    chances = torch.rand(SIZE, generator=generator) + 0.1
    found = sampled_loss(
        torch.ones(400, 3), sample(400, 2_000, values, chances / chances.sum(), 1)
    ).mean()
    expected = -values.sum(1).log_softmax(0)[0]
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)


def test_a_relevant_item_outside_of_the_pool_says_nothing() -> None:
    """No loss and no slope where the best items hold nothing relevant."""
    values = torch.randn(SIZE, 3)
    part = sample(5, 8, values, torch.full((SIZE,), 1 / SIZE), 2)
    weight = torch.ones(5, 3, requires_grad=True)
    loss = pool_loss(weight, part).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) == 0


def test_the_minimum_of_a_quadratic_is_found() -> None:
    """BFGS reaches the minimum of a badly scaled bowl."""
    goal, steep = torch.tensor([3.0, -2.0, 0.5]), torch.tensor([1.0, 100.0, 0.1])
    found = minimise(lambda w: (steep * (w - goal) ** 2).sum(), torch.zeros(3), torch.ones(3), 50)
    torch.testing.assert_close(found, goal, rtol=1e-3, atol=1e-3)


def fitted(
    seed: int = 0, progress: Callable[[float], None] = lambda share: None
) -> tuple[Meta, fit_experts.Fitted]:
    """A world in which only the favourites of the day can be known."""
    meta = planted.model(planted.config())
    log = planted.random_log(users=200, items=SIZE, events=2_500, days=8)
    start = BEGIN + 3 * DAY
    prior = prior_from_log(meta.config, SIZE, log.users, log.items, log.values, log.times, start)
    items = planted.catalogue(meta.config, SIZE, prior)
    users = np.arange(0, 200, 2)
    options = FitOptions(pool=10, negatives=32)
    return meta, fit_experts.fit(meta, log, start, items, prior, users, options, seed, progress)


def test_the_signal_that_carries_gets_the_weight() -> None:
    """The loss falls, day-old popularity outweighs week-old, a useless encoder loses weight."""
    meta, found = fitted()
    order = experts.names(meta.config)
    assert found.loss < found.loss_default
    view = replace(
        planted.view(meta.config, 1, SIZE),
        shots=torch.tensor([3]),
        delta=torch.zeros(1, len(order)),
    )
    three = experts.weights(found.meta, view, torch.full((1,), 0.5))[0]
    assert three[order.index("popularity_86400")] > 1 > three[order.index("popularity_604800")]
    assert abs(float(three[order.index("encoder")])) < 0.5


def habits_that_end() -> Log:
    """Favourites change every day for a week, and never again in the second week."""
    log = planted.random_log(users=200, items=SIZE, events=1_800, days=14)
    settled = log.times >= BEGIN + 7 * DAY
    day = ((log.times - BEGIN) // DAY).astype(int)
    steady = (log.items - 7 * day + 7 * 7) % SIZE
    return replace(log, items=np.where(settled, steady, log.items))


def leaning(fade: float | None) -> float:
    """How much more than week-old popularity that of a day counts, fitted with this half-life."""
    meta, log, start = planted.model(planted.config()), habits_that_end(), BEGIN + 3 * DAY
    columns = (log.users, log.items, log.values, log.times)
    prior = prior_from_log(meta.config, SIZE, *columns, start)
    items = planted.catalogue(meta.config, SIZE, prior)
    options = FitOptions(pool=10, negatives=32, horizon=1, fade=fade)
    found = fit_experts.fit(meta, log, start, items, prior, None, options)
    order = experts.names(meta.config)
    weight = found.meta["expert_weight"][:, 0]
    day, week = (order.index(f"popularity_{days * DAY:g}") for days in (1, 7))
    return float(weight[day] - weight[week])


def test_a_thin_log_is_looked_at_a_few_times_only() -> None:
    """At most as many moments as asked for; each sees what was done before it, and none after."""
    meta = planted.model(planted.config())
    log = planted.random_log(users=200, items=SIZE, events=2_500, days=8)
    start = BEGIN + 3 * DAY
    prior = prior_from_log(meta.config, SIZE, log.users, log.items, log.values, log.times, start)
    items = planted.catalogue(meta.config, SIZE, prior)
    walks = {}
    for most in (1_000, 10):
        history = History.of(log, start, items, prior, FitOptions(moments=most), 0)
        walks[most] = list(history.walk(meta, np.arange(200)))
    exact, few = walks[1_000], walks[10]
    assert len(few) <= 10 < 100 < len(exact)
    assert all(torch.equal(_all(exact, what), _all(few, what)) for what in ("wanted", "users"))
    for asked in few:
        known = (log.times < asked.step.shared.now) & (log.values > 0)
        assert float(asked.step.totals.sum()) == log.values[known].sum()


def test_a_fit_tells_how_far_it_is() -> None:
    """Shares rise through both long walks, and stay below 1, as the last fit follows them."""
    shares: list[float] = []
    fitted(progress=shares.append)
    assert shares == sorted(shares)
    assert min(shares) < 0.1
    assert max(shares) == fit_rerank.LOOKED[1]
    assert len({round(share, 2) for share in shares}) > 30


def _all(walk: list[Asked], what: str) -> torch.Tensor:
    return torch.cat([getattr(asked, what) for asked in walk])


def test_what_people_do_now_counts_more_than_what_they_did() -> None:
    """After habits have changed, weights that fade are nearer to what is right now."""
    assert leaning(0.1) < leaning(None) - 1


def test_the_same_seed_gives_the_same_weights() -> None:
    """Fitting is reproducible."""
    first, second = fitted()[1], fitted()[1]
    assert torch.equal(first.meta["expert_weight"], second.meta["expert_weight"])
    assert first.zero_ndcg == second.zero_ndcg


def test_without_positions_the_defaults_stay() -> None:
    """A log that ends before `start` yields the default weights."""
    meta = planted.model(planted.config())
    log = planted.random_log(users=5, items=SIZE, events=50, days=1)
    found = fit_experts.fit(
        meta, log, BEGIN + 9 * DAY, planted.catalogue(meta.config, SIZE), None, np.arange(5)
    )
    assert found.positions == 0
    expected = experts.default_tensors(meta.config)["expert_weight"]
    assert torch.equal(found.meta["expert_weight"], expected)
