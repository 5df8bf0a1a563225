"""Threads that torment workers: each life of a worker has a plan, and its end is counted."""

from __future__ import annotations

import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stream import checkpoints
from stream.checkpoints import SWEEP
from tests.chaos.process import Plan, WorkerProcess
from tests.chaos.tally import Tally

SWEEPS = tuple(SWEEP + point for point in checkpoints.OF_TRANSACTIONS)
POINTS = (*checkpoints.OF_BATCHES, *checkpoints.OF_PARTITIONS, *SWEEPS)
"""Every named point; `REVOKED` needs others that come and go."""

STOPS = (checkpoints.COMPUTED, checkpoints.PRODUCED, checkpoints.OFFSETS_SENT)
"""Where a worker that is stopped for too long believes that it still owns its partitions."""

AT_START = (checkpoints.ASSIGNED, checkpoints.RESTORING, checkpoints.RESTORED)
"""Points that come before the first batch: such a life counts when the one before committed."""

LIFE_S = 12.0
"""After so long a life is ended from outside."""

REST_S = 3.0
"""Between two restarts of a rolling deployment."""

FILE_LIMIT = 300_000
"""Bytes of a file on a disk that is full: the write-ahead log of a store soon has them."""


@dataclass
class Tormentor:
    """One worker that is killed, stopped, wiped and started again until `halt`."""

    worker: WorkerProcess
    tally: Tally
    random: random.Random
    session_s: float
    halt: threading.Event
    points: tuple[str, ...] = POINTS
    only_kills: bool = False
    committed_before: bool = False  # whether the life before committed a batch
    troubles: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Live and die."""
        while not self.halt.is_set():
            self._live(self._next_plan())
        self.worker.kill()

    # -- one life -----------------------------------------------------------------------------

    def _next_plan(self) -> Plan:
        luck, delay = self.random.random(), self.random.random()
        luck = 1.0 if self.only_kills else luck
        if luck < 0.06:
            point = self.random.choice(STOPS)
            point = self.random.choice(["", SWEEP]) + point
            return Plan(action="stop", point=point, commits=1)
        if luck < 0.10:
            return Plan(file_limit=FILE_LIMIT)
        if luck < 0.14:  # a slow disk
            return Plan(action="wait", point=checkpoints.APPLYING, delay_s=2 * delay)
        if luck < 0.20:  # at any moment
            return Plan(delay_s=0.05 + delay, point=checkpoints.APPLIED, commits=0)
        point = self.tally.rarest(self.points)
        wait = 0.01 * delay if point.endswith(checkpoints.COMMITTING) else 0.0
        return Plan(point=point, delay_s=wait, commits=0 if point in AT_START else 1)

    def _live(self, plan: Plan) -> None:
        self.worker.start(plan)
        ended = self._until(lambda: not self.worker.alive or self.worker.stopped, LIFE_S)
        if self.worker.stopped:
            self._outlive()
        elif not ended:
            self.worker.kill()
        self.worker.join()
        self._count(plan)
        if self.random.random() < 0.25:
            shutil.rmtree(self.worker.state, ignore_errors=True)
            self.tally.add("wipes")

    def _outlive(self) -> None:
        """The stopped process goes on when others have its partitions; then it is killed."""
        self.halt.wait(self.session_s + 1.5)
        self.worker.signal(signal.SIGCONT)
        self.tally.add("stops")
        self.tally.add("rebalances")  # its partitions went to others
        self._until(lambda: not self.worker.alive, 3.0)
        self.worker.kill()

    def _count(self, plan: Plan) -> None:
        lines = self.worker.lines()
        committed = any(line.get("event") == "batch" for line in lines)
        named = [str(line["point"]) for line in lines if line.get("event") == "sabotage"]
        killed = self.worker.exit_code == -signal.SIGKILL
        progress = committed or (plan.point in AT_START and self.committed_before)
        self.committed_before = committed
        if killed and progress and plan.action != "stop":
            at_point = not plan.delay_s or plan.point.endswith(checkpoints.COMMITTING)
            self.tally.hit(named[0] if named and at_point else "")
        if self.worker.exit_code == 6 and plan.file_limit:
            self.tally.add("full_disks")
        self._note_trouble(plan)

    def _note_trouble(self, plan: Plan) -> None:
        """What nothing in the plan explains: the worker gave up, or raised."""
        text, code = self.worker.text(), self.worker.exit_code
        expected = {0, -signal.SIGKILL} | ({6} if plan.file_limit else set())
        expected |= {7} if plan.action == "stop" else set()
        if "Traceback" in text or code not in expected:
            self.troubles.append(f"{self.worker.name}: exit code {code}\n{text[-3000:]}")

    def _until(self, condition: Callable[[], bool], patience: float) -> bool:
        """Wait for a condition, no longer than `patience` seconds or `halt`."""
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline or self.halt.is_set():
                return False
            time.sleep(0.01)
        return True


@dataclass
class Guest:
    """A worker that joins for a while and leaves again, so that partitions move."""

    worker: WorkerProcess
    tally: Tally
    random: random.Random
    session_s: float
    halt: threading.Event

    def run(self) -> None:
        """Come and go."""
        while not self.halt.wait(1 + 2 * self.random.random()):
            self.worker.start()
            self.halt.wait(4 + 3 * self.random.random())
            self.worker.terminate()
            joined = self.worker.lines("assigned")
            if any(line["partitions"] for line in joined):
                self.tally.add("rebalances", 2)  # it came and it went
            self.halt.wait(self.session_s + 1)
        self.worker.kill()


@dataclass
class Rollout:
    """Restarts workers in turn with SIGTERM, as a rolling deployment does."""

    workers: Sequence[WorkerProcess]
    tally: Tally
    halt: threading.Event
    troubles: list[str] = field(default_factory=list)

    def run(self) -> None:
        """One after the other, each when the one before serves again."""
        for worker in self.workers:
            worker.start()
        while not self.halt.is_set():
            for worker in self.workers:
                if self._served(worker) and not self.halt.wait(REST_S):
                    self._restart(worker)
        for worker in self.workers:
            worker.terminate()

    def _served(self, worker: WorkerProcess) -> bool:
        while not worker.ready():
            if self.halt.wait(0.05):
                return False
        return True

    def _restart(self, worker: WorkerProcess) -> None:
        code = worker.terminate()
        if code != 0:
            self.troubles.append(f"{worker.name}: exit code {code}\n{worker.text()[-3000:]}")
        self.tally.add("restarts")
        worker.start()
        self._served(worker)
