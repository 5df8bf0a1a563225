"""The trained backbone as ONNX: dynamic batch and sequence, pooling inside the graph."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import platformdirs
import torch

from adapters.backbone import Backbone, load
from export.encoder import MODEL_FILE, TOKENIZER_FILE, EncoderFiles
from export.graph import Sizes, note_sizes

_RECIPE = 2  # part of the cache key: raise it when the graph changes
_INFO_FILE = "encoder.json"
_TALKERS = ("torch.onnx", "onnxscript", "onnx_ir")


def export(backbone: Backbone, path: Path) -> None:
    """Write the encoder to `path`: inputs input_ids and attention_mask [n, l] int64, one output.

    The output is `vectors` [n, D] float32, pooled and normalised as the backbone does it. What
    the graph does not show, such as the number of heads, is noted in the file's metadata, so that
    a bundle is enough to make variants of its encoder.
    """
    ids = torch.tensor([[1, 2, 3, 4], [1, 4, 0, 0]])
    dynamic = {0: "batch", 1: "sequence"}
    with _quiet():
        torch.onnx.export(
            backbone.module,
            (ids, (ids > 0).long()),
            path,
            dynamo=True,
            input_names=["input_ids", "attention_mask"],
            output_names=["vectors"],
            dynamic_shapes={"input_ids": dynamic, "attention_mask": dynamic},
            external_data=False,
            verbose=False,
        )
    model = onnx.load(path)
    note_sizes(model, Sizes.of(backbone.module))
    onnx.save(model, path)


def cached(backbone: Backbone, cache: Path | None = None) -> EncoderFiles:
    """The exported encoder from the cache, exported first where it is not there or damaged.

    The key is the backbone's digest; an entry is written under a temporary name and renamed.
    """
    cache = cache or platformdirs.user_cache_path("innerloop") / "encoders"
    folder = cache / f"{backbone.sha[:32]}-{_RECIPE}"
    if not _intact(folder):
        _fill(backbone, folder)
    return EncoderFiles(
        model=folder / MODEL_FILE,
        tokenizer=folder / TOKENIZER_FILE,
        max_length=backbone.max_length,
        dim=backbone.dim,
        sha=backbone.sha,
    )


def _fill(backbone: Backbone, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as name:
        made = Path(name) / "entry"
        made.mkdir()
        export(backbone, made / MODEL_FILE)
        shutil.copyfile(backbone.tokenizer_file, made / TOKENIZER_FILE)
        (made / _INFO_FILE).write_text(json.dumps(_digests(made)), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        try:
            made.rename(folder)
        except OSError:
            if not _intact(folder):  # unless another process was faster
                raise


def _intact(folder: Path) -> bool:
    try:
        expected = json.loads((folder / _INFO_FILE).read_text(encoding="utf-8"))
        return bool(expected == _digests(folder))
    except (OSError, ValueError):
        return False


def _digests(folder: Path) -> dict[str, str]:
    result = {}
    for name in (MODEL_FILE, TOKENIZER_FILE):
        with (folder / name).open("rb") as file:
            result[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return result


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells every step and optional package; its errors are raised all the same."""
    levels = {logger: logger.level for logger in map(logging.getLogger, _TALKERS)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def main() -> None:
    """Export the packaged backbone into the cache: part of an installation, done once."""
    cached(load())


if __name__ == "__main__":
    main()
