"""Going on from an earlier model: what both know is taken over, what is new is fresh."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from adapters import meta_train, prediction_loss
from adapters.inheritance import Ancestor, InheritanceError, inherit
from adapters.meta_train import FROZEN, Trained
from adapters.types import Meta
from tests.model.test_meta_train import CONFIG, RECIPE, features_of, planted, share_on_theme

ITEMS = 80


@pytest.fixture(scope="module")
def old() -> Trained:
    """A model that has learned the planted taste."""
    return meta_train.train(planted(), features_of(), CONFIG, recipe=RECIPE)


def ancestor(old: Trained, rows: np.ndarray | None = None) -> Ancestor:
    """The model as the next training takes it; `rows` are those of the new catalogue."""
    known = np.arange(ITEMS) if rows is None else rows
    nothing = np.full((ITEMS, 1), -1)
    return Ancestor(old.meta, known, old.features.id_rows.numpy(), nothing)


def fresh(old: Trained, seed: int = 9, **config: object) -> Meta:
    """An untrained model of the same catalogue."""
    generator = torch.Generator().manual_seed(seed)
    return meta_train.start(planted(), old.features, replace(CONFIG, **config), generator)  # type: ignore[arg-type]


def test_a_training_goes_on_where_the_earlier_one_ended(old: Trained) -> None:
    """After three steps it knows what was learned before; from the base three are nothing."""
    short = replace(RECIPE, steps=3, learning_rate=1e-4)
    again = meta_train.train(
        planted(seed=1), features_of(), CONFIG, recipe=short, ancestor=ancestor(old)
    )
    base = meta_train.train(planted(seed=1), features_of(), CONFIG, recipe=short)
    assert share_on_theme(again, 3) > share_on_theme(old, 3) - 0.05
    assert share_on_theme(base, 3) < share_on_theme(again, 3) - 0.1


def test_what_is_made_of_the_catalogue_stays_new(old: Trained) -> None:
    """The reduction of texts is not the earlier one, whose catalogue was another."""
    meta = fresh(old)
    moved = replace(meta, tensors={**meta.tensors, "text.mean": meta["text.mean"] + 1})
    found = inherit(moved, ancestor(old), old.features.id_rows, FROZEN)
    assert torch.equal(found["text.mean"], moved["text.mean"])
    assert torch.equal(found["item.text"], old.meta["item.text"])
    assert torch.equal(found[prediction_loss.POPULARITY], meta[prediction_loss.POPULARITY])


def test_ids_of_common_items_are_taken_and_others_turned_to_them(old: Trained) -> None:
    """A table that differs by a rotation becomes the earlier one, new rows included."""
    meta, generator = fresh(old), torch.Generator().manual_seed(1)
    turn, _ = torch.linalg.qr(torch.randn(CONFIG.dim, CONFIG.dim, generator=generator))
    tensors = {**meta.tensors, "item.id": old.meta["item.id"] @ turn}
    rows = np.where(np.arange(ITEMS) < 50, np.arange(ITEMS), -1)
    id_rows = old.features.id_rows
    found = inherit(replace(meta, tensors=tensors), ancestor(old, rows), id_rows, FROZEN)
    torch.testing.assert_close(found["item.id"], old.meta["item.id"], atol=1e-4, rtol=1e-4)
    common = id_rows[:50][id_rows[:50] >= 0]
    assert torch.equal(found["item.id"][common], old.meta["item.id"][common])


def test_items_follow_their_ids_not_their_rows(old: Trained) -> None:
    """In a catalogue of another order every item has the vector that it had."""
    order = np.random.default_rng(0).permutation(ITEMS)
    id_rows = old.features.id_rows
    moved = torch.full((ITEMS,), -1)
    known = id_rows[torch.from_numpy(order)] >= 0
    moved[known] = torch.arange(int(known.sum()))
    found = inherit(fresh(old), ancestor(old, order), moved, FROZEN)["item.id"]
    for place in known.nonzero()[:, 0].tolist():
        assert torch.equal(found[moved[place]], old.meta["item.id"][id_rows[order[place]]])


def test_actions_are_matched_by_name(old: Trained) -> None:
    """Rows of an action that both know and of unknown ones are the earlier; a new one is fresh."""
    meta = fresh(old, actions=("like", "click"))
    found = inherit(meta, ancestor(old), old.features.id_rows, FROZEN)
    for name in ("adapter.action_input", "adapter.action_scale"):
        assert torch.equal(found[name][0], meta[name][0])
        assert torch.equal(found[name][1:], old.meta[name])


def test_only_attributes_that_were_met_are_taken(old: Trained) -> None:
    """Buckets that no item of the earlier catalogue had keep their new rows."""
    before = replace(ancestor(old), attributes=np.array([[3, 5], [5, -1]]))
    meta = fresh(old)
    found = inherit(meta, before, old.features.id_rows, FROZEN)["item.attribute"]
    taken = (found == old.meta["item.attribute"]).all(1).nonzero()[:, 0].tolist()
    assert taken == [3, 5]
    assert torch.equal(found[4], meta["item.attribute"][4])


@pytest.mark.parametrize("change", [{"dim": 8}, {"heads": 1}, {"kind": "gru"}])
def test_other_dimensions_are_refused(old: Trained, change: dict[str, object]) -> None:
    """The tensor is named, with both shapes."""
    meta = fresh(old, **change)
    with pytest.raises(InheritanceError, match=r"is \[.*\], of the parent it is"):
        inherit(meta, ancestor(old), old.features.id_rows, FROZEN)
