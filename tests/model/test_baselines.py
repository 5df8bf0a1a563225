"""Each baseline ranks what it claims to rank."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from adapters import baselines, item_to_item, ranking
from adapters.baselines import BASELINES, Crowd
from adapters.experts import prior_from_log
from adapters.features import prepare
from adapters.ranking import select as select_users
from adapters.types import Support, UserView
from tests.model import planted
from tests.model.planted import BEGIN

SIZE = 30


def world() -> tuple[Crowd, UserView]:
    """Item 4 is popular of old, item 5 of late; users of item 1 take item 2."""
    settings = planted.config()
    log = planted.log([(u, i, 0.0) for u in range(8) for i in (1, 2)])
    prior = prior_from_log(settings, SIZE, log.users, log.items, log.values, log.times, BEGIN + 1)
    shared = planted.shared(settings, SIZE)
    shared.popularity[:] = 0.1
    shared.popularity[5] = 50.0
    totals = torch.zeros(SIZE)
    totals[4] = 99.0
    prepared = prepare(settings, planted.catalogue(settings, SIZE, prior), shared)
    view = planted.view(settings, 2, SIZE)
    view.seen[:] = -1
    view.support.items[:], view.support.values[:] = -1, 0.0
    view.support.items[1, 0], view.support.values[1, 0] = 1, 1.0
    return Crowd(prepared, shared.popularity, totals), view


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("popularity", 4),
        ("recency popularity", 5),
        ("mean of the support", None),
        ("item-kNN", 2),
        ("item-kNN + recency", None),
    ],
)
def test_the_best_item_of_each(name: str, best: int | None) -> None:
    """The planted item leads the list of the user who clicked item 1."""
    crowd, view = world()
    scores = BASELINES[name](crowd, view)
    assert scores.shape == (2, SIZE)
    if best is not None:
        assert int(scores[1].argmax()) == best


def test_item_knn_falls_back_to_popularity() -> None:
    """Users without a neighbour to go by get popular items."""
    crowd, view = world()
    assert int(baselines.item_knn(crowd, view)[0].argmax()) == 4


def test_the_mean_of_the_support_is_a_dot_product() -> None:
    """One positive event: its own vector against all others."""
    crowd, view = world()
    vectors = crowd.prepared.catalogue.vectors
    torch.testing.assert_close(
        baselines.support_mean(crowd, view)[1], vectors @ vectors[1], rtol=1e-4, atol=1e-4
    )


def test_item_knn_with_recency_mixes_both() -> None:
    """A neighbour of the click and the item of the day come before all others."""
    crowd, view = world()
    top = baselines.item_knn_recency(crowd, view)[1].topk(2).indices.tolist()
    assert set(top) == {2, 5}


def test_masked_scores_hold_nothing_seen() -> None:
    """Seen items and padding are out of reach of every baseline."""
    crowd, view = world()
    view.seen[0, 0] = 4
    scores = baselines.mask(crowd, view, baselines.popularity(crowd, view))
    top, rows = ranking.top_k(scores, SIZE)
    assert 4 not in rows[0][top[0] > -1e29].tolist()
    assert int((top[1] > -1e29).sum()) == SIZE


# -- repeat, EASE, mixtures -----------------------------------------------------------------------


def test_what_was_taken_often_and_lately_is_repeated() -> None:
    """Two events of today weigh more than three of a year ago, and dislikes nothing."""
    crowd, view = world()
    rows = torch.tensor([[3, 3, 8, 7, 7, 7]])
    days = torch.tensor([[0.0, 0.0, 0.0, 365.0, 365.0, 365.0]], dtype=torch.float64)
    values = torch.tensor([[1.0, 1.0, -1.0, 1.0, 1.0, 1.0]])
    past = Support(rows, values, BEGIN - days * 86_400)
    crowd = replace(crowd, now=BEGIN, history=past)
    scores = baselines.repeat(crowd, select_users(view, torch.tensor([1])), half_life=30 * 86_400.0)
    assert scores[0].topk(2).indices.tolist() == [3, 7]
    assert float(scores[0, 8]) < 1e-5


def test_ease_is_the_constrained_ridge_regression() -> None:
    """Its weights solve min |X - XB|^2 + penalty |B|^2 with a zero diagonal, found by descent."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy((rng.random((30, 6)) < 0.4).astype(np.float32))
    users, items = (a.numpy() for a in x.nonzero(as_tuple=True))
    counts = item_to_item.gram(users, items, np.ones(len(users), np.float32))
    model = item_to_item.ease(counts, penalty=5.0)
    assert model.rows.tolist() == list(range(6))
    for column in range(6):
        others = [i for i in range(6) if i != column]
        a = x[:, others]
        right = torch.linalg.solve(a.T @ a + 5.0 * torch.eye(5), a.T @ x[:, column])
        torch.testing.assert_close(model.weights[others, column], right, rtol=1e-4, atol=1e-5)
        assert float(model.weights[column, column]) == 0.0


def test_ease_ranks_what_goes_together() -> None:
    """Users of item 1 took item 2: whoever has item 1 alone gets item 2; others get the popular."""
    crowd, view = world()
    pairs = [(u, i) for u in range(8) for i in (1, 2)] + [(u, 9) for u in range(8, 12)]
    users, items = np.array(pairs).T
    counts = item_to_item.gram(users, items, np.ones(len(users), np.float32))
    crowd = replace(crowd, linear={"EASE": item_to_item.ease(counts, 10.0)})
    scores = baselines.linear(crowd, view, "EASE")
    assert int(scores[1].argmax()) == 2
    assert int(scores[0].argmax()) == 4


def test_neighbours_are_the_shrunk_cosine_of_the_sets_of_users() -> None:
    """Of each item the nearest alone; users added below pull pairs of few users down."""
    sets = {0: {1, 2, 3, 4}, 1: {1, 2, 3, 5}, 2: {6}, 3: {6, 7, 8, 9}}
    users, items = np.array([(user, item) for item, of in sets.items() for user in of]).T
    counts = item_to_item.gram(users, items, np.ones(len(users), np.float32))
    model = item_to_item.nearest(counts, 1, 2.0)
    expected = torch.zeros(4, 4)
    expected[0, 1] = expected[1, 0] = 3 / (4 + 2)
    expected[2, 3] = expected[3, 2] = 1 / (2 + 2)
    torch.testing.assert_close(model.weights, expected)
    with pytest.raises(ValueError, match="count"):
        item_to_item.nearest(counts, 0, 2.0)


def test_few_items_take_part_in_ease() -> None:
    """The items with the most users are kept, however often one user came back to others."""
    users, items = np.array([[0, 1, 2, 0, 0, 0, 1], [5, 5, 5, 7, 7, 7, 3]])
    counts = item_to_item.gram(users, items, np.ones(7, np.float32), most=2)
    assert counts.rows.tolist()[0] in (3, 5)
    assert 5 in counts.rows.tolist()
    assert len(counts.rows) == 2


@pytest.mark.parametrize(("weight", "best"), [(0.01, 2), (100.0, 5)])
def test_recency_counts_by_its_weight(weight: float, best: int) -> None:
    """A small weight leaves the neighbour of the click first, a large one the item of the day."""
    crowd, view = world()
    scores = baselines.with_recency(crowd, view, baselines.item_knn, half_life=0, weight=weight)
    assert int(scores[1].argmax()) == best
