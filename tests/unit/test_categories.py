"""Categories of items, as figures of taste read them."""

from __future__ import annotations

import numpy as np

from stream import categories
from stream.testing_worker import item


def test_an_item_is_spread_over_its_categories() -> None:
    """Each category of an item gets the same share; rows without an item get none."""
    items = [item("a", "A", category=["War", "Drama"]), item("b", "B", category=["drama"])]
    found = categories.categories(items, np.array([2, 0]), 3)
    assert found is not None
    assert found.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]]  # drama, war


def test_rare_categories_count_as_one() -> None:
    """Beyond the most frequent ones, categories share a place."""
    many = categories.MOST + 20
    items = [item(f"a{n}", "A", category=[f"kind {n}"]) for n in range(many)]
    items += [item(f"b{n}", "B", category=[f"kind {n}"]) for n in range(categories.MOST - 1)]
    found = categories.categories(items, np.arange(len(items)), len(items))
    assert found is not None
    assert found.shape[1] == categories.MOST
    assert found.sum(1).tolist() == [1.0] * len(items)
    assert int(found[:, -1].sum()) == 21


def test_without_categories_there_is_nothing_to_say() -> None:
    """Where most items have none, the caller has to find other groups."""
    items = [item("a", "A"), item("b", "B"), item("c", "C", category=["War"])]
    assert categories.categories(items, np.arange(3), 3) is None
