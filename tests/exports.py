"""Exports of small BERTs, each of which takes seconds: made once for all processes of a run."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

SHARED = "TESTS_ENCODERS"
"""Environment variable with the folder; the processes that pytest starts inherit it."""


def begin() -> bool:
    """Make the folder; False where another process of the run did."""
    if SHARED in os.environ:
        return False
    os.environ[SHARED] = tempfile.mkdtemp(prefix="encoders-")
    return True


def end() -> None:
    """Remove the folder."""
    shutil.rmtree(os.environ.pop(SHARED), ignore_errors=True)


def folder(otherwise: Path) -> Path:
    """The shared folder, or the other one outside of pytest."""
    return Path(os.environ.get(SHARED, otherwise))


def share(cache: Path) -> None:
    """Let what the product keeps in `cache` have the encoders of all tests."""
    cache.mkdir(parents=True)
    (cache / "encoders").symlink_to(folder(cache))
