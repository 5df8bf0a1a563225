"""From a release to a model that can serve, apart from its rows of items: for any thread.

Nothing here touches what the worker's loop uses: a table with rows of its own is filled from the
bundle and from `items`, and texts that the bundle does not know are encoded. Then the loop gives
the items places among its rows, the table is moved there, and the model joins the others.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from adapters.experts import Prior
from adapters.types import Meta
from export.bundle import Bundle
from export.bundle_tensors import Items
from stream import bundles, log
from stream.catalogue import CatalogueTable, dense_field
from stream.config import Settings
from stream.errors import BundleError
from stream.item_encoder import ItemEncoder, VectorCache
from stream.messages import Deletion, Item
from stream.places import Places
from stream.releases import ModelRef
from stream.serving import Serving
from stream.shared_signals import SharedSignals
from stream.terms import Terms

_log = log.get("worker")

Rows = NDArray[np.int64]

CHUNK = 256
"""Items taken in between two looks at whether the model is still wanted."""


class Unwanted(Exception):
    """Another model is wanted by now, or the worker stops."""


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A bundle that was verified, with its encoder at work."""

    version: str
    meta: Meta  # on `device`
    items: Items
    encoder: ItemEncoder
    device: str = "cpu"
    variant: str = "fp32"  # of the encoder
    provider: str = ""  # of ONNX Runtime that runs it

    def say(self) -> None:
        """One log line: what runs, and on what."""
        _log.info("encoder", variant=self.variant, provider=self.provider, ranking=self.device)

    @property
    def terms(self) -> Terms:
        """What it must share with the model before."""
        return Terms.of(self.meta.config, self.items.prior.time)

    def table(self) -> CatalogueTable:
        """The catalogue of its bundle, with rows of its own."""
        return CatalogueTable(self.meta, self.items, self.encoder, device=self.device)


@dataclass(kw_only=True)
class Made:
    """A model whose table has everything that was in `items`, still with rows of its own."""

    model: OpenModel
    table: CatalogueTable
    hashes: NDArray[np.uint64]  # of its items, by row
    seconds: Counter[str] = field(default_factory=Counter)  # by phase

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of a phase."""
        with _timed(self.seconds, name):
            yield

    def places(self, places: Places) -> Rows:
        """Rows of the worker for its items; for the loop's thread."""
        return places.take(self.table.ids, self.hashes)

    def move(self, rows: Rows, size: int) -> None:
        """Bring the table to `rows` of `size`; for any thread, before it has joined."""
        with self.phase("move"):
            self.table.align(rows, size)

    def join(self, rows: Rows, signals: SharedSignals) -> Serving:
        """The model beside the others; for the loop's thread."""
        self.table.join(signals.places)
        prior = _moved(self.model.items.prior, rows)
        return Serving(self.model.meta, self.model.version, self.table, prior, signals)


class Preparer:
    """Makes models of releases, one at a time."""

    def __init__(
        self,
        open_model: Callable[[ModelRef], OpenModel],
        read_items: Callable[[], Sequence[Item | Deletion]],
        threads: int = 1,
    ) -> None:
        """`open_model` raises `BundleError` for what must not serve; `read_items` reads `items`."""
        self._open = open_model
        self._read_items = read_items
        self._threads = threads

    def make(self, ref: ModelRef, terms: Terms, unwanted: Callable[[], bool]) -> Made:
        """The model of a release. Raises `BundleError`, `Unwanted` and what reading raises."""
        torch.set_num_threads(self._threads)  # counted apart for every thread
        seconds = Counter[str]()
        with _timed(seconds, "load"):
            model = self._open(ref)
            terms.require(model.terms)
        with _timed(seconds, "items"):
            table, items = model.table(), self._read_items()
            for at in range(0, len(items), CHUNK):
                if unwanted():
                    raise Unwanted(ref.version)
                table.upsert(items[at : at + CHUNK])
        hashes = table.places.hashes_of(np.arange(table.size))
        return Made(model=model, table=table, hashes=hashes, seconds=seconds)


def opened(settings: Settings, bundle: Bundle, cache: VectorCache | None = None) -> OpenModel:
    """A bundle at work on the device that the settings name, its encoder checked here.

    Raises `BundleError`.
    """
    device = choose_device(settings.model.device)
    encoder = bundles.encoder(bundle, device=device, threads=settings.model.threads)
    return OpenModel(
        version=bundle.manifest.version,
        meta=bundle.meta.to(device),
        items=bundle.items,
        encoder=ItemEncoder(encoder, cache, dense_field(bundle.items)),
        device=device,
        variant=bundle.manifest.encoder.variant,
        provider=encoder.provider,
    )


def choose_device(wanted: str) -> str:
    """`cuda` or `cpu`; says so when a GPU was asked for and is not there."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BundleError(
            "model.device is cuda, but torch finds no GPU",
            remedy="Set model.device to auto or cpu, or run `innerloop doctor`.",
        )
    return wanted


def _moved(prior: Prior, rows: Rows) -> Prior:
    """The counts of a prior at the worker's `rows`; its neighbours are in the table already."""
    mine, size = rows[: len(prior.counts)], int(rows.max(initial=-1)) + 1
    counts = np.zeros((size, *prior.counts.shape[1:]), prior.counts.dtype)
    counts[mine] = prior.counts
    none = np.zeros((size, 0))
    return Prior(prior.time, counts, none.astype(np.int64), none.astype(np.float32))


@contextmanager
def _timed(seconds: Counter[str], phase: str) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] += time.perf_counter() - began  # type: ignore[assignment]
