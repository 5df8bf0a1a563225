"""One training in several processes, as `torchrun` starts them.

The first process reads, writes and reports; the others are handed what the outer loop needs, take
their share of every batch, and end with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch

from adapters.team import ALONE, Team
from stream.errors import ConfigError

PATIENCE = timedelta(hours=24)
"""How long the others wait for the first one to read the log and encode its items."""

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@contextmanager
def joined(device: str, environment: Mapping[str, str] = os.environ) -> Iterator[tuple[Team, str]]:
    """The team that torchrun's variables name, and the device of this process.

    Without them one process on `device`. Raises `ConfigError`.
    """
    rank, size, local = _numbers(environment)
    if size == 1:
        yield ALONE, device
        return
    from torch import distributed

    own = f"cuda:{local}" if device == "cuda" else device
    if device == "cuda":
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Team(rank, size), own
    finally:
        distributed.destroy_process_group()


def _numbers(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Rank, size, and rank on this machine; one process where nothing is said."""
    if "WORLD_SIZE" not in environment:
        return 0, 1, 0
    try:
        rank, size, local = (int(environment[name]) for name in _NAMES)
    except (KeyError, ValueError):
        raise ConfigError(
            f"{', '.join(_NAMES)} are not those of torchrun",
            remedy="Start with `torchrun --nproc-per-node 2 -m stream train …`, or unset them.",
        ) from None
    return rank, size, local
