"""A training by several processes is that of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters import episodes
from adapters.episodes import Draw
from adapters.team import ALONE, Team
from tests.model import team_run
from tests.model.test_meta_train import planted

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[float]]]:
    """What two processes found, each in its own words."""
    folder = tmp_path_factory.mktemp("team")
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [sys.executable, "-m", *torchrun, "-m", "tests.model.team_run", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_have_the_loss_curve_of_one(both: list[dict[str, list[float]]]) -> None:
    """Every loss, every check and the weights agree up to the rounding of sums."""
    alone = team_run.run(ALONE)
    assert len(both[0]["losses"]) == team_run.STEPS
    assert len(alone["checks"]) == 4
    for name in alone:
        np.testing.assert_allclose(both[0][name], alone[name], rtol=2e-3, atol=1e-4)


def test_both_processes_hold_the_same_model(both: list[dict[str, list[float]]]) -> None:
    """Not a bit differs, or they would drift apart."""
    assert both[0] == both[1]


def test_shares_are_the_batch() -> None:
    """Every episode is in one process's share, those of a short batch in that of the first."""
    histories, draw = episodes.group(planted()), Draw(batch=5, windows=(10, 20))
    chances, rng = episodes.anchors(histories, draw), np.random.default_rng(0)
    batch = episodes.sample(histories, draw, chances, rng)
    parts = [Team(rank, 2).share(batch) for rank in (0, 1)]
    both = torch.cat([part.targets for part in parts])
    order = [*range(0, len(batch.targets), 2), *range(1, len(batch.targets), 2)]
    assert torch.equal(both, batch.targets[order])
    assert torch.equal(parts[1].block.items, batch.block.items[1::2])
    assert ALONE.share(batch) is batch
