"""Items that come again: what is told of a user's own rhythm and of everybody's, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters import evaluate, experts, fit_experts, interplay, ranking, repeats, rerank
from adapters.episodes import Log
from adapters.evaluate import Options
from adapters.experts import prior_from_log
from adapters.fit_experts import FitOptions
from adapters.positions import FAR, Sequences, views
from adapters.types import Meta, UserView
from tests.model import planted
from tests.model.planted import BEGIN, DAY

SIZE = 60
PLACE = {name: at for at, name in enumerate(repeats.NAMES)}
NONE = torch.zeros(SIZE, 2)


def taker(items: list[int], days: list[float]) -> UserView:
    """One user who took these items so many days before the latest event, newest first."""
    one = ranking.select(planted.view(planted.config(), 2, SIZE), slice(1, 2))
    since, seen = torch.tensor([days], dtype=torch.float32), torch.tensor([items])
    return replace(one, shots=torch.tensor([len(items)]), seen=seen, days=since, repeats=True)


def told(view: UserView, name: str, rows: list[int], returns: Tensor = NONE) -> Tensor:
    """One number of the candidates `rows` of the first user."""
    return repeats.numbers(view, returns, torch.tensor([rows]))[PLACE[name]][0]


def test_repeats_are_counted_by_events() -> None:
    """How often, how lately, and whether it is time again by the user's own rhythm."""
    view, rows = taker([30, 31, 30, 32], [0.0] * 4), [30, 32, 33]
    count = told(view, "repeat_count", rows)
    torch.testing.assert_close(count, torch.tensor([2.0, 1.0, 0.0]).log1p())
    last = told(view, "repeat_last", rows)
    torch.testing.assert_close(last, torch.tensor([1.0, 2 ** (-3 / repeats.LATELY), 0.0]))
    lately = told(view, "repeat_lately", rows)
    assert float(lately[0]) == pytest.approx(1 + 2 ** (-2 / repeats.LATELY))
    usual = (2 + repeats.USUAL_LAG) / 2 + repeats.LAG_FLOOR  # taken twice, two events apart
    later = (3 + repeats.LAG_FLOOR) / (repeats.USUAL_LAG + repeats.LAG_FLOOR)
    expected = torch.tensor([math.log(repeats.LAG_FLOOR / usual), math.log(later), 0.0])
    torch.testing.assert_close(told(view, "repeat_due", rows), expected)


def test_repeats_fade_with_days_beyond_the_support_set() -> None:
    """A hundred events back counts by its day, what was never taken for nothing."""
    items = [30, 31, *[40] * 100, 30, 32]
    view = taker(items, [0.0, 3.0, *[5.0] * 100, 14.0, 14.0])
    days, weeks = (told(view, name, [30, 31, 33]) for name in ("repeat_days", "repeat_weeks"))
    torch.testing.assert_close(days, torch.tensor([1 + 2 ** (-14 / 3), 0.5, 0.0]).log1p())
    torch.testing.assert_close(weeks, torch.tensor([1.5, 2 ** (-3 / 14), 0.0]).log1p())


def test_what_all_users_do_tells_when_it_is_time() -> None:
    """An item's odds and lag are told of all; those of a taken one, and how ripe it is, apart."""
    returns = NONE.clone()
    returns[30], returns[33] = torch.tensor([1.5, -0.5]), torch.tensor([0.7, 0.2])
    view, rows = taker([29, 30, 29, 30], [0.0, 6.0, 9.0, 30.0]), [30, 33, 34]
    torch.testing.assert_close(
        told(view, "return_odds", rows, returns), torch.tensor([1.5, 0.7, 0.0])
    )
    torch.testing.assert_close(
        told(view, "return_lag", rows, returns), torch.tensor([-0.5, 0.2, 0.0])
    )
    torch.testing.assert_close(
        told(view, "taken_odds", rows, returns), torch.tensor([1.5, 0.0, 0.0])
    )
    ripe = math.log1p(6.0) + 0.5 - math.log1p(repeats.USUAL_DAYS)  # since the latest time
    torch.testing.assert_close(
        told(view, "taken_due", rows, returns), torch.tensor([ripe, 0.0, 0.0])
    )


def test_habits_tell_who_repeats() -> None:
    """The share of events with items taken more than once; events of the last day, of 30 days."""
    found = repeats.habits(taker([30, 31, 30, -1, 32], [0.0, 0.0, 5.0, 5.0, 40.0]))
    expected = torch.tensor([[2 / 4, math.log1p(2), math.log1p(3)]])
    torch.testing.assert_close(found, expected)


def test_nothing_is_told_where_items_do_not_come_again() -> None:
    """Numbers and habits are 0, and nobody needs to know days."""
    view = replace(taker([30, 31, 30], [0.0, 1.0, 2.0]), repeats=False, days=None)
    assert not any(bool(x.any()) for x in repeats.numbers(view, NONE + 1, torch.tensor([[30]])))
    assert not repeats.habits(view).any()
    with pytest.raises(ValueError, match="days"):
        repeats.habits(replace(view, repeats=True))


def test_returns_by_hand() -> None:
    """Two of three takers of item 0 come back after 3 days, nobody to item 1."""
    users = np.array([0, 0, 1, 1, 2, 0, 1])
    items = np.array([0, 0, 0, 0, 0, 1, 1])
    times = np.array([0.0, 3.0, 1.0, 4.0, 2.0, 9.0, 9.0]) * DAY
    found = repeats.returns(users, items, times, 3)
    share, shrink = 2 / 7, repeats.RETURN_SHRINK
    odds = [
        (2 + shrink * share) / (3 + shrink * (1 - share)),
        (0 + shrink * share) / (2 + shrink * (1 - share)),
        share / (1 - share),
    ]
    expected = np.log(odds) - math.log(share / (1 - share))
    np.testing.assert_allclose(found[:, 0], expected, 1e-5, 1e-6)
    lag = math.log1p(3) - math.log1p(repeats.USUAL_DAYS)
    np.testing.assert_allclose(found[:, 1], lag, 1e-5)  # of the others: as on average


def test_one_basket_is_one_event() -> None:
    """Who takes three of an item at once has not come back to it."""
    again = repeats.returns(np.zeros(4, int), np.array([0, 0, 0, 1]), np.zeros(4), 2)
    assert not again.any()
    some = repeats.returns(np.zeros(3, int), np.zeros(3, int), np.array([0.0, 0.0, DAY]), 1)
    plain = repeats.returns(np.zeros(2, int), np.zeros(2, int), np.array([0.0, DAY]), 1)
    np.testing.assert_array_equal(some, plain)


def test_days_are_told_by_the_calendar() -> None:
    """An hour across midnight is a day; what is not there is far away."""
    log = planted.log([(0, 1, -3_600.0), (0, 2, 60.0), (0, 3, 2.5 * DAY), (1, 4, DAY)])
    assert BEGIN % DAY == 0
    meta, seq = planted.model(planted.config()), Sequences.of(log)
    size = len(experts.names(meta.config))
    last = np.flatnonzero((log.items == 3) | (log.items == 4))
    view = views(meta, seq, last, "published", False, size)
    assert view.days is not None
    by_item = dict(zip(log.items[last].tolist(), view.days.tolist(), strict=True))
    assert by_item == {3: [0.0, 2.0, 3.0], 4: [0.0, FAR, FAR]}
    assert views(meta, seq, last, "published", True, size).days is None


def test_models_of_before_hear_nothing_of_new_numbers() -> None:
    """A model with fewer numbers and circumstances scores as it did."""
    settings, generator = planted.config(), torch.Generator().manual_seed(5)
    numbers = len(rerank.names(settings)) - 4
    context = rerank.CIRCUMSTANCES
    old = {
        **rerank.with_weights(torch.randn(numbers, context, generator=generator)),
        **interplay.new_tensors(numbers, context, generator),
    }
    new = rerank.completed(old, settings)
    values, told = torch.randn(2, 5, numbers + 4), torch.randn(2, rerank.HEARD)
    before = interplay.added(Meta(settings, old), values[..., :numbers], told[:, :context])
    torch.testing.assert_close(interplay.added(Meta(settings, new), values, told), before)
    weight = new["rerank_weight"]
    torch.testing.assert_close(weight[:numbers], old["rerank_weight"])
    assert weight.shape == (numbers + 4, context)
    assert not weight[numbers:].any()
    assert rerank.completed(new, settings).keys() == new.keys()


WEEKS = 12


def shopping_log(users: int = 120) -> Log:
    """Half of the items are taken every week, half once in four; each user has a few of both."""
    rng = np.random.default_rng(4)
    events = []
    for user in range(users):
        weekly = rng.choice(SIZE // 2, 4, replace=False)
        monthly = rng.choice(SIZE // 2, 12, replace=False) + SIZE // 2
        for week in range(WEEKS):
            basket = [*weekly, *monthly[week % 4 :: 4]]
            day = week * 7 * DAY + rng.random() * DAY
            events += [(user, int(item), day + 60.0 * at) for at, item in enumerate(basket)]
    return planted.log(events)


def test_the_fit_finds_what_is_due() -> None:
    """Where rhythm decides, the second look puts what is due first, and the mix cannot."""
    meta, log = planted.model(planted.config()), shopping_log()
    start, cut = BEGIN + 6 * 7 * DAY, BEGIN + 9 * 7 * DAY
    columns = (log.users, log.items, log.values, log.times)
    prior = prior_from_log(meta.config, SIZE, *columns, start)
    assert prior.returns is not None
    catalogue = replace(
        planted.catalogue(meta.config, SIZE, prior), returns=torch.from_numpy(prior.returns)
    )
    train, test = np.arange(80), np.arange(80, 120)
    options = FitOptions(pool=40, negatives=32, horizon=7, mask_seen=False, positions=1_500)
    fitted = fit_experts.fit(meta, log, start, catalogue, prior, train, options).meta
    asked = Options(k=10, horizon=7, users=test, mask_seen=False, variants=("adapted", "mix alone"))
    report = evaluate.progressive(fitted, log, cut, catalogue, prior, asked)
    assert report.row("adapted").ndcg.mean > 1.15 * report.row("mix alone").ndcg.mean
