"""Runs that are missing, some at a time, each in a process of its own."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch

from benchmarks.learning.rows import Row
from benchmarks.learning.runs import Plan, Runs, Task
from benchmarks.learning.sets import DataSet
from stream.progress import Reporter

MOST = 8
"""Processes unless more are asked for: each holds a data set and a model, some 2 GB."""


def usual() -> int:
    """As many as there are cores, MOST at most: a training and its fit keep one core busy."""
    return min(os.cpu_count() or 1, MOST)


def make(data: DataSet, plan: Plan, rows: list[Row], jobs: int, reporter: Reporter) -> None:
    """Make what `rows` lack and keep it in the plan's folder, `jobs` at a time.

    `Runs.result` makes the rest: all of it where one process would do. Raises `DataError`
    where files are missing or too small; what was made by then is kept.
    """
    tasks = Runs(data, plan, Reporter()).missing(rows)
    jobs = min(jobs, len(tasks))
    if jobs < 2:
        return
    reporter.say(f"{data.name}: {len(tasks)} trainings are missing, {jobs} run at a time")
    with (
        reporter.phase(f"{data.name}: trainings") as advance,
        ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (data, plan)) as pool,
    ):
        advance(0.0, "")
        began = time.monotonic()
        running = {pool.submit(_make, task): task for task in tasks}
        try:
            for done, future in enumerate(as_completed(running), start=1):
                seconds = future.result()
                reporter.say(f"{data.name}: {running[future].words()}: {seconds:.0f} s")
                left = (time.monotonic() - began) / done * (len(tasks) - done)
                advance(done / len(tasks), f"some {left / 60:.0f} min left" if left else "")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_runs: list[Runs] = []
"""Of this process, with the data that it has read."""


def _begin(data: DataSet, plan: Plan) -> None:
    torch.set_num_threads(1)
    _runs.append(Runs(data, plan, Reporter()))


def _make(task: Task) -> float:
    began = time.monotonic()
    _runs[0].make(task)
    return time.monotonic() - began
