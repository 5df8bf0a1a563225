"""Figures of lists and their summary, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapters import list_metrics
from adapters.list_metrics import BLEND, Popularity
from adapters.report import Lists, summarise
from tests.model import planted

NONE = np.array([[-1, -1]])


def test_novelty_counts_what_was_known_at_the_moment() -> None:
    """Self-information uses events before the moment, one more for every item, and no later one."""
    log = planted.log([(1, 0, 0), (2, 0, 1), (3, 1, 2), (4, 2, 3), (5, 2, 4)])
    popularity = Popularity.of(log, 3)
    rows = np.array([[0, 1], [2, -1], [-1, -1]])
    found = list_metrics.novelty(rows, popularity, np.array([3, 5, 5]))
    # of 3 events and 3 items: 3/6 and 2/6; of 5 events and 3 items: 3/8
    expected = [(1 + np.log2(3)) / 2, np.log2(8 / 3), np.nan]
    np.testing.assert_allclose(found, expected)


def test_dislikes_make_nothing_popular() -> None:
    """Negative evidence and unknown items are left out of the counts."""
    log = planted.log([(1, 0, 0), (2, 0, 1), (3, -1, 2)])
    log.values[1] = -1.0
    popularity = Popularity.of(log, 2)
    assert popularity.counts(np.array([[0, 1]]), np.array([3])).tolist() == [[1, 0]]
    assert popularity.before.tolist() == [0, 1, 1, 1]


def test_variety_is_the_mean_distance_of_pairs() -> None:
    """Two alike and one at right angles to both: distances 0, 1, 1; one item has no pair."""
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    rows = np.array([[0, 1, 2], [0, 3, -1], [0, 1, -1], [2, -1, -1]])
    found = list_metrics.variety(rows, text)
    np.testing.assert_allclose(found, [2 / 3, 2.0, 0.0, np.nan])


def test_miscalibration_is_the_divergence_from_the_history() -> None:
    """A list of one kind for a user of two halves, one in proportion, and a user without past."""
    groups = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 0.0]])
    history = np.array([[0, 1], [0, 1], [0, 3], [-1, -1]])
    rows = np.array([[0, -1], [2, -1], [0, 3], [0, 1]])
    found = list_metrics.miscalibration(history, rows, groups)
    one, other = 1 - BLEND + BLEND / 2, BLEND / 2
    lean = 0.5 * np.log(0.5 / one) + 0.5 * np.log(0.5 / other)
    np.testing.assert_allclose(found, [lean, 0.0, 0.0, np.nan], atol=1e-12)


def test_coverage_is_of_all_lists_together() -> None:
    """Items that are in several lists count once, padding not at all."""
    assert list_metrics.coverage(np.array([[0, 1], [1, 2], [2, -1]]), 6) == 0.5
    assert list_metrics.coverage(NONE, 6) == 0.0


def test_topics_tell_kinds_of_text_apart() -> None:
    """Items of the same of three directions share a topic, those of others do not."""
    kind = torch.arange(30) % 3
    text = torch.eye(3)[kind] + 0.05 * torch.randn(
        30, 3, generator=torch.Generator().manual_seed(0)
    )
    found = list_metrics.topics(torch.nn.functional.normalize(text, dim=1), count=6).argmax(1)
    for one in range(3):
        mine = set(found[kind == one].tolist())
        others = set(found[kind != one].tolist())
        assert not mine & others


def test_a_figure_that_a_user_lacks_is_left_out() -> None:
    """Users without a figure do not enter its mean, nor its interval; others do as always."""
    users = np.array([1, 1, 2, 3])
    values = np.array([0.2, np.nan, 0.4, np.nan])
    lists = Lists(figures={"x": values, "none": values * np.nan}, rows=np.zeros((4, 1), int))
    row = summarise(users, [("all", np.ones(4, bool))], {"a": lists}, 1).rows[0]
    assert row.users == 3
    assert row.figures["x"].mean == pytest.approx(0.3)
    assert 0.2 - 1e-6 <= row.figures["x"].low <= row.figures["x"].high <= 0.4 + 1e-6
    assert np.isnan(row.figures["none"].mean)


def test_leads_are_paired_by_user() -> None:
    """Users differ a lot, but one list is ahead by the same for all: the lead has no spread."""
    level = np.linspace(0, 0.9, 50)
    one, other = (Lists(figures={"x": level + d}, rows=NONE[[0] * 50]) for d in (0.1, 0.0))
    found = summarise(np.arange(50), [("all", level >= 0)], {"a": one, "b": other}, 9)
    lead, alone = found.row("b").lead["x"], found.row("b").figures["x"]
    assert (lead.low, lead.mean, lead.high) == pytest.approx((0.1, 0.1, 0.1), abs=1e-5)
    assert alone.high - alone.low > 0.1


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Of 200 samples of 60 users, the interval of the mean holds the true mean in about 95%."""
    rng = np.random.default_rng(0)
    every = [("all", np.ones(60, bool))]
    inside = 0
    for seed in range(200):
        lists = Lists(figures={"x": rng.exponential(size=60)}, rows=NONE[[0] * 60])
        figure = summarise(np.arange(60), every, {"a": lists}, 1, seed).rows[0].figures["x"]
        inside += figure.low <= 1.0 <= figure.high
    assert 0.88 <= inside / 200 <= 0.99
