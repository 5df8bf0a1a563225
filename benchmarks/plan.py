"""What is run, in full or quickly, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks import floor as floors
from benchmarks import inner_step, memory, ranking_split, restarting, restoring, swapping
from benchmarks.feeding import settings_on
from benchmarks.inner_step import StepSpeed
from benchmarks.made_up import Size, Traffic
from benchmarks.measure import Figures, figures
from benchmarks.memory import Growth
from benchmarks.ranking_split import RankingSpeed
from benchmarks.real_worker import serving_worker
from benchmarks.restarting import Restart
from benchmarks.restoring import RestoreSpeed
from benchmarks.swapping import SwapSpeed
from stream.config import Settings
from stream.message_types import Event
from stream.ports import Message

PARTS = ("worker", "ranking", "step", "restore", "restart", "memory", "swap")
PATTERNS = ("distinct", "zipf")
HISTORY_BATCH = 4_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of a run of everything."""

    size: Size = field(default_factory=Size)
    partitions: int = 8
    interests: Sequence[int] = (1, 4)
    batches: Sequence[int] = (200, 1_000, 4_000)
    runs: int = 3  # measured, after one batch that is not
    least_events: int = 4_000  # of a run; at least two batches
    restored_users: int = 100_000
    stores: int = 64  # open at once where memory is measured
    users_a_store: int = 2_000
    cache_mb: int = 64  # as are the defaults of state.cache_mb and state.write_buffer_mb
    write_buffer_mb: int = 64

    def events(self, batch: int) -> int:
        """Events of one run; no more than there are users, who all differ in one pattern."""
        return min(max(2 * batch, self.least_events), self.size.users) // batch * batch


QUICK = Plan(
    size=Size(items=2_000, users=2_000, history=3),
    interests=(1,),
    batches=(200, 1_000),
    runs=2,
    least_events=1_000,
    restored_users=10_000,
    stores=8,
    users_a_store=500,
)
"""Shows that everything runs; its figures say little."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The worker and the floor under the same load."""

    interests: int
    users: str  # a pattern
    batch: int
    worker: Figures
    floor: Figures

    @property
    def cpu_ratio(self) -> float:
        """CPU per event over the floor's."""
        return self.worker.cpu / self.floor.cpu

    @property
    def wall_ratio(self) -> float:
        """Wall time per event over the floor's."""
        return self.worker.wall / self.floor.wall


@dataclass(kw_only=True)
class Results:
    """Everything that was measured."""

    rows: list[Row] = field(default_factory=list)
    ranking: list[RankingSpeed] = field(default_factory=list)
    step: StepSpeed | None = None
    restore: RestoreSpeed | None = None
    restart: Restart | None = None
    memory: list[Growth] = field(default_factory=list)
    swap: SwapSpeed | None = None

    @property
    def cpu_floor(self) -> float | None:
        """CPU per event over the floor's at K = 1, batch 1,000, every event another user's."""
        key = (1, "distinct", 1_000)
        found = [r.cpu_ratio for r in self.rows if (r.interests, r.users, r.batch) == key]
        return found[0] if found else None

    @property
    def batched_loop(self) -> float | None:
        """How many times as fast 256 users step together as one by one."""
        return None if self.step is None else self.step.ratio


@dataclass(frozen=True)
class _Load:
    """A kind of load, how the worker did under it, and what it wrote in a batch."""

    users: str
    batch: int
    figures: Figures
    written: list[Message]


def worker_rows(plan: Plan, interests: int, servers: str, folder: Path) -> list[Row]:
    """The worker under every load of the plan, then the floor under the same."""
    largest = max(*plan.batches, HISTORY_BATCH)
    theirs = settings_on(servers, folder, plan.partitions, largest)
    traffic = Traffic(plan.size)
    loads = _worker(plan, interests, theirs, traffic)
    ours = settings_on(servers, folder, plan.partitions, largest)
    rows = []
    with floors.floor(ours) as floor:
        for load in loads:
            written = floors.at(ours, load.written, theirs)
            floor.run(_events(traffic, load.users, load.batch), load.batch, written)
            count = plan.events(load.batch)
            runs = [
                floor.run(_events(traffic, load.users, count), load.batch, written)
                for _ in range(plan.runs)
            ]
            rows.append(
                Row(
                    interests=interests,
                    users=load.users,
                    batch=load.batch,
                    worker=load.figures,
                    floor=figures(runs),
                )
            )
    return rows


def _worker(plan: Plan, interests: int, settings: Settings, traffic: Traffic) -> list[_Load]:
    loads = []
    with serving_worker(settings, plan.size, interests) as bench:
        bench.run(traffic.history(), HISTORY_BATCH, full=False)
        for users in PATTERNS:
            for batch in plan.batches:
                bench.run(_events(traffic, users, batch), batch)
                runs = [
                    bench.run(_events(traffic, users, plan.events(batch)), batch)
                    for _ in range(plan.runs)
                ]
                loads.append(_Load(users, batch, figures(runs), bench.written))
    return loads


def _events(traffic: Traffic, users: str, count: int) -> list[Event]:
    return traffic.distinct(count) if users == "distinct" else traffic.zipf(count)


def ranking_rows(plan: Plan) -> list[RankingSpeed]:
    """Where ranking spends its time, for each number of interests."""
    return [ranking_split.measure(plan.size, k, Settings()) for k in plan.interests]


def step_row(plan: Plan) -> StepSpeed:
    """256 users at once against one by one."""
    return inner_step.measure(items=plan.size.items)


def swap_row(plan: Plan) -> SwapSpeed:
    """What a change of the model costs the traffic."""
    return swapping.measure(plan.size, Settings())


def restore_row(plan: Plan, servers: str, folder: Path) -> RestoreSpeed:
    """Stores from nothing to everything."""
    return restoring.measure(servers, folder, plan.restored_users, plan.partitions, plan.runs)


def restart_row(plan: Plan, servers: str, folder: Path) -> Restart:
    """A worker that is killed and started again."""
    size = replace(plan.size, history=min(plan.size.history, 2))
    return restarting.measure(servers, folder, size, plan.partitions)


def memory_rows(plan: Plan) -> list[Growth]:
    """Stores that serve, and stores that are restored."""
    budget = {"cache_mb": plan.cache_mb, "write_buffer_mb": plan.write_buffer_mb}
    return [memory.measure(m, plan.stores, plan.users_a_store, **budget) for m in memory.MODES]
