"""Each baseline ranks what it claims to rank."""

from __future__ import annotations

import pytest
import torch

from adapters import baselines, ranking
from adapters.baselines import BASELINES, Crowd
from adapters.experts import prior_from_log
from adapters.features import prepare
from adapters.types import UserView
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
