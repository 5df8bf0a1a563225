"""Windows, drift, and whether learning helps: pure figures on planted traffic."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from stream.monitor import control, drift
from stream.monitor.control import Counted, Key, Verdict
from stream.monitor.memory import hashed
from stream.monitor.windows import BUCKETS, WAITS, Group, Sums, Window
from tests.unit.monitoring import DAY, Scene, settings

GROUP = Group("adapted", "4-7", "m1")


# -- windows --------------------------------------------------------------------------------------


def test_a_window_is_about_the_latest_minutes() -> None:
    """What is older than the window leaves it bucket by bucket; totals keep it."""
    window = Window(60.0)
    for second in range(120):
        window.advance(DAY + second)
        window.add(DAY + second, GROUP, Sums(judged=1))
    assert 55 <= window.groups()[GROUP].judged <= 60
    assert window.totals[GROUP].judged == 120
    window.advance(DAY + 3_600)
    assert window.groups() == {}


def test_what_comes_late_counts_where_it_belongs_or_nowhere() -> None:
    """A record of an open bucket counts; one from before the window is counted as late alone."""
    window = Window(60.0)
    window.advance(DAY + 120)
    window.add(DAY + 90, GROUP, Sums(hits=1))
    window.add(DAY, GROUP, Sums(hits=1))
    assert (window.groups()[GROUP].hits, window.late) == (1, 1)


def test_buckets_are_handed_over_once_and_in_order() -> None:
    """Each bucket that leaves the window is returned, oldest first."""
    window = Window(float(BUCKETS))
    for second in range(3):
        window.advance(DAY + second)
        window.at(DAY + second).clicks[second] += 1
    gone = window.advance(DAY + BUCKETS + 1)
    assert [list(bucket.clicks) for bucket in gone] == [[0], [1]]
    assert window.advance(DAY + BUCKETS + 1) == []


def test_a_clock_that_is_ahead_does_not_move_the_window() -> None:
    """A record dated in the future counts as one of now."""
    scene = Scene()
    scene.settle(10)
    scene.now = DAY + 10
    scene.watch._window.add(DAY + 86_400, GROUP, Sums(lists=1))
    assert scene.settle(11).figures["strategy"][0].lists == 1


def test_coverage_counts_an_item_once_while_it_is_listed() -> None:
    """Items of the first K over the catalogue; what was listed long ago is forgotten."""
    scene = Scene(settings(monitor__window_minutes=1))
    scene.publish(1, "ann", ["a", "b", "c", "beyond"])
    scene.publish(2, "bob", ["a", "b", "d"])
    scene.settle(3)
    report = scene.watch.report(scene.now, items=8)
    assert (report.items_listed, report.coverage) == (4, 0.5)
    scene.publish(100, "ann", ["a"])
    assert scene.settle(101).items_listed == 1


def test_waits_are_told_within_a_quarter() -> None:
    """Bounds of the freshness histogram are a quarter apart, from 10 ms to minutes."""
    assert WAITS[0] == 0.01
    assert WAITS[-1] > 300
    assert all(b / a == pytest.approx(1.25) for a, b in pairwise(WAITS))


# -- drift ----------------------------------------------------------------------------------------


def sample(rng: np.random.Generator, weights: np.ndarray, n: int) -> Counter[int]:
    """`n` clicks on items with these weights."""
    return Counter(rng.choice(len(weights), n, p=weights / weights.sum()).tolist())


@pytest.mark.parametrize("n", [500, 5_000])
def test_samples_of_one_distribution_do_not_drift(n: int) -> None:
    """What chance alone makes is taken off, for few clicks as for many, also on a long tail."""
    rng = np.random.default_rng(7)
    weights = 1 / np.arange(1, 2_001)
    found = [drift.divergence(sample(rng, weights, n), sample(rng, weights, n)) for _ in range(5)]
    assert max(found) < 0.03


def test_clicks_that_move_drift() -> None:
    """Other items on top differ by far more than the alarm allows; all new ones by one bit."""
    rng = np.random.default_rng(7)
    weights = 1 / np.arange(1, 2_001)
    before = sample(rng, weights, 2_000)
    assert drift.divergence(sample(rng, np.roll(weights, 500), 2_000), before) > 0.2
    few = sample(rng, weights[:90], 2_000)
    others = Counter({item + 10_000: count for item, count in few.items()})
    assert drift.divergence(others, few) == pytest.approx(1.0)


def test_a_divergence_is_known_where_it_can_be_worked_out() -> None:
    """Half of the clicks on one new item of two is .311 bits, without much noise."""
    found = drift.divergence({"a": 1_000_000.0}, {"a": 500_000.0, "b": 500_000.0})
    assert found == pytest.approx(0.3113, abs=1e-3)
    assert drift.divergence({}, {"a": 1.0}) == 0.0


def test_a_reference_fades_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older counts lose weight with every bucket; only the largest are kept."""
    monkeypatch.setattr(drift, "MOST", 2)
    faded = drift.faded(Counter({"a": 8, "b": 2}), {"c": 3}, keep=0.5)
    assert faded == {"a": 4.0, "c": 3}


def test_drift_is_told_against_what_has_left_the_window() -> None:
    """With enough clicks on both sides the report has it, by items and by categories."""
    kinds = {hashed(f"{c}{i}"): f"category={c}" for c in "hs" for i in range(10)}
    scene = Scene(settings(monitor__window_minutes=1, monitor__drift_clicks=50), kinds=kinds)
    for second in range(60):
        scene.click(second, f"u{second}", f"h{second % 10}")
        scene.settle(second + 2.5)
    assert scene.settle(70).drift == {"items": None, "categories": None}
    scene.settle(150)
    for second in range(150, 202):
        scene.click(second, f"u{second}", f"s{second % 10}")
        scene.settle(second + 2.5)
    report = scene.settle(204.5)
    assert report.drift == {"items": pytest.approx(1.0), "categories": pytest.approx(1.0)}
    assert "retrain" in str(report.alarms["drift"])


# -- does learning help ---------------------------------------------------------------------------


def planted(rng: np.random.Generator, users: int, rate: float) -> list[Counted]:
    """Users with a taste of their own, whose interactions hang together."""
    judged = rng.integers(1, 30, users)
    own = rng.beta(5 * rate, 5 * (1 - rate), users)
    return [Counted(int(n), int(rng.binomial(n, p))) for n, p in zip(judged, own, strict=True)]


def verdict(adapted: list[Counted], other: list[Counted], share: float = 0.1) -> Verdict:
    """The verdict with the defaults of `monitor`."""
    return control.compare(adapted, other, share=share, fewest=100, least_gain=0.02).verdict


def test_learning_that_helps_is_seen() -> None:
    """A planted gain of a half is told from a control of a thousand users."""
    rng = np.random.default_rng(3)
    assert verdict(planted(rng, 9_000, 0.15), planted(rng, 1_000, 0.1)) is Verdict.HELPS


def test_learning_that_harms_is_seen() -> None:
    """Adapted lists that are worse than the control's do not help."""
    rng = np.random.default_rng(3)
    assert verdict(planted(rng, 9_000, 0.1), planted(rng, 1_000, 0.13)) is Verdict.NOT_HELPING


def test_lists_alike_are_undecided_with_few_users_and_told_with_many() -> None:
    """No gain is proved only where even the upper end of the interval is not worth having."""
    rng = np.random.default_rng(3)
    few = verdict(planted(rng, 2_000, 0.1), planted(rng, 500, 0.1))
    many = verdict(planted(rng, 500_000, 0.099), planted(rng, 500_000, 0.1))
    assert (few, many) == (Verdict.UNDECIDED, Verdict.NOT_HELPING)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Over 300 draws without a gain, 95% intervals over users miss it in about 5% of them."""
    rng = np.random.default_rng(11)
    missed = 0
    for _ in range(300):
        found = control.compare(
            planted(rng, 400, 0.2), planted(rng, 200, 0.2), share=0.1, fewest=2, least_gain=0.0
        )
        missed += not found.low <= 0 <= found.high
    assert 3 <= missed <= 30


def test_a_rate_agrees_with_the_plain_variance_of_independent_clicks() -> None:
    """One interaction a user is a binomial sample: r (1 - r) / (n - 1)."""
    users = [Counted(1, 1)] * 30 + [Counted(1, 0)] * 70
    found = control.rate(users)
    assert found.rate == 0.3
    assert found.variance == pytest.approx(0.3 * 0.7 / 99)


@pytest.mark.parametrize(
    ("adapted", "other", "share", "expected"),
    [
        (500, 0, 0.0, Verdict.NO_CONTROL),
        (500, 0, 0.1, Verdict.TOO_FEW),
        (500, 99, 0.1, Verdict.TOO_FEW),
        (99, 500, 0.1, Verdict.TOO_FEW),
        (0, 0, 0.1, Verdict.TOO_FEW),
    ],
)
def test_nothing_is_told_without_a_control_or_users(
    adapted: int, other: int, share: float, expected: Verdict
) -> None:
    """Without `ranking.control_share`, or with too few users of a kind, there is no verdict."""
    users = [Counted(2, 1)]
    assert verdict(users * adapted, users * other, share) is expected


def test_a_users_day_counts_once_whatever_half_it_falls_in() -> None:
    """What a user did in both halves is one user; what is older than two halves is gone."""
    halves = control.Halves(200.0, most=10)
    halves.note(DAY + 50, Key("adapted", "m1", 1), True)
    halves.note(DAY + 150, Key("adapted", "m2", 1), False)
    halves.note(DAY + 150, Key("control", "m2", 1), True)
    assert halves.users("adapted") == [Counted(2, 1)]
    halves.advance(DAY + 250)
    assert halves.users("adapted") == [Counted(1, 0)]
    halves.advance(DAY + 550)
    assert halves.users("adapted") == []


def test_a_canarys_users_are_told_by_model() -> None:
    """Of each user the hit rate with each model, over both halves; the control is not in it."""
    halves = control.Halves(200.0, most=10)
    for at, key, hit in (
        (50, Key("adapted", "m1", 1), True),
        (150, Key("adapted", "m1", 1), False),
        (150, Key("adapted", "m2", 1), True),
        (150, Key("adapted", "m1", 2), True),
        (150, Key("control", "m1", 3), True),
    ):
        halves.note(DAY + at, key, hit)
    assert halves.rates() == {"m1": [0.5, 1.0], "m2": [1.0]}


def test_users_of_a_half_are_bounded() -> None:
    """When there are as many as may be, others wait for the next half; known ones go on."""
    halves = control.Halves(200.0, most=2)
    for user in (1, 2, 3, 1):
        halves.note(DAY, Key("adapted", "m1", user), True)
    assert sorted(halves.users("adapted")) == [Counted(1, 1), Counted(2, 2)]


def test_control_users_are_compared_in_the_report() -> None:
    """Planted users of both strategies lead to the alarm, with the interval that it rests on."""
    scene = Scene(settings(monitor__control_users=20, ranking__control_share=0.5))
    for number in range(60):
        strategy = ("adapted", "control")[number % 2]
        scene.publish(1, f"u{number}", ["a"], strategy=strategy)
        scene.click(2, f"u{number}", "a" if strategy == "control" or number % 3 == 0 else "b")
    report = scene.settle(10)
    assert report.learning.verdict is Verdict.NOT_HELPING
    assert report.learning.high < 0
    assert f"{report.learning.high:+.4f}" in str(report.alarms["learning_not_helping"])
