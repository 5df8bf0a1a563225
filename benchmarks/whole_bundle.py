"""An untrained model with the real encoder, saved as a bundle that a worker loads."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from adapters import backbone
from adapters.types import ModelConfig
from benchmarks import made_up
from benchmarks.made_up import DAY, START, Size
from export import bundle as bundles
from export import parity, to_onnx
from export.bundle import Bundle, EncoderEntry, Manifest, Window
from export.encoder import OnnxEncoder
from export.parity import Probe
from stream.config import Settings
from stream.message_types import Item


def save(folder: Path, known: list[Item], size: Size, settings: Settings) -> Path:
    """The bundle's folder; it knows the items of `known`."""
    files = to_onnx.cached(backbone.load())
    texts = parity.probe_texts([f"film number {n}" for n in range(12)])
    vectors = OnnxEncoder(files, device="cpu", threads=1).encode(texts)
    config = ModelConfig(actions=tuple(settings.messages.actions))
    meta, items = made_up.model(known, config, size.seed)
    manifest = Manifest(
        format_version=bundles.FORMAT_VERSION,
        name="made-up",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        window=Window(first=START - DAY, last=START, events=0, users=0, items=len(known)),
        config=config.to_dict(),
        actions={name: rule.model_dump() for name, rule in settings.messages.actions.items()},
        encoder=EncoderEntry(sha=files.sha, dim=files.dim, max_length=files.max_length),
        parity=parity.compare(vectors, vectors),
    )
    probe = Probe(texts=texts, vectors=vectors)
    bundle = Bundle(manifest=manifest, meta=meta, items=items, encoder=files, probe=probe)
    bundles.save(bundle, str(folder / "bundle"))
    return folder / "bundle"
