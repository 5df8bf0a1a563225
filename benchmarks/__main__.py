"""`python -m benchmarks`: everything, in one run; see --help."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import plan as plans
from benchmarks import report
from benchmarks.plan import PARTS, QUICK, Plan, Results
from stream import config, log
from stream.embedded_kafka import EmbeddedKafka
from stream.errors import InnerloopError

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Measure, print, write JSON."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    log.configure(config.Log(level="warning"))
    plan = QUICK if arguments.quick else Plan()
    plan = replace(plan, partitions=arguments.partitions or plan.partitions)
    try:
        results = measure(plan, arguments.only or PARTS)
    except InnerloopError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    _write(arguments.out or _default_out(arguments), report.as_json(plan, results))
    sys.stdout.write(report.text(plan, results))
    return 0


def _write(out: Path | None, results: dict[str, Any]) -> None:
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    _say(f"written to {out}")


def measure(plan: Plan, parts: Collection[str]) -> Results:
    """All the parts that are wanted."""
    results = Results()
    if "step" in parts:
        with _timed("inner-loop step"):
            results.step = plans.step_row(plan)
    if "ranking" in parts:
        with _timed("ranking"):
            results.ranking = plans.ranking_rows(plan)
    if "memory" in parts:
        with _timed("memory of the stores"):
            results.memory = plans.memory_rows(plan)
    if "swap" in parts:
        with _timed("change of the model"):
            results.swap = plans.swap_row(plan)
    if {"worker", "restore", "restart"} & set(parts):
        with broker() as servers, tempfile.TemporaryDirectory(prefix="innerloop-bench-") as folder:
            _with_broker(plan, parts, servers, Path(folder), results)
    return results


def _with_broker(
    plan: Plan, parts: Collection[str], servers: str, folder: Path, results: Results
) -> None:
    if "restore" in parts:
        with _timed("restore"):
            results.restore = plans.restore_row(plan, servers, folder)
    if "restart" in parts:
        with _timed("restart"):
            results.restart = plans.restart_row(plan, servers, folder)
    if "worker" in parts:
        for interests in plan.interests:
            with _timed(f"worker and floor, K = {interests}"):
                results.rows += plans.worker_rows(plan, interests, servers, folder)


@contextmanager
def broker() -> Iterator[str]:
    """The broker of KAFKA_BOOTSTRAP_SERVERS, else one that is started for the run."""
    servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if servers:
        yield servers
        return
    with EmbeddedKafka() as kafka:
        yield kafka.bootstrap_servers


@contextmanager
def _timed(what: str) -> Iterator[None]:
    started = time.monotonic()
    _say(f"{what} ...")
    yield
    _say(f"{what}: {time.monotonic() - started:.0f} s")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _default_out(arguments: argparse.Namespace) -> Path | None:
    """Full runs are kept by date, others only where they are asked for."""
    if arguments.quick or arguments.only:
        return None
    return RESULTS / f"{datetime.now(UTC):%Y-%m-%d}.json"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures the worker against a transactional pass-through on the same broker, "
        "the batched inner-loop step against one user after the other, how fast stores come back "
        "and a killed worker serves again, the memory of many stores, and the pause of a swap.",
    )
    parser.add_argument("--quick", action="store_true", help="small: shows that all of it runs")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; repeatable")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON here")
    parser.add_argument("--partitions", type=int, help="of the topics (8)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1, as a worker has)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
