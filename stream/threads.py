"""How many threads torch may use, for the time of a phase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


def one_thread() -> AbstractContextManager[None]:
    """One torch thread: many small products wait for each other's threads longer than they run."""
    return threads(1)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many torch threads; 0 = as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
