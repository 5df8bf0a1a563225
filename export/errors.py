"""What export refuses; `stream.bundles` turns it into the errors of the command line."""

from __future__ import annotations


class BundleRefused(Exception):
    """A bundle that cannot be written or trusted: `detail` says why, `remedy` what to do."""

    def __init__(self, detail: str, *, remedy: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy


class EncoderError(BundleRefused):
    """The encoder cannot run here, or not on the device that was asked for."""


class BundleUnreachable(BundleRefused):
    """A bundle whose address does not answer, or has none yet: it may be there later."""
