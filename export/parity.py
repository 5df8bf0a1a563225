"""Does the exported encoder say what the trained one says? No bundle without a pass.

The question is asked twice. At export the encoder is held against the trained one, within limits
that depend on what was done to it: a quantised or pruned encoder is another one, and the limits
say how far it may go. Wherever the bundle is loaded, the encoder is held against its own vectors
of the same texts: kernels differ between processors, and one without 8-bit instructions may
saturate where another does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from export.errors import BundleRefused

Vectors = NDArray[np.float32]


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """How far apart two encoders are on the same texts."""

    max_difference: float
    mean_difference: float
    agreement: float  # share of each text's k nearest others that both name
    k: int
    probes: int
    mean_cosine: float | None = None  # of a text's two vectors; None = made before it was kept
    min_cosine: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What still counts as the same encoder."""

    max_difference: float = float("inf")
    agreement: float = 0.0
    mean_cosine: float = -1.0
    min_cosine: float = -1.0


FP32 = "fp32"
"""The kind of the encoder that training exports."""

EXPORTED: dict[str, Limits] = {
    FP32: Limits(max_difference=1e-4, agreement=0.99),
    "fp16": Limits(agreement=0.97, min_cosine=0.999),
    "int8": Limits(agreement=0.75, mean_cosine=0.98, min_cosine=0.9),
    "pruned": Limits(agreement=0.5, mean_cosine=0.9),
    "pruned-int8": Limits(agreement=0.5, mean_cosine=0.9),
}
"""By kind: how far an encoder may be from the trained one."""

LOADED: dict[str, Limits] = {
    FP32: Limits(agreement=0.97, min_cosine=0.9999),
    "fp16": Limits(agreement=0.95, min_cosine=0.999),
    "int8": Limits(agreement=0.9, mean_cosine=0.995),
    "pruned": Limits(agreement=0.97, min_cosine=0.9999),
    "pruned-int8": Limits(agreement=0.9, mean_cosine=0.995),
}
"""By kind: how far an encoder may be here from what it was where it was exported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Texts with vectors [P, D]: of the trained encoder, and of the bundle's where that differs."""

    texts: tuple[str, ...]
    vectors: Vectors
    own: Vectors | None = None  # of the bundle's encoder as exported; None = `vectors`


def probe_texts(texts: Sequence[str], size: int = 128, seed: int = 0) -> tuple[str, ...]:
    """At most `size` different texts, the shortest and the longest among them."""
    distinct = sorted({text for text in texts if text}, key=lambda text: (len(text), text))
    if len(distinct) <= size:
        return tuple(distinct)
    inner = np.random.default_rng(seed).choice(len(distinct) - 2, size - 2, replace=False) + 1
    return tuple(distinct[i] for i in [0, *sorted(inner.tolist()), len(distinct) - 1])


def compare(expected: Vectors, actual: Vectors, k: int = 10) -> Parity:
    """Figures for vectors [P, D] of the same P texts; needs at least two."""
    if expected.shape != actual.shape or len(expected) < 2:
        raise BundleRefused(f"parity needs two equal sets, got {expected.shape}, {actual.shape}")
    difference = np.abs(expected - actual)
    k = min(k, len(expected) - 1)
    cosines = (_unit(expected) * _unit(actual)).sum(1)
    return Parity(
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        agreement=_agreement(_nearest(expected, k), _nearest(actual, k)),
        k=k,
        probes=len(expected),
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
    )


def require(parity: Parity, kind: str = FP32) -> None:
    """Raise `BundleRefused` unless `parity` is within what `kind` may differ by; NaN never is."""
    if beyond := _beyond(parity, _limits(EXPORTED, kind)):
        raise BundleRefused(
            f"the exported encoder differs from the trained one: {beyond}",
            remedy="Delete the encoder cache and train again; report it if that does not help."
            if kind == FP32
            else "Choose another variant with --variants.",
        )


def within(parity: Parity, kind: str) -> bool:
    """Whether `require` would let `parity` pass."""
    return not _beyond(parity, _limits(EXPORTED, kind))


def require_here(probe: Probe, actual: Vectors, kind: str = FP32) -> None:
    """Raise `BundleRefused` unless an encoder that runs here says what it said where it was made.

    `actual` [P, D] are its vectors of the probe's texts.
    """
    expected = probe.vectors if probe.own is None else probe.own
    if beyond := _beyond(compare(expected, actual), _limits(LOADED, kind)):
        raise BundleRefused(
            f"the encoder does not give the bundle's own vectors on this machine: {beyond}",
            remedy="Serve a bundle with an fp32 encoder here, or set model.device=cpu.",
        )


def _limits(of: dict[str, Limits], kind: str) -> Limits:
    if kind not in of:
        raise BundleRefused(
            f"the encoder is of the unknown kind {kind!r}",
            remedy="Install a newer release of innerloop.",
        )
    return of[kind]


def _beyond(parity: Parity, limits: Limits) -> str:
    """The first figure that is beyond its limit, in words; empty = all are within."""
    if not parity.max_difference <= limits.max_difference:
        return f"largest difference {parity.max_difference:.1e}, at most {limits.max_difference:g}"
    for name in ("agreement", "mean_cosine", "min_cosine"):
        figure, limit = getattr(parity, name), getattr(limits, name)
        if figure is not None and not figure >= limit:
            what = f"top {parity.k} agreement" if name == "agreement" else name.replace("_", " ")
            return f"{what} {figure:.4f}, at least {limit:g}"
    return ""


def _unit(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / norms.clip(1e-12), np.float32)


def _nearest(vectors: Vectors, k: int) -> NDArray[np.int64]:
    """Places [P, k] of the nearest others by cosine."""
    unit = _unit(vectors)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def _agreement(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    same = (one[:, :, None] == other[:, None, :]).any(-1)  # [P, k]
    return float(same.mean())
