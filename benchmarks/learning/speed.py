"""What an event costs each kind of adapter, and what of a user is kept; one core, 256 users."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from adapters import adapter, sasrec
from adapters.types import ModelConfig
from benchmarks import inner_step
from benchmarks.learning.goals import Verdict
from benchmarks.measure import MICRO
from benchmarks.tables import markdown
from stream.training import one_thread
from stream.user_layout import Layout

BANDED = "sasrec banded"

NAMES = {
    "fast_weight": "fast weight, all defaults",
    "gru": "GRU",
    "maml": "MAML, fitted anew to the support set",
    "sasrec": "SASRec, its window encoded anew",
    BANDED: "the same, only what its bands need",
    "sasrec_cached": "SASRec, keys and values kept",
}
"""What is timed, by kind; the one to be judged first.

SASRec as published attends to the whole window in each layer, so that the first has to be computed
at all places and the last at the newest. Ours is banded and serves with about half of that.
"""

MOST_US = 15.0
"""CPU time of a step, check and read-out included, that is allowed for a user's event."""

TIMES_CHEAPER = 20.0
"""SASRec's encoding of its window costs at least so many times as much."""

MOST_STATE, MOST_RECORD = 2_500, 6_000
"""Bytes of a user's adapter and of the whole record."""

EVENTS = 80
"""Events of every user before anything is timed: windows of 64 are full."""

_ENOUGH_S = 0.03  # a measurement repeats its call for about so long: clocks tick in steps


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and extremes over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of some rounds."""
        return cls(statistics.median(values), min(values), max(values))

    def words(self, digits: int = 1) -> str:
        """The median, and the extremes in brackets."""
        low, high = (f"{value:,.{digits}f}" for value in (self.low, self.high))
        return f"{self.median:,.{digits}f} ({low} to {high})"


@dataclass(frozen=True, slots=True)
class Cost:
    """One kind: CPU microseconds for a user's event, and bytes of a user."""

    kind: str
    step: Spread
    guard: Spread  # the check that a step is finite and not too large
    read: Spread  # the interests that the list is ranked by
    whole: Spread
    times: Spread  # how often the first kind's whole goes into this one's `read`
    state: int  # bytes of the adapter as stored
    record: int  # bytes of the user's record with everything else in it, when full


@dataclass(frozen=True, slots=True)
class _Timed:
    """A kind that is ready to be timed."""

    calls: tuple[Callable[[], object], ...]  # step, guard, read
    repeats: tuple[int, ...]


Rounds = dict[str, list[list[float]]]
"""Microseconds of step, check and read, of each round, by kind."""


def measure(
    users: int = 256, items: int = 10_000, rounds: int = 5, processes: int = 5
) -> list[Cost]:
    """All kinds in turns, so that each meets the same moments of the machine.

    In several processes, one after the other: where memory happens to lie makes one process faster
    or slower than the next, by half on some machines, and not alike for all kinds.
    """
    found: Rounds = {kind: [] for kind in NAMES}
    for _ in range(processes):
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:
            for kind, own in alone.submit(timed, users, items, rounds).result().items():
                found[kind] += own
    first = [sum(parts) for parts in found[next(iter(NAMES))]]
    return [_cost(kind, parts, first) for kind, parts in found.items()]


def timed(users: int, items: int, rounds: int) -> Rounds:
    """The measurements of this process."""
    found: Rounds = {kind: [] for kind in NAMES}
    with one_thread(), torch.inference_mode():
        ready = {kind: _ready(kind, users, items) for kind in NAMES}
        for _ in range(rounds):
            for kind, own in ready.items():
                seconds = map(_seconds, own.calls, own.repeats)
                found[kind].append([s / users * MICRO for s in seconds])
    return found


def _config(kind: str) -> ModelConfig:
    return ModelConfig(kind=kind.split()[0], actions=("click",))


def _ready(kind: str, users: int, items: int) -> _Timed:
    """States after EVENTS events, the next event, and what is to be called with them."""
    config = _config(kind)
    reach = config.window if kind == "sasrec" else None
    meta, vectors = inner_step.untrained(config, items)
    past = inner_step.clicks(users, EVENTS, items, 0.0)
    state = adapter.advance(meta, adapter.init(meta, users), past, vectors)
    event = inner_step.clicks(users, 1, items, 60.0 * EVENTS)
    new = adapter.step(meta, state, event, vectors)
    calls: tuple[Callable[[], object], ...] = (
        lambda: adapter.step(meta, state, event, vectors),
        lambda: adapter.guard(state, new),
        lambda: sasrec.encode(meta, new, reach) if reach else adapter.read(meta, new),
    )
    for call in calls:
        call()  # the first call of a kind pays for memory
    return _Timed(calls, tuple(math.ceil(_ENOUGH_S / max(_seconds(c, 1), 1e-6)) for c in calls))


def _seconds(call: Callable[[], object], repeats: int) -> float:
    """CPU seconds of a call: what else the machine does costs wall time alone."""
    began = time.thread_time()
    for _ in range(repeats):
        call()
    return (time.thread_time() - began) / repeats


def _cost(kind: str, rounds: list[list[float]], first: list[float]) -> Cost:
    step, guard, read = (list(part) for part in zip(*rounds, strict=True))
    config = _config(kind)
    return Cost(
        kind=kind,
        step=Spread.of(step),
        guard=Spread.of(guard),
        read=Spread.of(read),
        whole=Spread.of([sum(parts) for parts in rounds]),
        times=Spread.of([own / mine for own, mine in zip(read, first, strict=True)]),
        state=sum(math.prod(f.shape) * f.dtype.itemsize for f in adapter.fields(config).values()),
        record=Layout.of(config).dtype.itemsize,
    )


def verdicts(found: list[Cost]) -> list[Verdict]:
    """The goals on speed and size."""
    costs = {cost.kind: cost for cost in found}
    own, encoded, banded = (costs[kind] for kind in ("fast_weight", "sasrec", BANDED))
    return [
        Verdict(
            f"a user's event, read out, under {MOST_US:.0f} us of one core",
            own.whole.median < MOST_US,
            f"{own.whole.words()} us",
        ),
        Verdict(
            f"{TIMES_CHEAPER:.0f} times cheaper than SASRec's encoding of its last 64 events",
            encoded.times.median >= TIMES_CHEAPER,
            f"{encoded.times.words()}, its encoding alone against all of ours; "
            f"{banded.times.words()} where bands save half of it",
        ),
        Verdict(
            f"adapter at most {MOST_STATE:,} bytes a user, record at most {MOST_RECORD:,}",
            own.state <= MOST_STATE and own.record <= MOST_RECORD,
            f"{own.state:,} and {own.record:,}",
        ),
    ]


def text(found: list[Cost]) -> str:
    """Markdown: median (least to most) of CPU microseconds, and bytes."""
    head = ["us of one core for a user's event", "step", "check", "read", "all", "bytes in fp16"]
    rows = []
    for cost in found:
        parts = (cost.step, cost.guard, cost.read, cost.whole)
        rows.append([NAMES[cost.kind], *(p.words() for p in parts), f"{cost.state:,}"])
    return markdown(head, rows)
