"""The bundle of the integration tests, for the attacks too."""

from __future__ import annotations

from tests.integration.conftest import bundle

__all__ = ["bundle"]
