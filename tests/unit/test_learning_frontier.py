"""The frontier of accuracy and variety, and the point that is chosen on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from adapters.report import Figure
from benchmarks.learning import frontier
from benchmarks.learning.frontier import Point
from benchmarks.learning.kept import Judged
from stream.config import Settings

DEFAULT = Settings().ranking.diversity


def line(changes: dict[float, float]) -> list[Point]:
    """Points with these relative changes of nDCG."""
    return [Point(d, 0.1, Figure(c, c - 0.004, c + 0.004), 0.5, 0.1) for d, c in changes.items()]


@pytest.mark.parametrize(
    ("changes", "point"),
    [
        ({0.0: 0.0, 0.1: -0.005, 0.4: -0.03}, 0.1),
        ({0.0: 0.0, 0.1: 0.004, 0.4: -0.005, 1.0: -0.2}, 0.4),
        ({0.0: 0.0, 0.1: -0.005, 0.2: -0.009, 0.4: -0.03}, 0.1),  # 0.2 may lose 1.3%
        ({0.0: 0.0, 0.1: -0.02, 0.4: -0.001}, 0.0),  # luck beyond a loss does not count
    ],
)
def test_the_chosen_point_is_the_last_before_a_loss(
    changes: dict[float, float], point: float
) -> None:
    """Going up, the last diversity before accuracy may fall by the stated share."""
    assert frontier.chosen(line(changes)) == point


def test_the_verdict_compares_the_default_with_the_chosen_point() -> None:
    """Met where the setting's default is the chosen point, not met where it is another."""
    at_default = line({0.0: 0.0, DEFAULT: -0.001, 0.99: -0.5})
    assert frontier.verdicts(at_default)[0].met
    beyond = [*at_default[:2], replace(at_default[2], change=Figure(0.0, 0.0, 0.0))]
    assert frontier.verdicts(beyond)[0].met is False
    assert frontier.verdicts([]) == []


def test_points_are_means_over_users_relative_to_no_diversity() -> None:
    """Every user counts once, and changes are relative to the first point."""
    users = np.array([0, 0, 1])
    figures = {
        "0": np.array([[0.2, 0.1], [0.2, 0.1], [0.4, 0.3]]),
        "0.5": np.array([[0.1, 0.5], [0.1, 0.5], [0.35, 0.7]]),
    }
    judged = Judged(users, users, users > 5, figures, {"0": 0.1, "0.5": 0.2}, {})
    better = replace(judged, figures={**figures, "0.5": figures["0.5"] + [0.02, 0.0]})
    worse = replace(judged, figures={**figures, "0.5": figures["0.5"] - [0.02, 0.0]})
    plain, varied = frontier.points([better, worse])  # two seeds
    assert (plain.ndcg, plain.variety, plain.change.mean) == pytest.approx((0.3, 0.4, 0.0))
    assert (varied.diversity, varied.coverage) == (0.5, 0.2)
    assert varied.change.mean == pytest.approx(-0.25)
    assert varied.variety == pytest.approx(1.2)  # figures are kept as shares of the most
