"""Does the exported encoder say what the trained one says? No bundle without a pass."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What still counts as the same encoder; the defaults are for fp32 against fp32."""

    max_difference: float = 1e-4
    agreement: float = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Texts and the trained encoder's vectors [P, D]: any export can be held against them."""

    texts: tuple[str, ...]
    vectors: Vectors


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
    return Parity(
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        agreement=_agreement(_nearest(expected, k), _nearest(actual, k)),
        k=k,
        probes=len(expected),
    )


def require(parity: Parity, limits: Limits | None = None) -> None:
    """Raise `BundleRefused` unless `parity` is within `limits`; a NaN is never within."""
    limits = limits or Limits()
    same = parity.max_difference <= limits.max_difference and parity.agreement >= limits.agreement
    if not same:
        raise BundleRefused(
            f"the exported encoder differs from the trained one by {parity.max_difference:.1e}, "
            f"and {parity.agreement:.3f} of the top {parity.k} agree",
            remedy="Delete the encoder cache and train again; report it if that does not help.",
        )


def _nearest(vectors: Vectors, k: int) -> NDArray[np.int64]:
    """Places [P, k] of the nearest others by cosine."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def _agreement(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    same = (one[:, :, None] == other[:, None, :]).any(-1)  # [P, k]
    return float(same.mean())
