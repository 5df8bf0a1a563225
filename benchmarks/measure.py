"""What is measured of a run, and how runs become one figure: medians per event."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

MICRO = 1e6


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of a run."""

    events: int
    seconds: float  # wall
    stages: dict[str, float] = field(default_factory=dict)  # seconds


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: some batches one after the other."""

    batches: Sequence[Batch]
    cpu: float  # seconds of this process, all threads, fetching included
    lists: int = 0
    messages: int = 0
    message_bytes: int = 0

    @property
    def events(self) -> int:
        """Events in all batches."""
        return sum(batch.events for batch in self.batches)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Microseconds per event and what goes with them."""

    cpu: float
    wall: float
    stages: dict[str, float]
    lists: float  # per event: users in a batch over its events
    messages: float  # per event
    message_bytes: float  # per event
    batches: int  # measured
    events: int  # measured


def figures(runs: Sequence[Run]) -> Figures:
    """Medians over runs.

    The first batch of a run waits for its records to be fetched, so wall time leaves it out when
    there are others; CPU does not.
    """
    return Figures(
        cpu=_median(run.cpu / run.events for run in runs) * MICRO,
        wall=_median(_wall(run) for run in runs) * MICRO,
        stages=_stages(runs),
        lists=_median(run.lists / run.events for run in runs),
        messages=_median(run.messages / run.events for run in runs),
        message_bytes=_median(run.message_bytes / run.events for run in runs),
        batches=sum(len(run.batches) for run in runs),
        events=sum(run.events for run in runs),
    )


def _wall(run: Run) -> float:
    batches = run.batches[1:] or run.batches
    return sum(b.seconds for b in batches) / sum(b.events for b in batches)


def _stages(runs: Sequence[Run]) -> dict[str, float]:
    """Wall time of each stage; `rest` is what no stage names."""
    spent: list[dict[str, float]] = []
    for run in runs:
        total: defaultdict[str, float] = defaultdict(float)
        for batch in run.batches[1:] or run.batches:
            for name, seconds in batch.stages.items():
                total[name] += seconds
            total["rest"] += batch.seconds - sum(batch.stages.values())
        events = sum(b.events for b in run.batches[1:] or run.batches)
        spent.append({name: seconds / events for name, seconds in total.items()})
    names = dict.fromkeys(name for one in spent for name in one)
    return {name: _median(one[name] for one in spent) * MICRO for name in names}


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    """Median wall seconds of one call; the first is not counted."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _median(values: Iterable[float]) -> float:
    return float(statistics.median(values))
