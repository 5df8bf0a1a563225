"""No list, weight or parameter profits from what comes later: futures are planted and rewritten."""

from __future__ import annotations

from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch

from adapters import baselines, evaluate, experts, fit_experts, tuned
from adapters.baselines import Baseline
from adapters.episodes import LeakageError, Log, make_log, split_time
from adapters.evaluate import MODELS, Moments, Options
from adapters.experts import prior_from_log
from adapters.features import prepare
from adapters.fit_experts import FitOptions, Fitted
from adapters.fit_history import History
from adapters.positions import Sequences, relevant
from adapters.types import Catalogue, Meta, ModelConfig
from tests.model import planted
from tests.model.planted import BEGIN, DAY, in_favour

SIZE = 40
HOUR = 3_600.0
START = BEGIN + DAY
SETTINGS = planted.config()
SIMPLE: dict[str, Baseline] = {
    family.name: list(family.points.values())[-1]
    for family in tuned.families(SETTINGS, repeats=True)
}
SIMPLE["recency popularity"] = partial(baselines.recency_popularity, half_life=0)
"""One point of every family of baselines, those that mix with recency among them."""


TUNED = ("recency popularity", "item-kNN + recency", "EASE", "repeat")


def traffic() -> Log:
    """Four days of 12 users, many of whose events share a moment; item SIZE - 1 is not in it."""
    log = planted.random_log(users=12, items=SIZE - 1, events=300, days=4)
    times = np.floor(log.times / 1_200) * 1_200
    return make_log(log.users, log.items, log.actions, log.values, times)


def followed(log: Log) -> Log:
    """The log with an event a user more, a week later, so that every position has a next one."""
    users = np.unique(log.users)
    more = (users, np.full(len(users), SIZE - 1), 0 * users, 0 * users + 1, 0 * users + START + 9e5)
    ours = (log.users, log.items, log.actions, log.values, log.times)
    return make_log(*(np.concatenate(pair) for pair in zip(ours, more, strict=True)))


def catalogue_of(log: Log, size: int = SIZE) -> Catalogue:
    """The catalogue with the co-visitation of the events before START."""
    columns = (log.users, log.items, log.values, log.times)
    return planted.catalogue(SETTINGS, size, prior_from_log(SETTINGS, size, *columns, START))


def judged(log: Log, catalogue: Catalogue, meta: Meta | None = None) -> Moments:
    """All lists from START on; everything that learns from the log is made of this log."""
    columns = (log.users, log.items, log.values, log.times)
    prior = prior_from_log(SETTINGS, len(catalogue.alive), *columns, START)
    options = Options(
        mask_seen=False,
        variants=(*MODELS, *SIMPLE),
        baselines=SIMPLE,
        linear=tuned.linear_models(log, START),
    )
    model = meta or planted.model(SETTINGS)
    with torch.inference_mode():
        return evaluate.positions(model, log, START, catalogue, prior, options, None)


# -- lists ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_lists_know_nothing_of_their_own_moment_or_later(share: float) -> None:
    """Rewriting a request's own event, what shares its moment and all that follows moves nothing.

    Models, counters, co-visitation, EASE and mixtures alike; later lists do change.
    """
    log = traffic()
    cut = float(log.times[int(share * len(log))])
    other = in_favour(log, cut)
    first = int(np.searchsorted(log.times, cut))  # the first event that is rewritten
    before, after = (judged(followed(one), catalogue_of(one)) for one in (log, other))
    np.testing.assert_array_equal(before.events, after.events)
    np.testing.assert_array_equal(before.shots, after.shots)
    known = before.events <= first
    assert first in before.events
    assert min(known.sum(), (~known).sum()) > 40
    for variant in before.lists:
        ours, theirs = before.lists[variant], after.lists[variant]
        np.testing.assert_array_equal(ours[known], theirs[known], err_msg=variant)
        assert (ours[~known] != theirs[~known]).any(), variant


def hourly(seed: int = 0) -> Log:
    """Every hour all users take that hour's favourite, which nothing announces."""
    rng = np.random.default_rng(seed)
    hours, users = np.arange(60), np.arange(12)
    favourites = rng.integers(0, SIZE, len(hours))
    hour, user = (x.ravel() for x in np.meshgrid(hours, users))
    times = START - 20 * HOUR + HOUR * hour + rng.integers(1, 3_600, len(hour))
    return make_log(user, favourites[hour], 0 * user, 0 * user + 1, times)


def fitted(log: Log, users: np.ndarray) -> Fitted:
    """Expert weights from the positions of some users from START to the end of the log."""
    columns = (log.users, log.items, log.values, log.times)
    prior = prior_from_log(SETTINGS, SIZE, *columns, START)
    options = FitOptions(pool=10, negatives=16, mask_seen=False, horizon=1)
    catalogue = catalogue_of(log)
    return fit_experts.fit(
        planted.model(SETTINGS), log, START, catalogue, prior, users, options, seed=0
    )


def test_nobody_profits_from_the_favourite_of_the_open_hour() -> None:
    """What others do in the same hour would tell every next item; all variants stay at chance.

    So do expert weights that were fitted in this world before (what they were fitted to they may
    know by heart).
    """
    log, middle = hourly(), START + 20 * HOUR
    early, _ = split_time(log, middle)
    for meta in (planted.model(SETTINGS), fitted(early, np.arange(12)).meta):
        found = judged(log, catalogue_of(log), meta)
        later = log.times[found.events] >= middle
        assert later.sum() == 20 * 12
        for variant, rows in found.lists.items():
            assert (rows[later, 0] == found.relevant[later, 0]).mean() < 0.15, variant


def test_the_favourite_of_an_hour_before_is_known() -> None:
    """The world above is not blind: the last hour's favourite leads by recency at once."""
    log = hourly()
    found = judged(log, catalogue_of(log))
    early = np.floor(log.times / HOUR)
    last = {hour: log.items[early == hour][0] for hour in np.unique(early)}
    expected = np.array([last[np.floor(t / HOUR) - 1] for t in log.times[found.events]])
    best = found.lists["recency popularity"]
    assert (best[:, :3] == expected[:, None]).any(1).mean() > 0.3  # chance is .08


# -- items that are yet to come -------------------------------------------------------------------


def fond_of_new(settings: ModelConfig) -> Meta:
    """A model that ranks new items first."""
    meta = planted.model(settings)
    age = experts.names(settings).index("age")
    meta.tensors["expert_weight"][age, 0] = meta.tensors["expert_weight_zero"][age] = 99.0
    return meta


def arrival(log: Log) -> tuple[Catalogue, float]:
    """Item SIZE - 1 appears within an hour, between two of the events; and when."""
    late = log.times[log.times >= START + DAY]
    hours = np.floor(late / HOUR)
    inside = [np.unique(late[hours == hour]) for hour in np.unique(hours)]
    created = float(max(inside, key=len)[-1])
    items = catalogue_of(log)
    items.created[:] = START - 400 * DAY
    items.created[SIZE - 1] = created
    return items, created


def test_an_item_is_in_no_list_before_it_appears() -> None:
    """Lists earlier in the hour of its arrival do not hold it, those of later in that hour do."""
    log = traffic()
    items, created = arrival(log)
    found = judged(followed(log), items, fond_of_new(SETTINGS))
    times = log.times[found.events[found.events < len(log)]]
    hour = np.floor(times / HOUR) == np.floor(created / HOUR)
    before, after = hour & (times < created), hour & (times >= created)
    assert before.any()
    for variant, rows in found.lists.items():
        assert not (rows == SIZE - 1).any(1)[: len(times)][times < created].any(), variant
    assert (found.lists["adapted"][: len(times)][after, 0] == SIZE - 1).all()


@pytest.mark.parametrize("moments", [1_000, 3])
def test_weights_are_not_fitted_on_items_yet_to_come(moments: int) -> None:
    """An item that is relevant counts in the fit from its arrival on, and in no pool before."""
    log = followed(traffic())  # SIZE - 1 is relevant everywhere
    items, created = arrival(traffic())
    columns = (log.users, log.items, log.values, log.times)
    prior = prior_from_log(SETTINGS, SIZE, *columns, START)
    options = FitOptions(pool=10, negatives=16, moments=moments, mask_seen=False, horizon=400)
    history = History.of(log, START, items, prior, options, 0)
    found = fit_experts._collect(fond_of_new(SETTINGS), history, np.arange(12))
    assert found is not None
    events = np.flatnonzero(log.times >= START)
    events = events[~Sequences.of(log).tied(events)]
    wanted = relevant(Sequences.of(log), events, "request", 400, mask_seen=False)
    early = log.times[events] < created
    assert 0 < early.sum() < len(early)
    np.testing.assert_array_equal(found.good.sum(1), (wanted >= 0).sum(1) - early)


def test_items_of_later_years_change_no_list() -> None:
    """Twenty more rows that appear after the last list leave all lists as they are."""
    log = traffic()
    items = catalogue_of(log, SIZE + 20)
    items.created[SIZE:] = START + 99 * DAY
    fewer = Catalogue(*(getattr(items, f.name)[:SIZE] for f in fields(Catalogue)))
    before, after = (judged(followed(log), one) for one in (fewer, items))
    for variant in before.lists:
        differ = (before.lists[variant] != after.lists[variant]).mean()
        assert differ <= (0.01 if "repeat" in variant else 0), variant  # equal counts, rounded


def test_what_is_yet_to_come_lends_nothing() -> None:
    """An item of tomorrow with the very text of a new one, and popular, leaves it as it is."""
    items, shared = planted.catalogue(SETTINGS, SIZE), planted.shared(SETTINGS, SIZE)
    items.created[:] = BEGIN - 400 * DAY
    items.created[0], items.created[1] = BEGIN, BEGIN + DAY
    found = []
    for alike in (False, True):
        items.text[1] = items.text[0] if alike else -items.text[0]
        shared.popularity[1] = 1e6 if alike else 0.0
        shared.neighbour_items[:, 0] = 1
        found.append(prepare(SETTINGS, items, shared))
    assert found[0].loans.rows.tolist() == [0]
    assert torch.equal(found[0].loans.lenders, found[1].loans.lenders)
    others = torch.arange(found[0].columns.shape[1]) != 1
    assert torch.equal(found[0].columns[:, others], found[1].columns[:, others])


def test_a_prior_from_the_future_is_refused() -> None:
    """Counts and neighbours that end after the first list are an error, not a good result."""
    log = traffic()
    columns = (log.users, log.items, log.values, log.times)
    late = prior_from_log(SETTINGS, SIZE, *columns, START + 2 * HOUR)
    with pytest.raises(LeakageError, match="prior reaches"):
        evaluate.progressive(
            planted.model(SETTINGS), log, START, planted.catalogue(SETTINGS, SIZE, late), late
        )


# -- weights and parameters -----------------------------------------------------------------------


def test_a_basket_is_one_position_of_the_fit() -> None:
    """Items taken at one moment announce each other; weights are fitted on the list before them."""
    users = np.repeat(np.arange(30), 12)
    days, pair = np.tile(np.repeat(np.arange(6), 2), 30), np.tile([0, 1], 180)
    first = np.random.default_rng(0).integers(0, SIZE // 2, len(users) // 2)
    log = make_log(
        users, 2 * np.repeat(first, 2) + pair, 0 * users, 0 * users + 1, BEGIN + days * DAY
    )
    found = fitted(log, np.arange(30))
    users_fitted = 30 - int(30 * FitOptions().validation)
    assert found.positions == 5 * users_fitted  # a basket a day from START on


def test_parameters_are_chosen_before_the_test() -> None:
    """Whatever everybody takes in the test part, validation makes the same choice."""
    log, test = traffic(), START + 2 * DAY
    chosen = []
    for one in (log, in_favour(log, test)):
        earlier, _ = split_time(one, test)
        columns = (one.users, one.items, one.values, one.times)
        chosen.append(
            tuned.choose(
                planted.model(SETTINGS),
                earlier,
                START,
                catalogue_of(one),
                prior_from_log(SETTINGS, SIZE, *columns, START),
                Options(mask_seen=False, linear=tuned.linear_models(one, START)),
                [f for f in tuned.families(SETTINGS, repeats=True) if f.name in TUNED],
            )
        )
    for ours, theirs in zip(*chosen, strict=True):
        assert (ours.family, ours.point, ours.ndcg) == (theirs.family, theirs.point, theirs.ndcg)
