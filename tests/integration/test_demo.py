"""`innerloop demo` as a user runs it: in a process of its own, without a terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stream.config import Kafka
from stream.kafka.admin import Admin

PATIENCE_S = 240


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both runs keep the model: the second one is warm."""
    return tmp_path_factory.mktemp("demo")


def start(broker: str, folder: Path) -> subprocess.Popen[str]:
    """The demo with little training, on the session's broker."""
    return subprocess.Popen(
        [sys.executable, "-m", "stream", "demo", "--budget", "2s", "--dir", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "KAFKA_BOOTSTRAP_SERVERS": broker, "OMP_NUM_THREADS": "1"},
    )


def gone(pid: int) -> bool:
    """Whether the process has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()


def demo_topics(broker: str) -> list[str]:
    """What the demo left on the broker."""
    with Admin(Kafka(bootstrap_servers=broker)) as admin:
        return [name for name in admin.cluster().partitions if name.startswith("demo-")]


@pytest.mark.timeout(PATIENCE_S + 30)
def test_the_demo_shows_everything_and_leaves_nothing(broker: str, folder: Path) -> None:
    """All acts are played, every check holds, topics and worker are gone, the exit code is 0."""
    process = start(broker, folder)
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    for act in range(1, 7):
        assert re.search(rf"^{act}  [A-Z]", said, re.MULTILINE)
    assert "All of it happened." in said
    assert "5 of 5 hold" in said
    assert "\033" not in said
    worker = int(re.findall(r"innerloop worker is process (\d+)", said)[0])
    assert gone(worker)
    assert within(10, lambda: not demo_topics(broker))


def test_ctrl_c_ends_everything(broker: str, folder: Path) -> None:
    """Interrupted in the middle of the traffic, with a model from the run before."""
    process = start(broker, folder)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if "Replaying" in line:
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert "in an earlier run" in said
    assert gone(int(re.findall(r"innerloop worker is process (\d+)", said)[0]))
    assert within(10, lambda: not demo_topics(broker))
