"""The results as tables and as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import confluent_kafka
import torch

from benchmarks import state_report
from benchmarks.plan import Plan, Results, Row
from benchmarks.tables import met, table
from stream import kafka_jars

CPU_GOAL = 15.0
"""The worker's CPU per event is at most so many times the floor's."""

LOOP_GOAL = 30.0
"""A batched step is at least so many times as fast."""

_STAGES = (
    "consume",
    "decode",
    "load",
    "step",
    "signals",
    "rank",
    "encode",
    "produce",
    "commit",
    "apply",
    "rest",
)


def text(plan: Plan, results: Results) -> str:
    """Everything for a reader; the last line is for a machine too."""
    parts = [_about(plan)]
    if results.rows:
        parts += [_ratios(results.rows), _stages(results.rows)]
    if results.ranking:
        parts.append(_ranking(results))
    if results.step is not None:
        s = results.step
        parts.append(
            f"Inner-loop step, {s.users} users: {s.batched:.1f} us a user together, "
            f"{s.loop:.0f} us one by one"
        )
    parts += [*state_report.lines(results), _goals(results), summary(results)]
    return "\n\n".join(parts) + "\n"


def summary(results: Results) -> str:
    """The last line."""
    return f"cpu/floor {_one(results.cpu_floor)}, batched/loop {_one(results.batched_loop)}"


def as_json(plan: Plan, results: Results) -> dict[str, Any]:
    """The same for programs; times in microseconds."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "plan": asdict(plan),
        "worker": [
            {**asdict(row), "cpu_ratio": row.cpu_ratio, "wall_ratio": row.wall_ratio}
            for row in results.rows
        ],
        "ranking": [asdict(one) for one in results.ranking],
        "step": None if results.step is None else asdict(results.step),
        **state_report.as_json(results),
        "goals": {
            "cpu_floor_at_most": CPU_GOAL,
            "batched_loop_at_least": LOOP_GOAL,
            **state_report.GOALS,
        },
        "cpu_floor": results.cpu_floor,
        "batched_loop": results.batched_loop,
    }


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "confluent_kafka": confluent_kafka.__version__,
        "kafka": kafka_jars.KAFKA_VERSION,
    }


def _about(plan: Plan) -> str:
    facts, size = machine(), plan.size
    return (
        f"{facts['processor']}, {facts['cores']} cores, Python {facts['python']}, "
        f"torch {facts['torch']} with {facts['torch_threads']} thread(s)\n"
        f"{size.items:,} items, {size.users:,} users with {size.history} events before, "
        f"{plan.partitions} partitions, all experts on, untrained weights\n"
        "Times are microseconds per event, medians; CPU is that of the client process, all "
        "threads, without the broker"
    )


def _ratios(rows: Sequence[Row]) -> str:
    head = (
        "K users batch lists/event bytes/event worker-cpu floor-cpu ratio "
        "worker-wall floor-wall ratio"
    )
    lines = [
        [
            *_load(row),
            f"{row.worker.lists:.2f}",
            f"{row.worker.message_bytes:.0f}",
            f"{row.worker.cpu:.0f}",
            f"{row.floor.cpu:.1f}",
            f"{row.cpu_ratio:.1f}",
            f"{row.worker.wall:.0f}",
            f"{row.floor.wall:.1f}",
            f"{row.wall_ratio:.1f}",
        ]
        for row in rows
    ]
    return "The worker against a transactional pass-through (the floor)\n" + table(
        head.split(), lines
    )


def _stages(rows: Sequence[Row]) -> str:
    lines = [
        [*_load(row), *(f"{row.worker.stages.get(name, 0.0):.1f}" for name in _STAGES)]
        for row in rows
    ]
    return (
        "The worker by stage, wall time (load and apply: state get and put; "
        "rank: candidates, experts, top-K)\n" + table(["K", "users", "batch", *_STAGES], lines)
    )


def _ranking(results: Results) -> str:
    lines = [
        [str(r.interests), f"{r.scores:.0f}", f"{r.top_k:.0f}", f"{r.diversity:.0f}"]
        for r in results.ranking
    ]
    return "Ranking apart, 256 users, microseconds a user\n" + table(
        ["K", "candidates+experts", "top-K", "diversity"], lines
    )


def _goals(results: Results) -> str:
    cpu, loop = results.cpu_floor, results.batched_loop
    lines = []
    if cpu is not None:
        lines.append(f"Goal: cpu/floor at most {CPU_GOAL:.0f}: {met(cpu <= CPU_GOAL)}")
    lines += state_report.goals(results)
    if loop is not None:
        lines.append(f"Goal: batched/loop at least {LOOP_GOAL:.0f}: {met(loop >= LOOP_GOAL)}")
    return "\n".join(lines)


def _load(row: Row) -> list[str]:
    return [str(row.interests), row.users, str(row.batch)]


def _one(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
