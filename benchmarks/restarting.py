"""From kill -9 of a busy worker to the first list of the next process, on a warm store."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks import made_up, whole_bundle
from benchmarks.feeding import Feeder, send_items, settings_on
from benchmarks.made_up import Size, Traffic
from stream.config import Settings
from stream.kafka.reader import Tail
from stream.ports import Record

PATIENCE = 120.0
"""Seconds after which a worker that writes no list has failed."""

_BURST = 4_000  # events that wait when the worker dies
_COLD = b"_cold"


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Seconds from the kill, and what they were spent on."""

    users: int
    partitions: int
    seconds: float
    phases: dict[str, float]


class Process:
    """`innerloop worker`, as a supervisor runs it."""

    def __init__(self, settings: Settings, bundle: Path, folder: Path) -> None:
        changes = {
            "model": settings.model.model_copy(update={"bundle": str(bundle)}),
            "http": settings.http.model_copy(update={"port": 0}),
            "log": settings.log.model_copy(update={"format": "json", "level": "info"}),
        }
        own = settings.model_copy(update=changes).model_dump(mode="json")
        self._config = folder / "worker.yaml"
        self._config.write_text(yaml.safe_dump(own))
        self._log = folder / "worker.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin; what an earlier process said is dropped."""
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stream", "worker", "--config", str(self._config)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """kill -9, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def check(self) -> None:
        """Raises `RuntimeError` when it has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"the worker has ended:\n{self._log.read_text()}")

    def said(self) -> list[dict[str, Any]]:
        """Its log lines so far."""
        lines = []
        for line in self._log.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # half a line, or none of ours
                lines.append(json.loads(line))
        return lines


def measure(servers: str, folder: Path, size: Size, partitions: int) -> Restart:
    """Fill the stores, kill the worker in the middle of its work, start it again at once."""
    settings = settings_on(servers, folder, partitions, largest_batch=1_000)
    known = made_up.items(size)
    send_items(settings, known)
    process = Process(settings, whole_bundle.save(folder, known, size, settings), folder)
    with _lists(settings) as lists, closing(Feeder(settings)) as feeder:
        try:
            return _restarted(process, lists, feeder, size, partitions)
        finally:
            process.kill()


def _restarted(
    process: Process, lists: Callable[[], list[Record]], feeder: Feeder, size: Size, partitions: int
) -> Restart:
    traffic, seen = Traffic(size), set[bytes]()

    def all_users() -> bool:
        seen.update(r.key for r in lists() if r.key not in (None, _COLD))
        return len(seen) == size.users

    process.start()
    feeder.send(traffic.history())
    _until(all_users, process)
    feeder.send(traffic.distinct(min(_BURST, size.users)))
    _until(lambda: bool(lists()), process)
    process.kill()
    killed = time.time()
    process.start()
    first = _until(lambda: _written_after(killed, lists()), process)
    return Restart(
        users=size.users,
        partitions=partitions,
        seconds=first - killed,
        phases=_phases(killed, process.said(), first),
    )


def _written_after(when: float, records: list[Record]) -> float:
    """When a list that was produced after `when` is seen to be committed; 0 while none is."""
    fresh = any(r.timestamp > 1_000 * when and r.key != _COLD for r in records)
    return time.time() if fresh else 0.0


def _phases(killed: float, lines: list[dict[str, Any]], first: float) -> dict[str, float]:
    """Seconds between the lines of the log that say how far the worker is."""
    at: dict[str, float] = {}
    for line in lines:
        at[line["event"]] = datetime.fromisoformat(line["timestamp"]).timestamp()
        if line["event"] == "batch":
            break
    reached = {
        "import and load": at.get("listening", first),
        "fence": at.get("started", first),
        "join": at.get("assigned", first),
        "restore": at.get("restored", first),
        "items and first list": first,
    }
    phases, before = {}, killed
    for name, when in reached.items():
        phases[name], before = max(0.0, when - before), max(before, when)
    return phases


@contextmanager
def _lists(settings: Settings) -> Iterator[Callable[[], list[Record]]]:
    """Gives the committed lists that came since it was last asked."""
    with closing(Tail(settings.kafka, settings.kafka.topic("recommendations"))) as tail:
        yield lambda: tail.poll(timeout=0.005)


def _until(condition: Callable[[], float], process: Process) -> float:
    """The first value of the condition that counts as true."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        process.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"no lists after {PATIENCE:.0f} s")
    return value
