"""Memory of many stores at once."""

from __future__ import annotations

import pytest

from benchmarks import memory


@pytest.mark.parametrize("mode", memory.MODES)
def test_stores_stay_within_their_memory(mode: str) -> None:
    """All stores together take their cache, their write buffers and 4 MB each, not more."""
    found = memory.measure(mode, stores=16, users=600, cache_mb=8, write_buffer_mb=8)
    assert found.growth_mb <= found.bound_mb
