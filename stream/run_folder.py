"""The folder of a training run: what it ran on, with which settings, its figures, its checkpoints.

    config.yaml                     the settings, as `load` reads them
    run.json                        data, window, seed, parent
    items.jsonl.gz                  the items, of a run from Kafka
    metrics.json                    figures, seconds of every phase, memory; written at the end
    events.out.tfevents.*           curves
    checkpoints/last.safetensors    the outer loop between two steps
    pretrained, tuned               backbones with weights of this run, as `--backbone` reads them
    pretrained.json                 whether pretraining helped, so that it is done once
    cache                           their exports and vectors

A checkpoint is one file, written under a temporary name and renamed: a run that is killed at any
moment leaves the checkpoint before or the one after, whole.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import platformdirs
import yaml
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from adapters.outer_loop import Moment, Snapshot
from stream import config
from stream.errors import ResumeError

CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.json"
CHECKPOINT = Path("checkpoints") / "last.safetensors"

_FACTS = "facts"  # of a checkpoint: its metadata, as JSON
_SOURCES = ("events", "items")  # files may have moved
_FREE = ("learning.checkpoint_s", "parent.bundle")  # may differ when a run is resumed
_SPARING = 20
"""A better model is kept at once where that costs less than a twentieth of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a run depends on beside its settings; a run is resumed with the same alone."""

    name: str
    events: list[str]
    items: list[str]
    seed: int
    budget_s: float | None
    first: str  # RFC 3339: event times of the data window, both ends included
    last: str
    interactions: int
    users: int
    catalogue: int  # items
    data_digest: str  # of all events, items and vectors
    window: dict[str, Any] | None = None  # offsets of a run from Kafka; see `stream.window`
    parent: dict[str, str] | None = None  # version and bundle of the model that it goes on from


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path, snapshot: Snapshot | None = None) -> None:
        self.path = path
        self.snapshot = snapshot  # where the run goes on
        self._every_s = config.Learning().checkpoint_s
        self._written_at = time.monotonic()
        self._cost_s = 0.0

    @property
    def step(self) -> int:
        """The outer step after which the run goes on, 0 at the beginning."""
        return 0 if self.snapshot is None else int(self.snapshot.facts["step"])

    @property
    def begun(self) -> bool:
        """Whether the run has begun before."""
        return (self.path / RUN_FILE).exists()

    def before(self, name: str) -> Any:
        """What `run.json` says about a run that goes on; None where it begins."""
        path = self.path / RUN_FILE
        return json.loads(path.read_text(encoding="utf-8")).get(name) if self.begun else None

    @contextmanager
    def unless_begun(self) -> Iterator[None]:
        """Remove the folder after an error before `begin`: nothing was run that could go on."""
        try:
            yield
        except BaseException:
            if not self.begun:
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    def begin(self, about: About, settings: config.Settings) -> None:
        """Note what the run depends on, or compare it with what it depended on before.

        Raises `ResumeError` when a run goes on with other data, settings or another seed.
        """
        self._every_s = settings.learning.checkpoint_s
        if self.begun:
            self._compare(about, settings)
            return
        _write(self.path / CONFIG_FILE, config.to_yaml(settings))
        _write(self.path / RUN_FILE, json.dumps(asdict(about), indent=2, ensure_ascii=False))

    def keep(self, moment: Moment, take: Callable[[], Snapshot]) -> None:
        """Write a checkpoint where one is due: the loop offers one after every step."""
        began = time.monotonic()
        since = began - self._written_at
        better = moment == "better" and since >= _SPARING * self._cost_s
        if moment == "end" or better or since >= self._every_s:
            write_checkpoint(self.path / CHECKPOINT, take())
            self._written_at = time.monotonic()
            self._cost_s = self._written_at - began

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write the figures."""
        _write(self.path / METRICS_FILE, json.dumps(metrics, indent=2))

    def _compare(self, about: About, settings: config.Settings) -> None:
        before = json.loads((self.path / RUN_FILE).read_text(encoding="utf-8"))
        used = yaml.safe_load((self.path / CONFIG_FILE).read_text(encoding="utf-8"))
        kept, now = _facts(before, used), _facts(asdict(about), settings.model_dump(mode="json"))
        for name in {**kept, **now}:
            if kept.get(name) != now.get(name):
                raise ResumeError(
                    f"{self.path}: {name} was {_said(kept.get(name))}, now it is "
                    f"{_said(now.get(name))}"
                )


def create(root: Path | None, name: str) -> RunFolder:
    """A new folder in `root`, without it among the user's data."""
    parent = root or platformdirs.user_data_path("innerloop") / "runs"
    began = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    for number in itertools.count(1):  # several runs may begin within a second
        path = parent / (f"{name}-{began}" if number == 1 else f"{name}-{began}-{number}")
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    return RunFolder(path)


def resume(path: Path) -> RunFolder:
    """The folder of a run that was broken off. Raises `ResumeError` where it is none."""
    if not (path / RUN_FILE).is_file():
        raise ResumeError(
            f"{path} is no folder of a run that has begun to train",
            remedy="Name the folder that the run printed, or train anew without --resume.",
        )
    file = path / CHECKPOINT
    return RunFolder(path, read_checkpoint(file) if file.exists() else None)


def write_checkpoint(path: Path, snapshot: Snapshot) -> None:
    """Replace the checkpoint at once or not at all. Raises `OSError`."""
    path.parent.mkdir(exist_ok=True)
    draft = path.with_suffix(".new")
    tensors = {name: tensor.cpu().contiguous() for name, tensor in snapshot.tensors.items()}
    try:
        save_file(tensors, draft, metadata={_FACTS: json.dumps(snapshot.facts)})
    except SafetensorError as error:  # such as a full disk
        raise OSError(f"{draft}: {error}") from None
    _sync(draft)
    draft.replace(path)
    _sync(path.parent)


def read_checkpoint(path: Path) -> Snapshot:
    """The inverse of `write_checkpoint`, also while a run replaces the file. Raises `ResumeError`.

    It is read once: `safe_open` opens it twice, and may find the header of one file and the
    tensors of the next. The header is JSON, its length before it in 8 bytes (safetensors' format).
    """
    try:
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return Snapshot(load(content), json.loads(header["__metadata__"][_FACTS]))
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise ResumeError(
            f"{path} cannot be read: {error}", remedy="Train anew without --resume."
        ) from None


def _facts(about: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, object]:
    """What has to be the same when a run is resumed, by dotted names."""
    parts = {section: settings.get(section, {}) for section in ("learning", "messages")}
    found = {"ranking.exclude_seen": settings["ranking"]["exclude_seen"], **_flat(parts)}
    found |= _flat({name: value for name, value in about.items() if name not in _SOURCES})
    return {name: value for name, value in found.items() if name not in _FREE}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


def _said(value: object) -> str:
    return "unset" if value is None else str(value)


def _write(path: Path, text: str) -> None:
    """The whole file or none."""
    draft = path.with_suffix(".new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _sync(path: Path) -> None:
    """Have the disk keep a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
