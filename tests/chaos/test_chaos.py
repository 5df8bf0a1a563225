"""Chaos in short: one broker, a fixed seed, half a minute."""

from __future__ import annotations

import shutil
from pathlib import Path

from stream import checkpoints
from tests.chaos import run as chaos
from tests.chaos.tally import Goals

PLAN = chaos.Plan(
    seed=7,
    seconds=60.0,
    goals=Goals(
        kills=12,
        wipes=1,
        rebalances=0,
        broker_restarts=0,
        stops=0,
        full_disks=0,
        each_point=1,
    ),
    workers=2,
    partitions=4,
    rate=80.0,
    points=checkpoints.OF_TRANSACTIONS,
    only_kills=True,
    replay=False,
)


def test_nothing_is_lost_repeated_or_set_back(broker: str, bundle: Path, tmp_path: Path) -> None:
    """Workers are killed at every point of a transaction; the topics tell nothing of it."""
    shutil.copytree(bundle, tmp_path / "bundle")
    result = chaos.run(PLAN, chaos.settings_of(broker, PLAN, 1), tmp_path)
    assert result.passed, (result.line(), result.missing, result.verdict, result.troubles)
