"""Bundles for commands and workers: `export.bundle` with the errors of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from export import bundle as bundles
from export import parity
from export import registry as registries
from export.bundle import Bundle
from export.encoder import OnnxEncoder
from export.errors import BundleRefused
from export.errors import BundleUnreachable as Unreachable
from stream.errors import BundleError, BundleUnreachable


def load(url: str, *, cache: Path | None = None) -> Bundle:
    """The bundle at a path or an fsspec address, verified; with `cache` a copy below it.

    Raises `BundleError`, `BundleUnreachable` where it may be there later.
    """
    with refusals():
        return bundles.load(url, cache=cache)


def save(bundle: Bundle, url: str) -> Bundle:
    """Write a bundle; it is returned with its version. Raises `BundleError`."""
    with refusals():
        return bundles.save(bundle, url)


def put(url: str, registry: str) -> str:
    """The address of a bundle in the registry, where it was put. Raises `BundleError`."""
    with refusals():
        return registries.put(url, registry)


def put_gate(url: str, gate: dict[str, Any]) -> None:
    """Write the gate's verdict into a bundle's manifest. Raises `BundleError`."""
    with refusals():
        registries.put_gate(url, gate)


def encoder(bundle: Bundle, *, device: str = "auto", threads: int = 0) -> OnnxEncoder:
    """The bundle's encoder, ready to run here.

    Raises `BundleError`, also when it does not give the bundle's own vectors on this machine.
    """
    with refusals():
        made = OnnxEncoder(bundle.encoder, device=device, threads=threads)
        kind = bundle.manifest.encoder.kind
        parity.require_here(bundle.probe, made.encode(bundle.probe.texts), kind)
    return made


@contextmanager
def refusals() -> Iterator[None]:
    """Turns what `export` refuses into `BundleError`."""
    try:
        yield
    except Unreachable as refused:
        raise BundleUnreachable(refused.detail, remedy=refused.remedy) from None
    except BundleRefused as refused:
        raise BundleError(refused.detail, remedy=refused.remedy) from None
