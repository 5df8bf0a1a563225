"""How much memory the stores of a worker take: `python -m benchmarks.memory` in its own process."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from stream.ports import Put
from stream.store import Identity, Store, Stores

PER_STORE_MB = 4
"""What an open store may take beyond its share of block cache and write buffers."""

MODES = ("serving", "restoring")
_AT_ONCE = 50  # users in a batch
_RECORD = 3_000


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The most by which a process grew while it wrote and read all records of its stores."""

    mode: str
    stores: int
    users: int  # of each store
    cache_mb: int
    write_buffer_mb: int
    growth_mb: float

    @property
    def bound_mb(self) -> int:
        """What it may be at most."""
        return self.cache_mb + self.write_buffer_mb + PER_STORE_MB * self.stores


def measure(mode: str, stores: int, users: int, *, cache_mb: int, write_buffer_mb: int) -> Growth:
    """Measured in a process that does nothing else."""
    sizes = [stores, users, cache_mb, write_buffer_mb]
    command = [sys.executable, "-m", "benchmarks.memory", mode, *map(str, sizes)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return Growth(**json.loads(said.stdout))


def grow(mode: str, stores: int, users: int, *, cache_mb: int, write_buffer_mb: int) -> Growth:
    """Measured in this process: write as a worker does, then read everything, twice."""
    identity = Identity(cluster="c", state_topic="s", signals_topic="g")
    budget = {"cache_mb": cache_mb, "write_buffer_mb": write_buffer_mb}
    with (
        tempfile.TemporaryDirectory(prefix="innerloop-memory-") as name,
        Stores(Path(name), identity, cache_mb=cache_mb, write_buffer_mb=write_buffer_mb) as folder,
    ):
        before = _resident()
        opened = [folder.open(partition) for partition in range(stores)]
        if mode == "serving":
            for store in opened:
                store.restored()
        most = max(_resident() for _ in _work(opened, users))
    growth = (most - before) / 1e6
    return Growth(mode=mode, stores=stores, users=users, growth_mb=growth, **budget)


def _work(stores: list[Store], users: int) -> Iterator[None]:
    """Every user once, in an order of chance, then a walk through all records."""
    chance = random.Random(1)
    records = [chance.randbytes(_RECORD) for _ in range(100)]
    order = chance.sample(range(users), users)
    for at in range(0, users, _AT_ONCE):
        keys = [b"uuser-%07d" % user for user in order[at : at + _AT_ONCE]]
        for store in stores:
            store.get_many(keys)
            store.apply([Put(key, chance.choice(records)) for key in keys], {"state": at})
            yield
    for store in stores * 2:
        for _ in store.scan(b"u"):
            pass
        yield


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def main() -> None:
    """Measure once and print it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory")
    parser.add_argument("mode", choices=MODES)
    for name in ("stores", "users", "cache_mb", "write_buffer_mb"):
        parser.add_argument(name, type=int)
    found = grow(**vars(parser.parse_args()))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main()
