"""The outer loop: it learns what was planted, obeys its budget, and leaves held-out users alone."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from adapters import adapter, episodes, meta_train, offsets, prediction_loss, towers
from adapters.episodes import Draw, Log
from adapters.meta_train import Recipe
from adapters.outer_loop import Progress
from adapters.types import ModelConfig

CONFIG = ModelConfig(
    dim=16, text_dim=8, heads=2, key_dim=8, value_dim=8, actions=("click",), half_lives=(100.0,)
)
RECIPE = Recipe(
    steps=60,
    vector_dropout=0.1,
    popularity=False,
    draw=Draw(batch=32, windows=(10, 20), long_window=30),
)
GROUPS = 4


def planted(users: int = 120, items: int = 80, seed: int = 0) -> Log:
    """Every user stays within one of four groups of items."""
    rng = np.random.default_rng(seed)
    taste = rng.integers(0, GROUPS, users)
    user = rng.integers(0, users, users * 14)
    item = rng.integers(0, items // GROUPS, len(user)) * GROUPS + taste[user]
    return episodes.make_log(
        user, item, np.zeros(len(user)), np.ones(len(user)), np.arange(len(user))
    )


def features_of(items: int = 80) -> towers.ItemFeatures:
    """Random unit text without any hint of the groups, and no attributes."""
    g = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(items, 12, generator=g), dim=-1)
    return towers.ItemFeatures(text, torch.full((items, 1), -1), torch.full((items,), -1))


def share_on_theme(trained: meta_train.Trained, clicks: int) -> float:
    """Share of the ten best items that are of the group that a new user clicked."""
    vectors = towers.item_vectors(trained.meta, trained.features)
    items = torch.arange(GROUPS)[:, None] + GROUPS * torch.arange(clicks)
    block = adapter.Block(
        items,
        torch.zeros_like(items),
        torch.ones(items.shape),
        torch.arange(clicks, dtype=torch.float64).expand(GROUPS, -1) + 2_000,
        torch.ones_like(items, dtype=torch.bool),
    )
    state, _ = adapter.unroll(trained.meta, adapter.init(trained.meta, GROUPS), block, vectors)
    best = (adapter.read(trained.meta, state)[:, 0] @ vectors.T).topk(10).indices
    return float((best % GROUPS == torch.arange(GROUPS)[:, None]).float().mean())


def test_it_learns_a_planted_taste_and_generalises_to_new_users() -> None:
    """After training, three clicks of a new user fill most of the list with their group."""
    trained = meta_train.train(planted(), features_of(), CONFIG, recipe=RECIPE)
    assert share_on_theme(trained, 3) > 0.7


@pytest.mark.parametrize("kind", sorted(adapter.KINDS))
def test_every_kind_learns(kind: str) -> None:
    """Thirty steps lower the loss of every kind, and three clicks tell the group."""
    losses: list[float] = []
    trained = meta_train.train(
        planted(),
        features_of(),
        replace(CONFIG, kind=kind),
        recipe=replace(RECIPE, steps=30),
        progress=lambda p: losses.append(p.losses["meta"]),
    )
    assert np.mean(losses[-5:]) < 0.93 * np.mean(losses[:3])
    assert share_on_theme(trained, 3) > 0.5


def test_sampled_softmax_learns_the_same() -> None:
    """With a sampled softmax, and popularity offsets, the planted taste is found as well."""
    recipe = Recipe(steps=60, vector_dropout=0.1, full_softmax=0, negatives=40, draw=RECIPE.draw)
    trained = meta_train.train(planted(), features_of(), CONFIG, recipe=recipe)
    assert share_on_theme(trained, 3) > 0.7


def test_items_that_arrive_bit_by_bit_are_learned() -> None:
    """Early positions, for which no item that was drawn is there yet, spoil nothing."""
    log, items = planted(), 80
    arrived = log.times[-1] * np.arange(items) / items
    log = log.select(arrived[log.items] <= log.times)
    features = replace(features_of(items), created=torch.from_numpy(arrived))
    recipe = replace(RECIPE, full_softmax=0, negatives=4, steps=80, popularity=True)
    trained = meta_train.train(log, features, CONFIG, recipe=recipe)
    assert trained.metrics["steps_lost"] == 0
    assert all(torch.isfinite(tensor).all() for tensor in trained.meta.tensors.values())
    assert share_on_theme(trained, 3) > 0.5


def test_sampling_estimates_the_full_loss() -> None:
    """With many samples the corrected loss agrees with that over the whole catalogue."""
    log, features = planted(), features_of()
    features = towers.ItemFeatures(
        features.text, features.attributes, towers.known_items(log.items, 80)
    )
    generator = torch.Generator().manual_seed(0)
    meta = meta_train.start(log, features, CONFIG, generator)
    histories = episodes.group(log)
    batch = episodes.sample(
        histories, RECIPE.draw, episodes.anchors(histories, RECIPE.draw), np.random.default_rng(0)
    )
    values = []
    for full in (1_000, 0):
        recipe = Recipe(
            id_dropout=0, vector_dropout=0, full_softmax=full, negatives=20_000, popularity=True
        )
        softmax = prediction_loss.softmax_of(log, histories, features, meta, recipe)
        values.append(prediction_loss.losses(meta, features, batch, softmax, recipe, generator))
    torch.testing.assert_close(values[0], values[1], atol=0.02, rtol=0)


def test_the_same_seed_gives_the_same_model() -> None:
    """A run by steps is reproducible, and another seed gives another model."""
    recipe = Recipe(steps=4, draw=RECIPE.draw)
    runs = [
        meta_train.train(planted(), features_of(), CONFIG, recipe=recipe, seed=s).meta.tensors
        for s in (1, 1, 2)
    ]
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    assert not torch.equal(runs[0]["adapter.write"], runs[2]["adapter.write"])


def test_held_out_users_leave_no_trace() -> None:
    """Training with users held out is training on a log without them."""
    log, recipe = planted(), Recipe(steps=4, draw=RECIPE.draw)
    users = episodes.draw_users(log, 0.3, seed=1)
    held = meta_train.train(log, features_of(), CONFIG, recipe=recipe, held_out=users)
    rest, _ = episodes.split_users(log, users)
    without = meta_train.train(rest, features_of(), CONFIG, recipe=recipe)
    assert torch.equal(held.features.id_rows, without.features.id_rows)
    assert all(torch.equal(v, without.meta[k]) for k, v in held.meta.tensors.items())
    assert np.array_equal(held.held_out, users)


def test_a_budget_ends_the_run_in_time() -> None:
    """A budget in seconds is kept, and progress goes from 0 to 1 with all losses."""
    seen: list[Progress] = []
    started = time.monotonic()
    trained = meta_train.train(
        planted(), features_of(), CONFIG, budget_s=3.0, recipe=RECIPE, progress=seen.append
    )
    assert time.monotonic() - started < 6.0
    assert len(seen) == trained.metrics["steps"] > 0
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert seen[-1].fraction <= 1.0
    assert {"meta", "few", "total"} == seen[-1].losses.keys()


def test_frozen_tensors_stay_and_helpers_leave() -> None:
    """Step scale and text reduction are not trained; popularity offsets are not in the model."""
    recipe = Recipe(steps=3, draw=RECIPE.draw, averaging=0.9)
    meta = meta_train.train(planted(), features_of(), CONFIG, recipe=recipe).meta
    assert float(meta["step_scale"]) == 1.0
    assert prediction_loss.POPULARITY not in meta.tensors
    assert not any(v.requires_grad for v in meta.tensors.values())


def test_a_log_without_positives_is_refused() -> None:
    """There is nothing to predict in dislikes."""
    log = episodes.make_log([1, 1], [0, 1], [0, 0], [-1, -1], [0, 1])
    with pytest.raises(ValueError, match="no positive"):
        meta_train.train(log, features_of(), CONFIG, recipe=Recipe(steps=1))


def test_offsets_know_only_the_past() -> None:
    """The popularity at a moment counts events strictly before it, decayed by its half-life."""
    log = episodes.make_log([0] * 4, [0, 1, 1, 2], [0] * 4, [1] * 4, [0, 100, 200, 300])
    known = offsets.build(log, 3, (100.0,), 3)
    moment = known.at(torch.tensor([0.0, 0.5, 200.0, 201.0, 1e9], dtype=torch.float64))
    assert moment.tolist() == [0, 1, 2, 3, 4]
    counts = np.array([0.25, 1.5, 0.0])
    expected = torch.from_numpy(np.log(counts / counts.mean() + offsets.FLOOR))
    torch.testing.assert_close(known.table[0, 3].double(), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", sorted(adapter.KINDS))
def test_mixed_precision_learns(kind: str) -> None:
    """With products in bfloat16 every kind has finite losses and weights, and learns."""
    losses: list[float] = []
    exact: list[float] = []
    train = partial(meta_train.train, planted(), features_of(), replace(CONFIG, kind=kind))
    recipe, users = replace(RECIPE, steps=30, popularity=True), np.arange(20)
    train(
        recipe=replace(recipe, steps=1),
        held_out=users,
        progress=lambda p: exact.append(p.losses["meta"]),
    )
    trained = train(
        recipe=replace(recipe, mixed=True),
        held_out=users,
        progress=lambda p: losses.append(p.losses["meta"]),
    )
    assert np.isfinite(losses).all()
    assert 0 < abs(losses[0] - exact[0]) < 0.02 * exact[0]
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:3])
    assert {t.dtype for n, t in trained.meta.tensors.items() if n.startswith("adapter.")} == {
        torch.float32
    }
    assert all(bool(torch.isfinite(t).all()) for t in trained.meta.tensors.values())


@pytest.mark.parametrize("silent", ["item.id", "item.text"])
def test_what_a_recipe_leaves_out_stays_zero(silent: str) -> None:
    """The item tower learns without its ids, or without its texts, and never takes them up."""
    recipe = replace(RECIPE, steps=5, silent=(silent,))
    trained = meta_train.train(planted(), features_of(), CONFIG, recipe=recipe)
    assert not trained.meta[silent].any()
    assert trained.meta["adapter.query"].any()


def test_without_an_inner_loop_no_step_is_taken_after_training_either() -> None:
    """The control has step size zero, and its matrices stay at the start."""
    recipe = replace(RECIPE, steps=5, inner_loop=False)
    trained = meta_train.train(planted(), features_of(), CONFIG, recipe=recipe)
    assert float(trained.meta["step_scale"]) == 0.0


def test_it_stops_where_users_it_does_not_learn_from_gain_nothing() -> None:
    """On events that follow no rule the run ends early, and its best check is not the last."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 200, 3_000), rng.integers(0, 80, 3_000)
    log = episodes.make_log(users, items, users * 0, users * 0 + 1, np.arange(3_000))
    recipe = replace(RECIPE, steps=300, check_every=5, patience=2)
    train = partial(meta_train.train, log, features_of(), CONFIG, recipe=recipe)
    figures = train(held_out=np.arange(100)).metrics
    assert figures["validation_positions"] > 200
    assert figures["steps"] == figures["best_step"] + 10 < 300
    assert figures["stopped_early"] == 1


def test_without_held_out_users_it_never_stops_early() -> None:
    """All steps are taken, and nothing is said of a validation."""
    recipe = replace(RECIPE, steps=12, check_every=2, patience=1)
    figures = meta_train.train(planted(), features_of(), CONFIG, recipe=recipe).metrics
    assert (figures["steps"], figures["validation_positions"]) == (12, 0)
    assert "validation_loss" not in figures


@pytest.mark.parametrize(
    ("asked", "events", "budget_s", "steps"),
    [
        (None, 100, None, 600),
        (None, 64 * 900, None, 900),
        (None, 10**9, None, 3_000),
        (None, 10**9, 30.0, None),
        (50, 10**9, 30.0, 50),
    ],
)
def test_how_long_it_trains_at_most(
    asked: int | None, events: int, budget_s: float | None, steps: int | None
) -> None:
    """As many steps as asked for, as fit into the budget, or as the size of the log suggests."""
    assert meta_train._steps(Recipe(steps=asked), events, budget_s) == steps
