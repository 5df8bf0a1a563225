"""The item tower: parts, unknown ids, attribute hashing, text reduction and the SVD start."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapters import towers
from adapters.types import Meta, ModelConfig

CONFIG = ModelConfig()


@pytest.fixture
def features() -> towers.ItemFeatures:
    """Six items; the last two are new and the last has no attributes."""
    g = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(6, 32, generator=g), dim=-1)
    bags = towers.attribute_buckets(
        [[("genre", f"g{i}"), ("genre", "all")] for i in range(5)] + [()]
    )
    return towers.ItemFeatures(text, bags, torch.tensor([0, 1, 2, 3, -1, -1]), torch.rand(6, 8))


@pytest.fixture
def meta(features: towers.ItemFeatures) -> Meta:
    """An untrained tower for them."""
    g = torch.Generator().manual_seed(1)
    return Meta(CONFIG, towers.new_tensors(CONFIG, features, g))


def test_a_vector_is_the_sum_of_its_parts(meta: Meta, features: towers.ItemFeatures) -> None:
    """Text, mean of attributes, id and dense part add up."""
    vector = towers.item_vectors(meta, features)[2]
    bag = features.attributes[2]
    expected = (
        meta["item.text"] @ features.text[2]
        + meta["item.bias"]
        + meta["item.attribute"][bag[bag >= 0]].mean(0)
        + meta["item.id"][2]
        + meta["item.dense"] @ torch.nn.functional.normalize(features.dense[2], dim=0)
    )
    torch.testing.assert_close(vector, expected)


def test_new_items_work_without_an_id(meta: Meta, features: towers.ItemFeatures) -> None:
    """Items without id get the vector they would get had their id been dropped."""
    whole = towers.item_vectors(meta, features)
    without = towers.item_vectors(meta, features.without_ids())
    assert torch.equal(whole[4:], without[4:])
    assert not torch.equal(whole[:4], without[:4])
    some = towers.item_vectors(meta, features.without_ids(torch.tensor([1, 0, 0, 0, 0, 0]).bool()))
    assert torch.equal(some[0], without[0])
    assert torch.equal(some[1:], whole[1:])


def test_rows_are_independent(meta: Meta, features: towers.ItemFeatures) -> None:
    """An item's vector does not depend on which items are encoded with it."""
    rows = torch.tensor([5, 0, 3])
    torch.testing.assert_close(
        towers.item_vectors(meta, features.select(rows)), towers.item_vectors(meta, features)[rows]
    )


def test_attributes_hash_the_same_everywhere() -> None:
    """Buckets are fixed numbers, pad with -1, and tell fields apart."""
    table = towers.attribute_buckets([[("genre", "Drama")], [("mood", "Drama")], []], width=3)
    assert table.shape == (3, 3)
    assert table[0].tolist() == [3420, -1, -1]
    assert table[0, 0] != table[1, 0]
    assert (table[2] == -1).all()


def test_no_attributes_at_all_are_no_error(meta: Meta, features: towers.ItemFeatures) -> None:
    """A catalogue without attribute columns has vectors."""
    bare = towers.ItemFeatures(features.text, torch.zeros(6, 0).long(), features.id_rows)
    assert towers.item_vectors(meta, bare).isfinite().all()


def test_items_with_little_history_are_new() -> None:
    """Only items with enough events get an id row, and the rows are dense."""
    rows = towers.known_items(np.array([0, 0, 0, 2, 3, 3, 3, -1, -1, -1]), 5, least=3)
    assert rows.tolist() == [0, -1, -1, 1, -1]


def test_reduced_text_keeps_neighbours(features: towers.ItemFeatures) -> None:
    """Reduction to the rank of the texts keeps distances; the result has unit length."""
    g = torch.Generator().manual_seed(3)
    text = torch.randn(200, 5, generator=g) @ torch.randn(5, 32, generator=g) + 1.0
    meta = Meta(CONFIG, towers.fit_text_reduction(text, 8))
    reduced = towers.reduce_text(meta, text)
    assert reduced.shape == (200, 8)
    torch.testing.assert_close(reduced.norm(dim=1), torch.ones(200))
    centred = torch.nn.functional.normalize(text - text.mean(0), dim=-1)
    torch.testing.assert_close(reduced @ reduced.T, centred @ centred.T, atol=1e-4, rtol=0)


def test_reduction_pads_small_texts() -> None:
    """More dimensions than the texts have are zeros, not an error."""
    meta = Meta(CONFIG, towers.fit_text_reduction(torch.randn(10, 4), 6))
    assert towers.reduce_text(meta, torch.randn(3, 4)).shape == (3, 6)
    assert (meta["text.components"][4:] == 0).all()


def test_svd_start_puts_items_of_the_same_users_together() -> None:
    """Two groups of users with two groups of items give two directions."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(40), 10)
    items = rng.integers(0, 10, 400) + np.where(users < 20, 0, 10)
    start = towers.svd_start(users, items, torch.arange(20), 8, torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(start, dim=1)
    similar = unit @ unit.T
    assert start.shape == (20, 8)
    assert similar[:10, :10].mean() > similar[:10, 10:].mean() + 0.3


def test_svd_start_is_the_same_for_the_same_seed() -> None:
    """The start depends on the generator given and on no global one; no events give zeros."""
    users, items = np.arange(50) % 7, np.arange(50) % 11
    starts = [
        towers.svd_start(users, items, torch.arange(11), 4, torch.Generator().manual_seed(5))
        for _ in range(2)
    ]
    assert torch.equal(*starts)
    empty = towers.svd_start(users[:0], items[:0], torch.arange(3), 4, torch.Generator())
    assert torch.equal(empty, torch.zeros(3, 4))
