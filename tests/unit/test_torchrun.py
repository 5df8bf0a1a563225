"""`innerloop train` in two processes: one model, one folder, the curve of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stream import bundles, training
from stream.commands import train
from stream.errors import ConfigError
from stream.processes import joined
from tests.unit.small_training import home_of, invoke

STEPS = 20
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same training in one process and in two."""
    folder = tmp_path_factory.mktemp("home")
    with home_of(folder, processes=True), training.one_thread():
        alone = invoke(train.app, *options(folder, "one"))
        assert alone.exit_code == 0, alone.output
        done = in_two(*options(folder, "two"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("saved ") == 1
        yield folder


def in_two(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node 2 -m stream train …`."""
    start = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "stream")
    command = [sys.executable, "-m", *start, "train", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=dict(os.environ)
    )


def options(home: Path, out: str) -> list[str]:
    """What to train on: a fixed number of small steps."""
    return [
        *("--events", str(home / "events.jsonl"), "--items", str(home / "items.jsonl")),
        *("--out", str(home / out), "--backbone", str(home / "bert"), "--runs", str(home / "runs")),
        *("--name", out, "--set", f"learning.steps={STEPS}", "--set", "learning.batch=16"),
    ]


def run_of(home: Path, name: str) -> Path:
    """The one folder of the run with this name."""
    (folder,) = (home / "runs").glob(f"{name}-*")
    return folder


def curve(folder: Path) -> list[float]:
    """The loss of every step."""
    found = EventAccumulator(str(folder)).Reload()
    return [point.value for point in found.Scalars("loss/total")]


def test_the_loss_curve_is_that_of_one_process(home: Path) -> None:
    """Loss for loss, and so the model that comes out."""
    one, two = (curve(run_of(home, name)) for name in ("one", "two"))
    assert len(two) == STEPS
    assert two == pytest.approx(one, rel=2e-3)
    mine, other = (bundles.load(str(home / name)).meta for name in ("one", "two"))
    torch.testing.assert_close(mine["adapter.write"], other["adapter.write"], rtol=0.02, atol=5e-3)


def test_one_process_writes(home: Path) -> None:
    """There is one folder with one file of curves, and it says how many took part."""
    folder = run_of(home, "two")
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    assert json.loads((folder / "metrics.json").read_text())["processes"] == 2


def test_a_run_of_two_goes_on_in_one(home: Path) -> None:
    """A checkpoint knows nothing of how many processes wrote it."""
    again = invoke(train.app, *options(home, "two"), "--resume", run_of(home, "two"))
    assert again.exit_code == 0, again.output


def test_a_mistake_is_said_by_the_first_and_ends_both(home: Path) -> None:
    """The line that names the file comes once; the other process does not wait for ever."""
    done = in_two(*options(home, "none"), "--events", str(home / "missing.jsonl"))
    assert done.returncode != 0
    assert done.stderr.count("missing.jsonl: No such file") == 1
    assert "[rank1]: Traceback" not in done.stderr
    assert not (home / "none").exists()


@pytest.mark.parametrize("given", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two", "RANK": "0"}])
def test_half_a_torchrun_is_refused(given: dict[str, str]) -> None:
    """Variables that are left over are named, with how to start several processes."""
    with (
        pytest.raises(ConfigError, match=r"RANK.*torchrun --nproc-per-node"),
        joined("cpu", given),
    ):
        pass
