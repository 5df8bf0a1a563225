"""Documents, locks and the Makefile say what is true of the code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from stream.config_docs import render, settings
from stream.metrics import Metrics
from stream.monitor.metrics import MonitorMetrics

ROOT = Path(__file__).parents[2]
LOCKS = ("bootstrap", "dev", "runtime")


def pins(lock: str) -> dict[str, str]:
    """Requirement (with its marker) and hashes of every package of a lock."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    blocks = re.findall(r"^(\S+==[^\\\n]+?) \\\n((?:    --hash=.+\n)+)", text, re.M)
    return {requirement: hashes.replace("\\", "") for requirement, hashes in blocks}


def test_configuration_is_up_to_date() -> None:
    """docs/configuration.md holds the settings as they are; `make docs` writes them."""
    text = (ROOT / "docs/configuration.md").read_text()
    assert render(text) == text, "run `make docs`"


def test_every_setting_is_explained() -> None:
    """No setting is without a meaning."""
    assert [name for name, field in settings().items() if not field.description] == []


def test_every_metric_is_in_operations() -> None:
    """docs/operations.md lists exactly the metrics of worker and monitor, with their types."""
    text = (ROOT / "docs/operations.md").read_text()
    listed = set(re.findall(r"^\| `(innerloop_\w+)` \| (counter|gauge|histogram) \|", text, re.M))
    families = [*Metrics().registry.collect(), *MonitorMetrics().registry.collect()]
    assert listed == {(f.name + "_total" * (f.type == "counter"), f.type) for f in families}


def test_metrics_in_the_text_exist() -> None:
    """A metric that the text advises to look at is one of the table."""
    text = (ROOT / "docs/operations.md").read_text()
    table = set(re.findall(r"^\| `(innerloop_\w+)`", text, re.M))
    assert set(re.findall(r"`(innerloop_\w+)`", text)) <= table


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_have_hashes_and_no_addresses(lock: str) -> None:
    """Every package is pinned with hashes, and no lock says where it was found."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    assert "://" not in text
    assert len(pins(lock)) == len(re.findall(r"^[a-z0-9]", text, re.M)) > 0


@pytest.mark.parametrize("lock", ["bootstrap", "runtime"])
def test_locks_agree(lock: str) -> None:
    """What is tested is what is shipped: both locks pin the same versions."""
    dev = {requirement.split(" ;")[0] for requirement in pins("dev")}
    rest = {requirement.split(" ;")[0] for requirement in pins(lock)} - dev
    assert {requirement.split("==")[0] for requirement in rest} <= {"uv"}


def test_the_gpu_wheel_is_for_linux_on_x86_64() -> None:
    """The runtime lock takes onnxruntime-gpu where its wheel exists and onnxruntime elsewhere."""
    marked = dict(r.split(" ; ") for r in pins("runtime") if r.startswith("onnxruntime"))
    gpu, other = (
        next(m for r, m in marked.items() if r.startswith(n))
        for n in ("onnxruntime-gpu==", "onnxruntime==")
    )
    assert gpu == "platform_machine == 'x86_64' and sys_platform == 'linux'"
    assert other == "platform_machine != 'x86_64' or sys_platform != 'linux'"


def test_help_lists_the_targets() -> None:
    """`make help` names every target that is meant to be called."""
    text = (ROOT / "Makefile").read_text()
    result = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    phony = re.findall(r"^\.PHONY: (.+)", text, re.M)[0].split()
    assert re.findall(r"^make (\w+) +\S", result.stdout, re.M) == phony
