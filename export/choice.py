"""The variants of an encoder side by side, and which of them to take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adapters.report import Figure
from export import parity
from export.errors import BundleRefused
from export.parity import Parity

STEADY = 0.9999
"""Cosine of a text's vectors alone and among others, from which on the others do not matter."""

LEVEL = 0.95
"""Speeds above this share of the best count as equal: then the smaller file is taken."""

Encode = Callable[[Sequence[str]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is known of a variant."""

    variant: str
    kind: str
    size: int  # bytes of the model file
    speed: float  # items a second over those of fp32 torch, in the same rounds
    probe: Parity  # against the trained encoder, on the bundle's probe
    catalogue: Parity  # the same on items of the catalogue
    steady: float  # mean cosine of a text's vectors alone and in a batch
    lists: Figure | None = (
        None  # nDCG@10 of its lists over that of fp32's, minus 1; None = no events
    )

    @property
    def usable(self) -> bool:
        """Whether a bundle may have it: within its limits, and a vector depends on its text alone.

        Otherwise a list could not be made a second time.
        """
        return parity.within(self.probe, self.kind) and self.steady >= STEADY

    @property
    def loss(self) -> float:
        """What may be lost: the far end of the 95% interval of nDCG@10, else neighbours lost."""
        return 1 - self.catalogue.agreement if self.lists is None else -self.lists.low

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        lists = None if self.lists is None else asdict(self.lists)
        return {
            "variant": self.variant,
            "size": self.size,
            "speed": self.speed,
            "probe_agreement": self.probe.agreement,
            "agreement": self.catalogue.agreement,
            "mean_cosine": self.catalogue.mean_cosine,
            "min_cosine": self.catalogue.min_cosine,
            "steady": self.steady,
            "usable": self.usable,
            "ndcg": lists,
        }


def choose(rows: Sequence[Row], budget: float) -> Row:
    """The fastest variant that loses at most `budget`; of those nearly as fast, the smallest.

    Variants that are not usable are passed over. Raises `BundleRefused` where nothing is left.
    """
    fit = [row for row in rows if row.loss <= budget and row.usable]
    if not fit:
        raise BundleRefused(
            f"no variant loses at most {budget:.2%}",
            remedy="Name more --variants (fp32 loses nothing), or allow more with --budget.",
        )
    best = max(row.speed for row in fit)
    return min((row for row in fit if row.speed >= LEVEL * best), key=lambda row: row.size)


def speeds(
    encoders: Mapping[str, Encode],
    first: str,
    texts: Sequence[str],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """How many times as fast as `first` each is on `texts`: the median over rounds in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for encode in encoders.values():
        encode(texts[:32])  # memory is taken and kernels are chosen at the first call
    for _ in range(rounds):
        for name, encode in encoders.items():
            began = clock()
            encode(texts)
            seconds[name].append(clock() - began)
    base = np.array(seconds[first])
    return {name: float(np.median(base / np.array(own))) for name, own in seconds.items()}


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """A header and one line of text a variant."""
    head = ("variant", "MB", "speed", "cosine", "least", "probe", "top 10", "alone", "nDCG@10", "")
    return [head, *(_line(row) for row in rows)]


def _line(row: Row) -> tuple[str, ...]:
    lists = row.lists
    return (
        row.variant,
        f"{row.size / 2**20:.0f}",
        f"{row.speed:.2f}x",
        f"{row.catalogue.mean_cosine:.4f}",
        f"{row.catalogue.min_cosine:.4f}",
        f"{row.probe.agreement:.3f}",
        f"{row.catalogue.agreement:.3f}",
        f"{row.steady:.4f}",
        "-" if lists is None else f"{lists.mean:+.2%} ({lists.low:+.2%} to {lists.high:+.2%})",
        "" if row.usable else "not for bundles",
    )
