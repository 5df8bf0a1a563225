"""A training that is killed goes on from its last checkpoint to the same model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stream import bundles, run_folder, training
from stream.commands import train
from stream.run_folder import CHECKPOINT
from tests.unit.small_training import home_of, invoke, said

STEPS = 40
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data, a small BERT and a cache, which a process of its own finds too; one thread."""
    folder = tmp_path_factory.mktemp("home")
    with home_of(folder, processes=True), training.one_thread():
        yield folder


def options(home: Path, out: str) -> list[str]:
    """What to train on: a fixed number of small steps."""
    return [
        *("--events", str(home / "events.jsonl"), "--items", str(home / "items.jsonl")),
        *("--out", str(home / out), "--backbone", str(home / "bert"), "--runs", str(home / "runs")),
        *("--name", out, "--seed", "3", "--set", f"learning.steps={STEPS}"),
        *("--set", "learning.averaging=0.9", "--set", "learning.batch=16"),
    ]


def the_run(home: Path, name: str) -> Path:
    """The folder of the run with this name."""
    (folder,) = (home / "runs").glob(f"{name}-*")
    return folder


def steps_kept(home: Path, name: str) -> int:
    """The step of the last checkpoint, 0 where there is none yet."""
    for folder in (home / "runs").glob(f"{name}-*"):
        if (folder / CHECKPOINT).exists():
            return int(run_folder.read_checkpoint(folder / CHECKPOINT).facts["step"])
    return 0


@pytest.fixture(scope="module")
def whole(home: Path) -> dict[str, torch.Tensor]:
    """The model of a run that nothing disturbs."""
    result = invoke(train.app, *options(home, "whole"))
    assert result.exit_code == 0, result.output
    return bundles.load(str(home / "whole")).meta.tensors


@pytest.fixture(scope="module")
def killed(home: Path, whole: object) -> Path:
    """The folder of a run whose process was killed in the middle of the outer loop."""
    every_step = ("--set", "learning.checkpoint_s=0")
    command = [sys.executable, "-m", "stream", "train", *options(home, "killed"), *every_step]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, env=dict(os.environ))
    while steps_kept(home, "killed") < 5:
        assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()
    assert process.returncode < 0
    assert 5 <= steps_kept(home, "killed") < STEPS
    return the_run(home, "killed")


def test_a_killed_run_ends_with_the_same_model(
    home: Path, whole: dict[str, torch.Tensor], killed: Path
) -> None:
    """After SIGKILL and --resume every weight is that of a run that was never broken off."""
    assert not (killed / "metrics.json").exists()
    resumed = invoke(train.app, *options(home, "killed"), "--resume", killed)
    assert resumed.exit_code == 0, resumed.output
    mine = bundles.load(str(home / "killed")).meta.tensors
    assert mine.keys() == whole.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], whole[name], rtol=1e-4, atol=1e-5)
    figures = json.loads((killed / "metrics.json").read_text())
    assert figures["training"]["steps"] == STEPS
    assert the_run(home, "killed") == killed


def test_a_run_that_ended_is_not_trained_again(home: Path, killed: Path) -> None:
    """Resumed once more, it goes on behind the outer loop."""
    before = run_folder.read_checkpoint(killed / CHECKPOINT)
    again = invoke(train.app, *options(home, "killed"), "--resume", killed)
    assert again.exit_code == 0, again.output
    after = run_folder.read_checkpoint(killed / CHECKPOINT)
    assert before.facts["step"] == after.facts["step"] == STEPS
    assert before.tensors.keys() == after.tensors.keys()
    assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--seed", "4"), "seed was 3, now it is 4"),
        (("--set", "learning.batch=8"), "learning.batch was 16, now it is 8"),
        (("--budget", "9s"), "budget_s was unset, now it is 9.0"),
        (("--until", "2014-05-20T00:00:00Z"), "last was 2014-05-2"),
    ],
)
def test_another_run_is_refused(
    home: Path, killed: Path, more: tuple[str, ...], message: str
) -> None:
    """Another seed, other settings or other data are one clear line; the run stays as it was."""
    before = (killed / CHECKPOINT).stat()
    result = invoke(train.app, *options(home, "killed"), "--resume", killed, *more)
    assert message in str(said(result))
    assert "without --resume" in str(said(result))
    assert (killed / CHECKPOINT).stat() == before


def test_a_folder_that_is_no_run_is_refused(home: Path) -> None:
    """The mistake is seen before anything is read."""
    result = invoke(train.app, *options(home, "other"), "--resume", home)
    assert f"{home} is no folder of a run" in str(said(result))
    assert not (home / "other").exists()
