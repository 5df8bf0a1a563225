"""Which variant is taken, as a pure function of the figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from adapters.report import Figure
from export import choice
from export.choice import Row
from export.errors import BundleRefused
from export.parity import Parity


def row(name: str, **changes: Any) -> Row:
    """A variant that loses half a percent of its neighbours and nothing else."""
    same = Parity(
        max_difference=0.0,
        mean_difference=0.0,
        agreement=0.995,
        k=10,
        probes=100,
        mean_cosine=1.0,
        min_cosine=1.0,
    )
    known = {"kind": "int8", "size": 100, "speed": 1.0, "probe": same, "catalogue": same}
    return Row(variant=name, **{**known, "steady": 1.0, **changes})


def lists(low: float) -> Figure:
    """A loss of nDCG whose interval begins at `low`."""
    return Figure(low + 0.005, low, low + 0.01)


def test_the_fastest_within_the_budget_is_taken() -> None:
    """Speed decides among those that lose little enough."""
    rows = [row("slow"), row("fast", speed=2.0), row("lossy", speed=9.0, lists=lists(-0.02))]
    assert choice.choose(rows, 0.01).variant == "fast"
    assert choice.choose(rows, 0.02).variant == "lossy"


def test_of_equally_fast_ones_the_smallest_is_taken() -> None:
    """Within a twentieth speeds are level, and the file's size decides."""
    rows = [row("big", speed=2.0, size=90), row("small", speed=1.92, size=20), row("tiny", size=1)]
    assert choice.choose(rows, 0.01).variant == "small"


def test_the_interval_counts_and_not_the_mean() -> None:
    """A mean loss within the budget is not enough where the interval reaches beyond it."""
    unsure = row("unsure", speed=3.0, lists=Figure(-0.004, -0.012, 0.004))
    sure = row("sure", lists=Figure(-0.004, -0.008, 0.0))
    assert choice.choose([unsure, sure], 0.01).variant == "sure"


def test_without_events_lost_neighbours_count() -> None:
    """Half a percent of lost neighbours is within 1% and beyond .1%."""
    assert choice.choose([row("only")], 0.01).variant == "only"
    with pytest.raises(BundleRefused, match=r"no variant loses at most 0\.10%") as caught:
        choice.choose([row("only")], 0.001)
    assert "--budget" in caught.value.remedy


def test_what_is_not_for_bundles_is_passed_over() -> None:
    """Vectors that depend on their batch, or beyond the limits of the kind, are never chosen."""
    far = Parity(max_difference=1.0, mean_difference=1.0, agreement=0.2, k=10, probes=100)
    rows = [row("unsteady", speed=5.0, steady=0.99), row("far", speed=5.0, probe=far), row("fine")]
    assert [each.usable for each in rows] == [False, False, True]
    assert choice.choose(rows, 0.01).variant == "fine"
    lines = choice.table(rows)
    assert [line[-1] for line in lines[1:]] == ["not for bundles", "not for bundles", ""]


def test_speeds_are_ratios_of_the_same_round() -> None:
    """A machine that slows down for all encoders alike does not change the ratios."""

    def ticks() -> Iterator[float]:
        now = 0.0
        for pace in (1.0, 50.0, 3.0):
            for seconds in (4.0, 1.0):  # base, then other
                yield now
                now += pace * seconds
                yield now

    moments = ticks()
    speeds = choice.speeds(
        {"base": len, "other": len}, "base", ["a"], 3, clock=lambda: next(moments)
    )
    assert speeds == {"base": 1.0, "other": 4.0}
