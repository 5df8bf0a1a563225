"""What RocksDB's errors mean: full disk, lost rights, locked, or corrupt and to be wiped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stream import log
from stream.errors import StateError
from stream.state_dir import explained

_log = log.get("store")

_CORRUPT = ("Corruption", "Invalid argument", "No such file")
"""What RocksDB says of files that are damaged, missing or of another make."""


class Corrupt(StateError):
    """The store is corrupt. Start the worker again: it wipes the store and restores it."""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what RocksDB raises, which is bare `Exception`, into the error for the user."""
    try:
        with explained(path):
            yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise _explained(path, str(error)) from None


def _explained(path: Path, message: str) -> StateError:
    text = " ".join(message.split())
    if "No space left" in text or "Disk quota" in text:
        return StateError(
            f"no space left for {path}", remedy="Free space or name another --state-dir."
        )
    if "lock hold" in text or "While lock file" in text:
        return StateError(f"{path} is open elsewhere")
    if "Permission denied" in text or "Read-only file system" in text:
        return StateError(f"{path}: {text}", remedy="Make it writable for this user.")
    if "Too many open files" in text:
        return StateError(f"{path}: too many open files", remedy="Raise `ulimit -n`.")
    if any(sign in text for sign in _CORRUPT):
        return _condemn(path, text)
    return StateError(f"{path}: {text}")


def _condemn(path: Path, text: str) -> Corrupt:
    """Leave a note to wipe the store at the next start, if the disk still takes one."""
    try:
        _note(path).touch()
    except OSError as error:
        _log.warning("not condemned", path=str(path), why=str(error))
    return Corrupt(f"{path}: {text}")


def wipe(path: Path, why: str) -> None:
    """Remove the database at `path`, with one log line."""
    _log.warning("wiped", path=str(path), why=why)
    remove(path)


def remove(path: Path) -> None:
    """Remove the database at `path` and the note that condemned it."""
    with explained(path):
        if path.exists():
            shutil.rmtree(path)
        _note(path).unlink(missing_ok=True)


def is_condemned(path: Path) -> bool:
    """Whether the database at `path` was found corrupt in an earlier run."""
    return _note(path).exists()


def _note(path: Path) -> Path:
    return path.parent / f"{path.name}.condemned"
