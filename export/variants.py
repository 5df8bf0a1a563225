"""What can be made of an encoder: one name, one recipe, one kind of limits."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.backbone import Backbone
from export import prune, quantize, to_onnx
from export.encoder import EncoderFiles
from export.errors import BundleRefused
from export.parity import FP32
from export.prune import Recovered, Recovery, Shape

CALIBRATION = 512
"""Texts whose ranges are looked at."""

Graph = Callable[[EncoderFiles, Path, Sequence[str]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A way to make an encoder smaller or faster."""

    name: str
    kind: str  # whose limits of parity hold
    graph: Graph | None = None  # from the fp32 file; None = as training exported it
    shape: Shape | None = None  # what pruning leaves; None = everything


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A variant's files."""

    variant: Variant
    files: EncoderFiles
    recovered: Recovered | None = None  # of a pruned one


def _fused(source: EncoderFiles, target: Path, texts: Sequence[str]) -> None:
    quantize.fused(source.model, target)


def _half(source: EncoderFiles, target: Path, texts: Sequence[str]) -> None:
    quantize.half(source.model, target)


def _dynamic(source: EncoderFiles, target: Path, texts: Sequence[str]) -> None:
    quantize.dynamic(source.model, target)


def _channels(source: EncoderFiles, target: Path, texts: Sequence[str]) -> None:
    quantize.dynamic(source.model, target, per_channel=True)


def _reduced(source: EncoderFiles, target: Path, texts: Sequence[str]) -> None:
    quantize.dynamic(source.model, target, per_channel=True, reduce_range=True)


def _static(source: EncoderFiles, target: Path, texts: Sequence[str]) -> None:
    quantize.static(source.model, target, quantize.feeds(source, spread(texts, CALIBRATION)))


def _blocks(source: EncoderFiles, target: Path, texts: Sequence[str]) -> None:
    quantize.by_blocks(source.model, target)


def _tokens(source: EncoderFiles, target: Path, texts: Sequence[str]) -> None:
    quantize.by_token(source.model, target, quantize.feeds(source, spread(texts, CALIBRATION)))


def _pruned(shape: Shape) -> tuple[Variant, Variant]:
    """In fp32, and in 8 bits as well."""
    name = f"layers-{shape.layers}" if shape.layers is not None else f"heads-{shape.heads}"
    return (
        Variant(name=name, kind="pruned", graph=_fused, shape=shape),
        Variant(name=f"{name}-int8", kind="pruned-int8", graph=_tokens, shape=shape),
    )


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(name=FP32, kind=FP32),
        Variant(name="fused", kind=FP32, graph=_fused),
        Variant(name="fp16", kind="fp16", graph=_half),
        Variant(name="int8", kind="int8", graph=_dynamic),
        Variant(name="int8-channels", kind="int8", graph=_channels),
        Variant(name="int8-reduced", kind="int8", graph=_reduced),
        Variant(name="int8-static", kind="int8", graph=_static),
        Variant(name="int8-blocks", kind="int8", graph=_blocks),
        Variant(name="int8-tokens", kind="int8", graph=_tokens),
        *_pruned(Shape(layers=4)),
        *_pruned(Shape(layers=3)),
        *_pruned(Shape(heads=8)),
        *_pruned(Shape(heads=6)),
    )
}
"""By name. The reduced, static and plain ones are there to be compared with."""

QUICK = tuple(name for name, variant in VARIANTS.items() if variant.shape is None)
"""Those that need no training."""


class Workshop:
    """Makes variants of one encoder in a folder; pruned ones of one shape share their recovery."""

    def __init__(
        self,
        bert: Backbone,
        source: EncoderFiles,
        texts: Sequence[str],
        folder: Path,
        recovery: Recovery | None = None,
    ) -> None:
        """`texts` calibrate and teach; `source` is the fp32 export of `bert`."""
        self._bert, self._source = bert, source
        self._texts, self._folder = texts, folder
        self._recovery = recovery
        self._pruned: dict[Shape, tuple[EncoderFiles, Recovered]] = {}

    def make(self, variant: Variant, progress: prune.Progress = lambda share, note: None) -> Made:
        """The variant's files. Raises `BundleRefused` where the encoder has too little to prune."""
        source, recovered = self._source, None
        if variant.shape is not None:
            source, recovered = self._taught(variant.shape, progress)
        if variant.graph is None:
            return Made(variant=variant, files=source)
        target = self._folder / f"{variant.name}.onnx"
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            made = Path(name) / "made.onnx"
            variant.graph(source, made, self._texts)
            made.rename(target)
        files = replace(source, model=target, kind=variant.kind, sha=digest(target, self._source))
        return Made(variant=variant, files=files, recovered=recovered)

    def _taught(self, shape: Shape, progress: prune.Progress) -> tuple[EncoderFiles, Recovered]:
        if shape not in self._pruned:
            self._pruned[shape] = self._teach(shape, progress)
        return self._pruned[shape]

    def _teach(self, shape: Shape, progress: prune.Progress) -> tuple[EncoderFiles, Recovered]:
        try:
            small = prune.shrink(self._bert, shape, spread(self._texts, CALIBRATION // 4))
        except ValueError as error:
            raise BundleRefused(
                f"the encoder cannot be pruned to {error}",
                remedy="Leave the pruned variants out of --variants.",
            ) from None
        wanted = prune.vectors_of(self._bert, self._texts)
        recovered = prune.recover(small, self._texts, wanted, self._recovery, progress)
        target = self._folder / f"pruned-{len(self._pruned)}.onnx"
        to_onnx.export(recovered.bert, target)
        return replace(self._source, model=target), recovered


def spread(texts: Sequence[str], count: int) -> Sequence[str]:
    """At most `count` texts, evenly from all of them."""
    return texts[:: max(1, len(texts) // count)][:count]


def digest(model: Path, source: EncoderFiles) -> str:
    """Hex digest of what the vectors depend on: the graph, and the tokenizer as before."""
    own = hashlib.sha256(source.sha.encode())
    with model.open("rb") as file:
        own.update(hashlib.file_digest(file, "sha256").digest())
    return own.hexdigest()
