"""Bundles for commands and workers: `export.bundle` with the errors of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from export import bundle as bundles
from export import parity
from export.bundle import Bundle
from export.encoder import OnnxEncoder
from export.errors import BundleRefused
from stream.errors import BundleError


def load(url: str) -> Bundle:
    """The bundle at a path or an fsspec address, verified. Raises `BundleError`."""
    with refusals():
        return bundles.load(url)


def save(bundle: Bundle, url: str) -> Bundle:
    """Write a bundle; it is returned with its version. Raises `BundleError`."""
    with refusals():
        return bundles.save(bundle, url)


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
    except BundleRefused as refused:
        raise BundleError(refused.detail, remedy=refused.remedy) from None
