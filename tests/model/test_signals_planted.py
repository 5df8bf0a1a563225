"""Signals that are planted in a log are learned: actions, dislikes, grades, gaps, profiles."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters import adapter, evaluate, fit_experts, meta_train, positions, profiles, towers
from adapters.episodes import Draw, Log, make_log
from adapters.evaluate import Options
from adapters.experts import TOLD, default_tensors, names, prior_from_log
from adapters.fit_experts import FitOptions
from adapters.impressions import make_impressions
from adapters.meta_train import Recipe, Trained
from adapters.positions import Sequences
from adapters.profiles import make_profiles
from adapters.types import Block, Catalogue, ModelConfig
from stream.config import Messages
from stream.messages import evidence
from stream.training import one_thread
from tests.model import planted
from tests.model.planted import BEGIN, DAY

THEMES, ITEMS, USERS = 4, 80, 160
CONFIG = ModelConfig(
    dim=16,
    text_dim=8,
    heads=2,
    key_dim=8,
    value_dim=8,
    actions=("like", "hover"),
    half_lives=(DAY,),
    neighbours=8,
)
RECIPE = Recipe(
    steps=120,
    learning_rate=2e-2,
    vector_dropout=0.1,
    popularity=False,
    draw=Draw(batch=32, windows=(8, 14), long_share=0.0, repeat=True),
)
THEME = torch.arange(ITEMS) % THEMES


def features() -> towers.ItemFeatures:
    """Texts that tell the theme, and an attribute that does."""
    g = torch.Generator().manual_seed(0)
    text = torch.eye(THEMES, 12)[THEME] + 0.2 * torch.randn(ITEMS, 12, generator=g)
    text = torch.nn.functional.normalize(text, dim=-1)
    return towers.ItemFeatures(text, 10 + THEME[:, None], torch.full((ITEMS,), -1))


def item_of(theme: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Items of these themes."""
    return theme + THEMES * rng.integers(0, ITEMS // THEMES, len(theme))


def trained(log: Log, **changes: object) -> Trained:
    """A model that has seen the log."""
    recipe = replace(RECIPE, **changes)  # type: ignore[arg-type]
    with one_thread():
        return meta_train.train(log, features(), CONFIG, recipe=recipe)


def block(items: list[int], **columns: object) -> Block:
    """One user's events, an hour apart, unless `columns` say something else."""
    told = {
        "actions": [0] * len(items),
        "values": [1.0] * len(items),
        "times": BEGIN + 3_600.0 * np.arange(len(items)),
        **columns,
    }
    return Block(
        items=torch.tensor([items]),
        actions=torch.tensor([told["actions"]]),
        values=torch.tensor([told["values"]]),
        times=torch.from_numpy(np.asarray(told["times"], np.float64))[None],
        mask=torch.ones(1, len(items), dtype=torch.bool),
    )


def by_theme(model: Trained, events: Block | None) -> Tensor:
    """Mean score of each theme [THEMES] after these events, over the mean of all items."""
    vectors = towers.item_vectors(model.meta, model.features)
    state = adapter.init(model.meta, 1)
    if events is not None:
        state = adapter.advance(model.meta, state, events, vectors)
    scores = (adapter.read(model.meta, state)[0, 0] @ vectors.T).detach()
    return torch.stack([scores[theme::THEMES].mean() for theme in range(THEMES)]) - scores.mean()


def world(seed: int = 0, events: int = 14) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """Users of a log, and the taste of each event's user."""
    rng = np.random.default_rng(seed)
    taste = rng.integers(0, THEMES, USERS)
    users = np.repeat(np.arange(USERS), events)
    return rng, users, taste[users]


def test_the_action_that_tells_more_moves_more() -> None:
    """Likes follow the taste, hovers anything; hidden actions leave the model in doubt."""
    rng, users, taste = world()
    like = rng.random(len(users)) < 0.5
    theme = np.where(like, taste, rng.integers(0, THEMES, len(users)))
    log = make_log(users, item_of(theme, rng), ~like, np.ones(len(users)), rng.random(len(users)))
    model = trained(log)
    start = by_theme(model, None)
    moved = [
        [by_theme(model, block([n], actions=[action]))[n] - start[n] for n in range(THEMES)]
        for action in (0, 1)
    ]
    assert sum(moved[0]) > 1.5 * sum(moved[1])
    known = sum(ahead(model, liked, [0, 1] * 3) for liked in range(THEMES))
    hidden = sum(ahead(model, liked, [0] * 6) for liked in range(THEMES))
    assert known > 1.5 * hidden
    assert known > 1.0


def ahead(model: Trained, liked: int, actions: list[int]) -> float:
    """Score of a theme over that of the next one, after three events of both in turns."""
    other = (liked + 1) % THEMES
    events = [theme + THEMES * n for n in range(3) for theme in (liked, other)]
    found = by_theme(model, block(events, actions=actions))
    return float(found[liked] - found[other])


def test_a_dislike_lets_items_like_it_fall() -> None:
    """Where people dislike what is not their taste, one dislike lowers its theme, a click lifts."""
    rng, users, taste = world(1)
    bad = rng.random(len(users)) < 0.4
    theme = np.where(bad, (taste + rng.integers(1, THEMES, len(users))) % THEMES, taste)
    values = np.where(bad, -1.0, 1.0)
    log = make_log(users, item_of(theme, rng), bad, values, rng.random(len(users)))
    model = trained(log)
    before = by_theme(model, None)
    disliked = by_theme(model, block([2], actions=[1], values=[-1.0])) - before
    liked = by_theme(model, block([2])) - before
    assert disliked[2] < -0.1
    assert disliked[2] == disliked.min()
    assert liked[2] > 0.1


@pytest.mark.parametrize(
    ("action", "grades"), [("dwell", (2.0, 15.0, 60.0)), ("rating", (1.0, 3.0, 5.0))]
)
def test_a_higher_grade_moves_more(action: str, grades: tuple[float, ...]) -> None:
    """Seconds and stars: the longer and the better, the more its theme rises."""
    rng, users, taste = world(2)
    low, _, high = grades
    theme = np.where(rng.random(len(users)) < 0.5, taste, rng.integers(0, THEMES, len(users)))
    grade = np.where(theme == taste, high, low) * rng.uniform(0.9, 1.0, len(users))
    values = [evidence(action, float(one), Messages()) for one in grade]
    items = item_of(theme, rng)
    model = trained(make_log(users, items, np.zeros(len(users)), values, rng.random(len(users))))
    told = [evidence(action, grade, Messages()) for grade in grades]
    risen = [
        sum(float(by_theme(model, block([n], values=[value]))[n]) for n in range(THEMES))
        for value in told
    ]
    assert risen[0] < risen[1] < risen[2]
    assert risen[2] - risen[0] > 0.5


def test_gaps_tell_which_interest_comes_next() -> None:
    """After a break people go to their other interest; without the gap nobody could tell."""
    rng = np.random.default_rng(3)
    events = 14
    pause = rng.random((USERS, events)) < 0.5
    own = np.array([rng.permutation(THEMES)[:2] for _ in range(USERS)])
    turned = np.cumsum(np.c_[np.zeros(USERS, int), pause[:, :-1]], 1) % 2  # a gap tells the next
    theme = np.take_along_axis(own, turned, 1).ravel()
    times = np.cumsum(np.where(pause, 3 * DAY, 60.0), 1).ravel() + BEGIN
    users = np.repeat(np.arange(USERS), events)
    ones = np.ones(len(users))
    model = trained(make_log(users, item_of(theme, rng), 0 * ones, ones, times))
    clicks, gaps = [0, 4, 1, 5, 8, 12, 9], [60, 3 * DAY] * 3  # themes 0 0 1 1 0 0 1
    turned_to = {}
    for last in (60, 3 * DAY):
        found = by_theme(model, block(clicks, times=BEGIN + np.cumsum([*gaps, last])))
        turned_to[last] = float(found[1] - found[0])
    assert turned_to[60] > 0.1
    assert turned_to[3 * DAY] < -0.1


@pytest.fixture(scope="module")
def told() -> tuple[Log, Trained]:
    """A log whose users have profiles, half by a field of items, half by one of their own."""
    rng, users, taste = world(5)
    who, first = np.unique(users, return_index=True)
    buckets = np.full((USERS, 16), -1)
    buckets[:, 0] = np.where(who % 2, 10, 1_000) + taste[first]
    times = BEGIN + np.sort(rng.random(len(users))) * 20 * DAY
    ones = np.ones(len(users))
    log = make_log(rng.permutation(users), np.zeros(len(users)), 0 * ones, ones, times)
    log = replace(log, items=item_of(taste[first][log.users], rng))
    log = replace(log, profiles=make_profiles(who, np.full(USERS, BEGIN - 1), buckets))
    held_out = np.arange(80, USERS)
    with one_thread():
        model = meta_train.train(log, features(), CONFIG, recipe=RECIPE, held_out=held_out)
    return log, model


def catalogue(model: Trained, created: float = float("nan")) -> Catalogue:
    """The items as this model sees them, all made at one time."""
    none = torch.full((ITEMS, CONFIG.neighbours), -1)
    return Catalogue(
        vectors=towers.item_vectors(model.meta, model.features).detach(),
        text=towers.reduce_text(model.meta, model.features.text),
        created=torch.full((ITEMS,), created, dtype=torch.float64),
        alive=torch.ones(ITEMS, dtype=torch.bool),
        prior_items=none,
        prior_weights=torch.zeros(none.shape),
        returns=torch.zeros(ITEMS, 2),
    )


def first_lists(log: Log, model: Trained) -> tuple[np.ndarray, np.ndarray]:
    """nDCG of new users' lists before their first event, and whether they have a profile."""
    seq = Sequences.of(log)
    events = np.sort(seq.order[np.unique(seq.start)])
    events = events[np.isin(log.users[events], model.held_out)]
    meta = replace(model.meta, tensors={**model.meta.tensors, **default_tensors(CONFIG)})
    options = Options(mask_seen=False, variants=("encoder only",), moment="request")
    lists = evaluate.lists(meta, log, events, catalogue(model), None, options)
    wanted = positions.relevant(seq, events, "request", 10, False)
    by_user = np.argsort(log.users[events])
    ndcg = evaluate.figures(lists, wanted)[by_user, 0]
    return ndcg, positions.profiled(seq, events)[by_user]


def test_new_users_with_a_profile_get_better_first_lists(told: tuple[Log, Trained]) -> None:
    """Fields that items have and fields that only profiles have both lead to the taste."""
    log, model = told
    with_profile, known = first_lists(log, model)
    without, unknown = first_lists(replace(log, profiles=None), model)
    assert known.all()
    assert not unknown.any()
    for first in (0, 1):
        assert with_profile[first::2].mean() > without[first::2].mean() + 0.2


def test_a_profile_that_says_nothing_known_changes_nothing(told: tuple[Log, Trained]) -> None:
    """Attributes that neither items nor five profiles of training had leave the start as it is."""
    _, model = told
    assert profiles.vectors(model.meta, torch.tensor([[9, -1], [-1, -1]])) is None
    found = profiles.vectors(model.meta, torch.tensor([[9, -1], [10, 9]]))
    assert found is not None
    assert not found[0].any()
    assert found[1].any()


def test_the_fit_trusts_the_start_of_who_has_a_profile(told: tuple[Log, Trained]) -> None:
    """A first event by taste, then what is popular: the encoder weighs more for a profile alone."""
    rng, model, size = np.random.default_rng(0), told[1], 800
    users = np.repeat(np.arange(size), 4)
    taste = rng.integers(0, THEMES, size)
    popular = np.minimum(rng.geometric(0.1, len(users)), ITEMS) - 1
    items = np.where(np.arange(len(users)) % 4, popular, item_of(taste, rng).repeat(4))
    times = BEGIN + np.sort(rng.random((size, 4)) * 4 * DAY, 1).ravel()
    log = make_log(users, items, 0 * users, np.ones(len(users)), times)
    buckets = np.full((size // 2, 16), -1)
    buckets[:, 0] = 10 + taste[::2]
    some = make_profiles(np.arange(0, size, 2), np.full(size // 2, BEGIN), buckets)
    options = FitOptions(pool=40, mask_seen=False, validation=0.5, horizon=1)
    fit = partial(fit_experts.fit, model.meta, start=BEGIN, catalogue=catalogue(model), prior=None)
    found = fit(replace(log, profiles=some), users=np.arange(size), options=options)
    zero, own = found.meta["expert_weight_zero"], found.meta[TOLD]
    assert float(own[0]) > float(zero[0]) + 0.2
    assert torch.equal(own[1:], zero[1:])
    assert found.zero_ndcg["told"] > found.zero_ndcg["untold"] + 0.01
    assert TOLD not in fit(log, users=np.arange(size), options=options).meta.tensors


def test_a_later_profile_is_not_known_before(told: tuple[Log, Trained]) -> None:
    """No look-ahead: a profile that comes after the first event changes no list."""
    log, model = told
    assert log.profiles is not None
    late = make_profiles(np.arange(USERS), np.full(USERS, BEGIN + 99 * DAY), log.profiles.buckets)
    plain, _ = first_lists(replace(log, profiles=None), model)
    found, known = first_lists(replace(log, profiles=late), model)
    assert not known.any()
    np.testing.assert_array_equal(found, plain)


def test_fields_that_items_have_need_no_profiles_in_training(told: tuple[Log, Trained]) -> None:
    """A model trained on events alone knows the attributes of items, and no others."""
    log, _ = told
    model = trained(replace(log, profiles=None))
    model = replace(model, held_out=np.arange(80, USERS))
    with_profile, _ = first_lists(log, model)
    without, _ = first_lists(replace(log, profiles=None), model)
    assert with_profile[1::2].mean() > without[1::2].mean() + 0.2
    np.testing.assert_array_equal(with_profile[::2], without[::2])


def test_a_new_item_is_found_by_its_text_within_a_second(told: tuple[Log, Trained]) -> None:
    """An item that is a second old, without id or events, is in the lists that it suits alone."""
    _, model = told
    new = 2  # of theme 2
    items = catalogue(model, BEGIN - 400 * DAY)
    plain = replace(model.features, id_rows=model.features.id_rows.clone())
    plain.id_rows[new] = -1
    now = BEGIN + 7_200.0
    items.created[new] = now - 1
    items = replace(items, vectors=towers.item_vectors(model.meta, plain).detach())
    meta = replace(model.meta, tensors={**model.meta.tensors, **default_tensors(CONFIG)})
    clicks = [(user, user + THEMES * n, 60.0 * n) for user in range(THEMES) for n in range(1, 4)]
    clicks += [(user, user + THEMES * 9, 7_200.0) for user in range(THEMES)]
    log = planted.log(clicks)
    options = Options(moment="request", variants=("adapted",))
    lists = evaluate.lists(meta, log, np.flatnonzero(log.times == now), items, None, options)
    assert (lists == new).any(1).tolist() == [False, False, True, False]


def ignoring() -> Log:
    """A log of lists of which users take, again and again, what they like, and nothing else."""
    rng = np.random.default_rng(6)
    users, lists, size = 120, 8, 40
    likes = rng.random((users, size)) < 0.5
    chance = 1 / (3.0 + np.arange(size))
    acts, shown = [], []
    for user in range(users):
        begin = rng.random() * 5 * DAY
        for n in range(lists):
            items = rng.choice(size, 5, replace=False, p=chance / chance.sum())
            at = begin + n * 7_200.0
            shown += [(user, item, BEGIN + at) for item in items]
            taken = items[likes[user, items]]
            acts += [(user, int(item), at + 60.0 * k) for k, item in enumerate(taken, 1)]
    impressions = make_impressions(*np.array(shown).T, window=1_800.0)
    return replace(planted.log(acts), shown=impressions)


def test_what_is_passed_over_falls_after_the_window() -> None:
    """The fit weighs it, lists get better by it, and it counts once the window is over."""
    log, meta = ignoring(), planted.model(planted.config())
    start, size = BEGIN + 2 * DAY, 40
    prior = prior_from_log(meta.config, size, log.users, log.items, log.values, log.times, start)
    items = planted.catalogue(meta.config, size, prior)
    options = FitOptions(pool=10, negatives=32, mask_seen=False)
    users = np.arange(0, 120, 2)
    found = fit_experts.fit(meta, log, start, items, prior, users, options)
    place = names(meta.config).index("shown")
    assert float(found.meta["expert_weight"][place, 0]) < -0.5
    asked = Options(mask_seen=False, variants=("adapted",), users=np.arange(1, 120, 2))
    report = evaluate.progressive(found.meta, log, start, items, prior, asked)
    blind = replace(log, shown=None)
    before = evaluate.progressive(found.meta, blind, start, items, prior, asked)
    assert report.row("adapted").ndcg.mean > before.row("adapted").ndcg.mean + 0.02


def test_what_was_shown_is_ignored_only_once_its_time_is_over() -> None:
    """Within the window, and before the user's next event, an impression says nothing."""
    meta = planted.model(planted.config())
    log = planted.log([(1, 4, 0), (1, 5, 600), (1, 6, 2_400), (2, 7, 2_500)])
    shown = make_impressions([1, 1, 2], [8, 6, 8], BEGIN + np.array([60, 60, 60]), 1_800.0)
    seq = Sequences.of(replace(log, shown=shown))
    found = [
        positions.views(meta, seq, np.arange(4), moment, True, 1).shown.tolist()
        for moment in ("request", "published")
    ]
    assert found[0] == [[-1]] * 4  # the third event is what settles it
    assert [sorted(set(rows) - {-1}) for rows in found[1]] == [[], [], [8], [8]]
