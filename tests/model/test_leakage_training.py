"""What is trained knows nothing later than its part of the log, items included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters import adapter, episodes, meta_train, offsets, prediction_loss, towers
from adapters.episodes import Draw, Log
from adapters.meta_train import Recipe, Trained
from adapters.types import Meta, ModelConfig
from export.encoder import EncoderFiles
from export.parity import Parity, Probe
from stream import config, training, training_loop
from stream.item_encoder import ItemEncoder
from stream.messages import Item
from stream.progress import Reporter
from stream.testing_worker import LetterEncoder, item
from stream.training import Cuts, Request, Text
from tests.model import planted
from tests.model.planted import BEGIN, DAY, in_favour

CONFIG = ModelConfig(
    dim=16, text_dim=8, heads=2, key_dim=8, value_dim=8, actions=("click",), half_lives=(DAY,)
)
DRAW = Draw(batch=16, windows=(10, 20), long_window=30)
ITEMS = 40


def same(one: Meta, other: Meta) -> bool:
    """Whether two models are equal but for what the order of sums leaves open on some machines."""
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-4) for name in one.tensors
    )


# -- from the log to the bundle -------------------------------------------------------------------

REQUEST = Request(
    events=[], items=[], out="", settings=config.load(None, {"learning.steps": 3}), train_share=0.5
)
FILMS = [item(f"f{i}", f"film {chr(97 + i % 20) * 3} {i}", at=BEGIN - 50 * DAY) for i in range(160)]


def text_of(items: list[Item]) -> Text:
    """Items read by letters; no export is looked at."""
    reader = ItemEncoder(LetterEncoder())
    return Text(
        rows=reader.rows(items),
        encoder=reader,
        files=EncoderFiles(
            model=Path("none"), tokenizer=Path("none"), max_length=1, dim=32, sha=""
        ),
        parity=Parity(max_difference=0.0, mean_difference=0.0, agreement=1.0, k=1, probes=1),
        probe=Probe(texts=(), vectors=np.zeros((0, 32), np.float32)),
        dense=None,
    )


def trained(log: Log, items: list[Item]) -> tuple[Cuts, Trained, Meta]:
    """Both fits of the command, with a few outer steps."""
    text, reporter = text_of(items), Reporter()
    cuts = training.cut(log, 3_600.0, REQUEST)
    job = training_loop.Job(cuts=cuts, rows=text.rows, model=ModelConfig(actions=("click",)))
    outer = training_loop.outer_loop(job, REQUEST, reporter)
    meta, _ = training.fit_weights(outer, text, items, cuts, REQUEST, reporter)
    return cuts, outer, meta


def test_later_parts_of_the_log_do_not_reach_earlier_fits() -> None:
    """Encoder, ids and text reduction stay as they are when the second part is rewritten.

    Expert weights, those of zero shots included, stay when the third part is; new items of these
    parts, with the texts of what is liked, change neither.
    """
    log = planted.random_log(users=60, items=160, events=1_000, days=12)
    cuts, outer, meta = trained(log, FILMS)
    newcomers = [item(f"n{i}", f"film ddd {i}", at=cuts.test + DAY / 2 + i) for i in range(9)]
    _, outer_again, meta_again = trained(in_favour(log, cuts.test), FILMS + newcomers)
    assert same(outer.meta, outer_again.meta)
    assert same(meta, meta_again)
    newcomers = [item(f"n{i}", f"film ddd {i}", at=cuts.fit + DAY / 2 + i) for i in range(9)]
    later, outer_again, meta_again = trained(in_favour(log, cuts.fit), FILMS + newcomers)
    assert (later.fit, later.test) == (cuts.fit, cuts.test)
    assert same(outer.meta, outer_again.meta)
    assert torch.equal(outer.features.id_rows, outer_again.features.id_rows[:160])
    assert not same(meta, meta_again)


# -- the outer loop -------------------------------------------------------------------------------


def features_of(
    created: Tensor | None = None, size: int = ITEMS, seed: int = 0
) -> towers.ItemFeatures:
    """Items with random texts; those beyond ITEMS are drawn apart."""
    text = [
        torch.randn(n, 12, generator=torch.Generator().manual_seed(s))
        for n, s in ((ITEMS, 0), (size - ITEMS, 1 + seed))
    ]
    none = torch.full((size, 1), -1)
    unit = torch.nn.functional.normalize(torch.cat(text), dim=-1)
    return towers.ItemFeatures(unit, none, none[:, 0], created=created)


@pytest.mark.parametrize("full", [1_000, 0], ids=["whole catalogue", "sampled"])
def test_items_of_later_years_leave_no_trace_in_training(full: int) -> None:
    """Rows that appear after the log ends are no negatives, and do not count in any mean."""
    log = planted.random_log(users=30, items=ITEMS, events=500, days=9)
    created = torch.full((ITEMS + 20,), BEGIN - DAY, dtype=torch.float64)
    created[ITEMS:] = BEGIN + 99 * DAY
    recipe = Recipe(steps=3, full_softmax=full, negatives=30, draw=DRAW)
    runs = [
        meta_train.train(log, features, CONFIG, recipe=recipe).meta
        for features in (features_of(created[:ITEMS]), features_of(created, ITEMS + 20))
    ]
    assert same(*runs)


def loss_of(log: Log, features: towers.ItemFeatures, until: float, recipe: Recipe) -> float:
    """The loss of an untrained model at positions before `until`, with all dropout off."""
    generator = torch.Generator().manual_seed(0)
    recipe = replace(recipe, id_dropout=0, vector_dropout=0)
    early, _ = episodes.split_time(log, until)
    histories = episodes.group(early)
    start = meta_train.start(early, features, CONFIG, generator)
    batch = episodes.sample(
        histories, DRAW, episodes.anchors(histories, DRAW), np.random.default_rng(0)
    )
    softmax = prediction_loss.softmax_of(log, episodes.group(log), features, start, recipe)
    few, query = prediction_loss.losses(start, features, batch, softmax, recipe, generator)
    return float(few + query)


def test_an_item_is_no_negative_before_it_appears() -> None:
    """What a later item says is nothing to predictions made before it, and something after."""
    log = planted.random_log(users=30, items=ITEMS, events=500, days=9)
    middle = BEGIN + 5 * DAY
    created = torch.full((ITEMS + 1,), BEGIN - DAY, dtype=torch.float64)
    for arrival, told in ((middle, False), (BEGIN - DAY, True)):
        created[ITEMS] = arrival
        found = [
            loss_of(log, features_of(created, ITEMS + 1, seed), middle, Recipe()) for seed in (0, 7)
        ]
        assert (found[0] != found[1]) == told


def test_sampling_by_later_popularity_tells_nothing() -> None:
    """Negatives drawn by the counts of the whole window give the loss of the whole catalogue.

    Offsets are those of the moment, whatever everybody takes later.
    """
    log = planted.random_log(users=30, items=ITEMS, events=500, days=9)
    middle = BEGIN + 5 * DAY
    exact = loss_of(log, features_of(), middle, Recipe(full_softmax=1_000))
    sampled = Recipe(full_softmax=0, negatives=40_000)
    for one in (log, in_favour(log, middle)):
        assert loss_of(one, features_of(), middle, Recipe()) == pytest.approx(exact, abs=1e-5)
        assert loss_of(one, features_of(), middle, sampled) == pytest.approx(exact, abs=0.02)


def test_offsets_of_a_moment_stay_when_the_future_is_rewritten() -> None:
    """Events at a moment or later, ties included, do not move the popularity known at it."""
    log = planted.random_log(users=30, items=ITEMS, events=500, days=9)
    log = episodes.make_log(
        log.users, log.items, log.actions, log.values, np.floor(log.times / 3_600) * 3_600
    )
    moment = float(log.times[300])
    before, after = (
        offsets.build(one, ITEMS, (DAY, 7 * DAY), ITEMS) for one in (log, in_favour(log, moment))
    )
    asked = torch.tensor([moment - 1.0, moment], dtype=torch.float64)
    assert torch.equal(before.at(asked), after.at(asked))
    assert torch.equal(before.table[:, before.at(asked)], after.table[:, after.at(asked)])
    assert not torch.equal(before.table[:, -1], after.table[:, -1])


def test_the_order_within_a_basket_is_not_learned() -> None:
    """Baskets of random items say nothing of the next item's row, though logs sort them by row.

    Learned, the order would give each end of the catalogue a third of the chances and more.
    """
    rng, users, days, size = np.random.default_rng(0), 150, 8, 4

    def baskets(n: int, days: int) -> Log:
        user, day = (
            np.repeat(np.arange(n), days * size),
            np.tile(np.repeat(np.arange(days), size), n),
        )
        item = rng.integers(0, ITEMS, len(user))
        return episodes.make_log(user, item, 0 * user, 0 * user + 1, BEGIN + day * DAY)

    draw = Draw(batch=32, windows=(20, 32), long_share=0, repeat=True)
    recipe = Recipe(steps=60, learning_rate=1e-2, vector_dropout=0.1, popularity=False, draw=draw)
    found = meta_train.train(baskets(users, days), features_of(), CONFIG, recipe=recipe)
    new = episodes.group(baskets(200, 2), repeat=True)
    block = episodes.window_block(new, new.starts[:-1], np.diff(new.starts))
    vectors = towers.item_vectors(found.meta, found.features)
    state = adapter.advance(found.meta, adapter.init(found.meta, 200), block, vectors)
    chances = (adapter.read(found.meta, state)[:, 0] @ vectors.T).softmax(1).mean(0)
    for quarter in chances.view(4, -1).sum(1).tolist():
        assert quarter == pytest.approx(0.25, abs=0.03)
