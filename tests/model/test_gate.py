"""The gate's rule on planted figures, and the comparison of users who cannot be paired."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from adapters import gate, report
from adapters.gate import Cohort, Judged, Rival, Verdict
from adapters.report import Figure

ROOMY, SMALL = 5_000, gate.LEAST - 1


def cohort(name: str, low: float, positions: int = ROOMY) -> Cohort:
    """A cohort in which the interval of the change begins at `low`."""
    change = Figure(low + 0.02, low, low + 0.04)
    return Cohort(
        name=name, positions=positions, users=90, challenger=0.2, champion=0.2, change=change
    )


def rival(name: str, lead: float) -> Rival:
    """A baseline that the challenger leads by so much, not surely."""
    return Rival(name=name, ndcg=0.2 - lead, lead=Figure(lead, lead - 0.1, lead + 0.1))


def alone(name: str) -> Cohort:
    """A cohort of a first model."""
    return Cohort(name=name, positions=ROOMY, users=90, challenger=0.2, champion=None, change=None)


@pytest.mark.parametrize(
    ("cohorts", "rivals", "named"),
    [
        ([cohort("all", 0.01), cohort("0", 0.01)], [rival("recency popularity", 0.02)], []),
        ([cohort("all", -0.029), cohort("0", -0.029)], [rival("popularity", 0.001)], []),
        ([cohort("all", -0.03)], [rival("popularity", 0.1)], ["all positions"]),
        ([cohort("all", -0.05)], [rival("popularity", 0.1)], ["all positions"]),
        ([cohort("all", 0.0), cohort("8-15", -0.031)], [rival("popularity", 0.1)], ["8-15"]),
        ([cohort("all", 0.0), cohort("64+", -0.5, SMALL)], [rival("popularity", 0.1)], []),
        ([cohort("all", -0.5, SMALL)], [rival("popularity", 0.1)], ["all positions"]),
        (
            [cohort("all", -0.1), cohort("0", -0.1), cohort("1", -0.1)],
            [rival("popularity", 0.1)],
            ["all positions", "at 0 shots", "at 1 shots"],
        ),
        ([cohort("all", 0.0)], [rival("item-kNN + recency", 0.0)], ["item-kNN"]),
        ([cohort("all", 0.0)], [rival("recency popularity", -0.001)], ["recency popularity"]),
        ([alone("all"), alone("0")], [rival("popularity", 0.001)], []),
        ([alone("all")], [rival("popularity", -0.001)], ["popularity"]),
    ],
)
def test_the_rule(cohorts: list[Cohort], rivals: list[Rival], named: list[str]) -> None:
    """Not worse overall and in every large cohort, and ahead of the best baseline; else named."""
    verdict = Verdict(cohorts=tuple(cohorts), rivals=tuple(rivals))
    assert verdict.promoted is (not named)
    assert len(verdict.reasons) == len(named)
    for reason, name in zip(verdict.reasons, named, strict=True):
        assert name in reason


def planted(challenger: float, champion: float | None, seed: int = 0) -> Judged:
    """1,200 positions of 120 users whose lists differ by these factors, with little noise."""
    rng = np.random.default_rng(seed)
    base = rng.random(1_200) * 0.4 + 0.1

    def lists(factor: float) -> np.ndarray:
        return base * factor + rng.normal(0, 0.005, len(base))

    return Judged(
        users=np.arange(1_200) % 120,
        shots=np.arange(1_200) // 600 * 9,
        challenger=lists(challenger),
        champion=None if champion is None else lists(champion),
        baselines={"popularity": lists(0.8), "recency popularity": lists(0.9)},
    )


def test_planted_figures_are_found() -> None:
    """A challenger that is 5% better passes; cohorts and the best baseline are as planted."""
    verdict = gate.judge(planted(1.05, 1.0))
    assert verdict.promoted
    assert [(c.name, c.positions, c.users) for c in verdict.cohorts] == [
        ("all", 1_200, 120),
        ("0", 600, 120),
        ("8-15", 600, 120),
    ]
    for found in verdict.cohorts:
        assert found.change is not None
        assert found.change.mean == pytest.approx(0.05, abs=0.01)
    assert [r.name for r in verdict.rivals] == ["recency popularity", "popularity"]
    assert verdict.rivals[0].lead.mean == pytest.approx(1.05 / 0.9 - 1, abs=0.02)


def test_a_loss_in_one_cohort_is_not_made_good_by_the_others() -> None:
    """A challenger that is better overall and 10% worse at 8 to 15 shots is refused for these."""
    good = planted(1.2, 1.0)
    late = good.shots == 9
    worse = np.where(late, good.challenger * 0.75, good.challenger)
    spoiled = replace(good, challenger=worse)
    verdict = gate.judge(spoiled)
    assert verdict.cohorts[0].passed
    assert ["8-15" in reason for reason in verdict.reasons] == [True]


def test_a_first_model_is_held_against_baselines_alone() -> None:
    """Without a champion there is no change; being behind the best baseline refuses it."""
    assert gate.judge(planted(1.0, None)).promoted
    refused = gate.judge(planted(0.85, None))
    assert [r.split(": ")[0][-18:] for r in refused.reasons] == ["recency popularity"]
    assert refused.cohorts[0].change is None


def test_the_verdict_is_plain_json() -> None:
    """All figures survive JSON, for the manifest and for the topic."""
    found = gate.judge(planted(0.92, 1.0)).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert (found["promoted"], found["cohorts"][0]["passed"]) == (False, False)
    assert len(found["reasons"]) == 3


def test_a_slice_needs_positions_and_users() -> None:
    """Many positions of a few users are too few, and so are few positions of many users."""
    assert gate.enough(np.arange(gate.LEAST) % gate.LEAST_USERS)
    assert not gate.enough(np.arange(gate.LEAST) % (gate.LEAST_USERS - 1))
    assert not gate.enough(np.arange(gate.LEAST - 1))


def test_where_nobody_hits_nobody_is_ahead() -> None:
    """Two models without a single hit are level, not one infinitely worse."""
    none = np.zeros(60)
    found = report.compare(np.arange(60) % 6, none, none)
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)


def test_users_apart_are_compared_by_their_means() -> None:
    """Groups of other sizes: the relative difference, and an interval that noise widens."""
    rng = np.random.default_rng(4)
    one, other = rng.normal(0.22, 0.02, 4_000), rng.normal(0.2, 0.02, 900)
    found = report.compare_apart(one, other)
    assert found.mean == pytest.approx(one.mean() / other.mean() - 1)
    assert 0.08 < found.low < found.mean < found.high < 0.12
    noisy = report.compare_apart(one[:40], other[:30])
    assert noisy.high - noisy.low > 2 * (found.high - found.low)


def test_the_interval_of_users_apart_covers_the_truth() -> None:
    """Of 200 comparisons of groups that do not differ, about 1 in 20 intervals leaves out zero."""
    rng = np.random.default_rng(5)
    outside = 0
    for seed in range(200):
        one, other = rng.binomial(5, 0.2, 150) / 5, rng.binomial(5, 0.2, 80) / 5
        found = report.compare_apart(one, other, seed)
        outside += not found.low <= 0 <= found.high
    assert 2 <= outside <= 22


def test_a_side_without_users_is_refused() -> None:
    """Nothing can be said of a group of nobody."""
    with pytest.raises(ValueError, match="nobody"):
        report.compare_apart(np.array([0.1]), np.zeros(0))


def test_a_change_from_next_to_nothing_is_told_as_large() -> None:
    """A champion without a hit in a cohort makes the relative change a number of any length."""
    assert gate.spread(Figure(0.012, -0.004, 0.028)) == "+1.2% (-0.4% to +2.8%)"
    assert gate.spread(Figure(1.2e11, 4.15, 2e11)) == ">+1000% (+415.0% to >+1000%)"
