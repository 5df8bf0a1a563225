"""What a user's event costs is measured for every kind, and judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters import adapter
from benchmarks.learning import speed
from benchmarks.learning.speed import Cost, Spread


def made_up(own_us: float, times: float, state: int) -> list[Cost]:
    """Costs of the kinds that are judged."""
    level = Spread(own_us, own_us, own_us)
    own = Cost("fast_weight", level, level, level, level, level, state, 6_000)
    encoded = replace(own, kind="sasrec", times=Spread(times, times, times))
    return [own, encoded, replace(encoded, kind=speed.BANDED)]


@pytest.mark.parametrize(
    ("own_us", "times", "state", "met"),
    [
        (14.0, 20.0, 2_500, [True, True, True]),
        (16.0, 19.0, 2_501, [False, False, False]),
        (4.0, 19.0, 2_000, [True, False, True]),
    ],
)
def test_each_goal_has_a_verdict(own_us: float, times: float, state: int, met: list[bool]) -> None:
    """Time of an event, distance to SASRec and size are judged one by one."""
    assert [verdict.met for verdict in speed.verdicts(made_up(own_us, times, state))] == met


def test_every_kind_is_measured_with_its_size() -> None:
    """All kinds are timed in all parts, and the sizes are those of the stored forms."""
    found = {cost.kind: cost for cost in speed.measure(users=2, items=5, rounds=1, processes=2)}
    assert found.keys() == {*adapter.KINDS, speed.BANDED}
    for cost in found.values():
        assert min(cost.step.low, cost.guard.low, cost.read.low) > 0
        assert cost.whole.low <= cost.whole.median <= cost.whole.high
    own = found["fast_weight"]
    assert own.state == 2 * (4 * 16 * 16 + 2 * 64) + 4 + 8  # fp16 numbers, count and time
    assert own.record <= speed.MOST_RECORD
    assert speed.text(list(found.values())).count("\n") == 1 + len(found)
