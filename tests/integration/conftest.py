"""What the integration tests share beside the broker: one small bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream.config import Settings
from tests.integration.world import save_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that knows the films of `world`; leave it as it is."""
    folder = tmp_path_factory.mktemp("model")
    save_bundle(folder, Settings())
    return folder / "bundle"
