"""The folder of a worker or monitor: locked, with its id, without what is no longer its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from stream import log
from stream.errors import StateError

_log = log.get("state")

PARTITIONS = "partitions"
"""Folder of the stores, one folder a partition."""

UNOWNED_GRACE_S = 600.0


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an `OSError` about `path` into the error for the user."""
    try:
        yield
    except OSError as error:
        raise StateError(f"{path}: {error.strerror or error}") from None


class StateLock:
    """The lock on a state folder; held until `close` or the end of the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def close(self) -> None:
        """Let another worker have the folder."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def lock_state_dir(folder: Path, *, kind: str = "worker", flag: str = "--state-dir") -> StateLock:
    """Make the folder if need be and lock it. Raises `StateError` when another process has it.

    `kind` is what has such a folder, `flag` the option that names another.
    """
    path = folder / "lock"
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise StateError(
            f"{folder} is in use by another {kind}, process {owner}",
            remedy=f"Give every {kind} a folder of its own with {flag}.",
        ) from None
    with explained(path):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return StateLock(path, descriptor)


def worker_id(folder: Path, configured: str | None = None, *, kind: str = "worker") -> str:
    """The configured id, or the one kept in the folder, made at the first start."""
    if configured:
        return configured
    path = folder / f"{kind}-id"
    with explained(path):
        if path.exists() and (known := path.read_text().strip()):
            return known
        made = f"{kind}-{uuid.uuid4().hex[:12]}"
        draft = path.with_suffix(".new")
        draft.write_text(made + "\n")
        draft.replace(path)
    return made


def partition_dir(folder: Path, partition: int) -> Path:
    """Where the store of a partition lies."""
    return folder / PARTITIONS / str(partition)


class UnownedStores:
    """Removes the folders of partitions that this worker has not owned for ten minutes.

    The time counts from when this process first saw that a partition is not its own: after a
    restart nothing goes before partitions had the time to come back.
    """

    def __init__(
        self,
        folder: Path,
        grace_s: float = UNOWNED_GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder / PARTITIONS
        self._grace_s = grace_s
        self._clock = clock
        self._since: dict[str, float] = {}

    def sweep(self, owned: Collection[int]) -> list[int]:
        """Remove what is due, given the partitions owned now; returns the partitions removed."""
        mine = {str(partition) for partition in owned}
        found = {p.name for p in self._folder.glob("*") if p.name.isdecimal()}
        now = self._clock()
        self._since = {name: self._since.get(name, now) for name in found - mine}
        due = [name for name, since in self._since.items() if now - since >= self._grace_s]
        for name in due:
            shutil.rmtree(self._folder / name, ignore_errors=True)
        if due:
            _log.info("removed", partitions=sorted(map(int, due)), why="no longer owned")
        return sorted(map(int, due))
