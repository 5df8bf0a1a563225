"""A bundle with made-up content, for tests of what becomes of bundles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from adapters.experts import Prior
from adapters.types import Meta, ModelConfig
from export import bundle as bundles
from export.bundle import Bundle, EncoderEntry, Manifest, Window
from export.bundle_tensors import Items
from export.encoder import EncoderFiles
from export.parity import Parity, Probe

CONFIG = ModelConfig(actions=("click", "rating"), neighbours=4)


def items(n: int = 3) -> Items:
    """Items whose columns all differ."""
    rng = np.random.default_rng(1)
    return Items(
        ids=tuple(f"ítem-{i}" for i in range(n)),
        content=rng.integers(1, 2**63, n).astype(np.uint64) * np.uint64(2),
        text=rng.normal(size=(n, 6)).astype(np.float16),
        attributes=rng.integers(-1, 9, (n, 5)),
        id_rows=np.arange(n) - 1,
        prior=Prior(
            1e9,
            rng.random((n, 3)).astype(np.float32),
            rng.integers(-1, n, (n, 4)),
            rng.random((n, 4)).astype(np.float32),
            rng.normal(size=(n, 2)).astype(np.float32),
        ),
        dense=rng.normal(size=(n, 2)).astype(np.float16),
        dense_field="image_embedding",
    )


def unsaved(folder: Path) -> Bundle:
    """A bundle that has not been saved yet; its encoder lies in `folder`."""
    source = folder / "source"
    source.mkdir()
    (source / "encoder.onnx").write_bytes(b"graph" * 999)
    (source / "tokenizer.json").write_text("{}")
    manifest = Manifest(
        format_version=bundles.FORMAT_VERSION,
        name="films",
        created="2026-11-03T12:00:00+00:00",
        window=Window(first=0.0, last=9.5, events=10, users=4, items=3),
        config=CONFIG.to_dict(),
        actions={"click": {"weight": 1.0}},
        encoder=EncoderEntry(sha="ab", dim=6, max_length=64),
        parity=Parity(max_difference=3e-7, mean_difference=1e-8, agreement=1.0, k=10, probes=9),
        metrics={"ndcg": 0.1},
    )
    return Bundle(
        manifest=manifest,
        meta=Meta(CONFIG, {"step_scale": torch.ones(()), "W": torch.arange(6.0).view(2, 3).T}),
        items=items(),
        encoder=EncoderFiles(
            model=source / "encoder.onnx",
            tokenizer=source / "tokenizer.json",
            max_length=64,
            dim=6,
            sha="ab",
        ),
        probe=Probe(texts=("a", "bé"), vectors=np.eye(2, dtype=np.float32)),
    )
