"""The demo's model: trained on the first part of the log, and kept for the next time."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

import xxhash
from pydantic import BaseModel

from export.bundle import Bundle
from stream import bundles, training
from stream.config import Settings
from stream.errors import BundleError
from stream.loading import SHIPPED
from stream.progress import Reporter

OUTER_SHARE = 0.6
"""Of the budget; the rest is about what the fit of the experts takes."""

_SOURCES = (
    "adapters",
    "export",
    "stream/training.py",
    "stream/training_bundle.py",
    "stream/training_text.py",
    "stream/item_content.py",
)


def key(cut: float, budget_s: float) -> str:
    """Names what a model depends on: data, budget, where the log is cut, and the code."""
    digest = xxhash.xxh3_128(f"{cut} {budget_s}".encode())
    root = Path(str(files("stream"))).parent
    data = root / "stream" / "data" / "movietweetings"
    for path in (*_python_files(root), *sorted(data.glob("*.dat"))):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def cached(folder: Path) -> Bundle | None:
    """The bundle in this folder, None where there is none or it is damaged."""
    if not folder.is_dir():
        return None
    try:
        return bundles.load(str(folder))
    except BundleError:
        shutil.rmtree(folder, ignore_errors=True)
        return None


def train(
    folder: Path, settings: Settings, cut: float, budget_s: float, reporter: Reporter
) -> Bundle:
    """Meta-train on the shipped log before `cut` (unix seconds) and save the bundle in `folder`.

    The live traffic that follows is the evaluation.
    """
    request = training.Request(
        events=[SHIPPED],
        items=[SHIPPED],
        out=str(folder),
        settings=settings,
        name="demo",
        budget_s=budget_s * OUTER_SHARE,
        until=cut,
        report=False,
    )
    return training.train(request, reporter).bundle


def beside(folder: Path, name: str, *settings: BaseModel) -> Path:
    """A file for what follows from the model in `folder` and from `settings`."""
    told = "".join(each.model_dump_json() for each in settings)
    return folder.with_name(f"{folder.name}.{name}-{xxhash.xxh3_64_hexdigest(told.encode())}")


def forget_others(folder: Path) -> None:
    """Remove models of the demo that were trained on other code, data or budgets."""
    for other in folder.parent.iterdir():
        if other.is_dir() and other != folder:
            shutil.rmtree(other, ignore_errors=True)
        elif not other.name.startswith(folder.name):
            other.unlink(missing_ok=True)


def _python_files(root: Path) -> Iterable[Path]:
    for source in _SOURCES:
        path = root / source
        yield from [path] if path.is_file() else sorted(path.glob("*.py"))
