"""What was measured of restores, restarts, memory and swaps, as tables and as JSON."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from benchmarks.memory import PER_STORE_MB, Growth
from benchmarks.plan import Results
from benchmarks.restarting import Restart
from benchmarks.restoring import RestoreSpeed
from benchmarks.tables import met, table

GOALS = {"restored_users_a_second_at_least": 50_000, "restart_seconds_at_most": 10.0}


def lines(results: Results) -> list[str]:
    """A paragraph for each part that was run."""
    found = []
    if results.restore is not None:
        found.append(_restore(results.restore))
    if results.restart is not None:
        found.append(_restart(results.restart))
    if results.memory:
        found.append(_memory(results.memory))
    if (swap := results.swap) is not None:
        found.append(
            f"Change of the model, {swap.items:,} items: batches wait {swap.pause:.0f} ms, "
            f"{swap.ratio:.2f} of a batch of 1,000 ({swap.batch:.0f} ms)"
        )
    return found


def goals(results: Results) -> list[str]:
    """A line for each goal that can be judged."""
    found = []
    least, most = GOALS.values()
    if (restore := results.restore) is not None:
        reached = restore.users_a_second >= least
        found.append(f"Goal: restore at least {least:,} users/s: {met(reached)}")
    if (restart := results.restart) is not None:
        found.append(f"Goal: restart within {most:.0f} s: {met(restart.seconds <= most)}")
    if results.memory:
        within = all(one.growth_mb <= one.bound_mb for one in results.memory)
        found.append(f"Goal: memory of the stores within its bound: {met(within)}")
    return found


def as_json(results: Results) -> dict[str, Any]:
    """The same for programs."""
    restore, restart = results.restore, results.restart
    return {
        "restore": None
        if restore is None
        else {
            **asdict(restore),
            "users_a_second": restore.users_a_second,
            "megabytes_a_second": restore.megabytes_a_second,
            "bound_users_a_second": restore.bound,
        },
        "restart": None if restart is None else asdict(restart),
        "memory": [{**asdict(one), "bound_mb": one.bound_mb} for one in results.memory],
        "swap": None
        if results.swap is None
        else {**asdict(results.swap), "ratio": results.swap.ratio},
    }


def _restore(r: RestoreSpeed) -> str:
    stages = [*r.stages, "CPU here", "CPU broker"]
    spent = [*r.stages.values(), r.cpu, r.broker_cpu]
    return (
        f"Restore of {r.users:,} users of {r.record_bytes:,.0f} bytes, {r.partitions} partitions, "
        f"broker on the same machine\n"
        f"{r.users_a_second:,.0f} users/s, {r.megabytes_a_second:.0f} MB/s; its CPU would allow "
        f"{r.bound:,.0f} users/s on {os.cpu_count()} cores that do nothing else\n"
        f"a step takes {r.median_step:.0f} ms, at most {r.longest_step:.0f} ms; "
        f"microseconds a user:\n" + table(stages, [[f"{one:.1f}" for one in spent]])
    )


def _restart(r: Restart) -> str:
    return (
        f"Restart after kill -9, {r.users:,} users in {r.partitions} partitions: "
        f"{r.seconds:.1f} s to the first list; seconds by phase:\n"
        + table([*r.phases], [[f"{one:.2f}" for one in r.phases.values()]])
    )


def _memory(rows: list[Growth]) -> str:
    head = ["stores", "users each", "cache", "buffers", "growth MB", "bound MB", ""]
    cells = [
        [
            str(r.stores),
            f"{r.users:,}",
            str(r.cache_mb),
            str(r.write_buffer_mb),
            f"{r.growth_mb:.0f}",
            str(r.bound_mb),
            r.mode,
        ]
        for r in rows
    ]
    return (
        f"Memory of open stores; the bound is cache + buffers + {PER_STORE_MB} MB a store\n"
        + table(head, cells)
    )
