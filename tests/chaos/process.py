"""A worker in a process of its own, which may be told to die, stop or dawdle at a named point.

Processes are forked from a server that has imported everything already, so that a worker starts
in about a second and hundreds of them can be killed in a few minutes. What runs in them is the
worker of `innerloop worker`, put together by `stream.assembly`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from stream import assembly, checkpoints, log
from stream.config import Settings
from stream.errors import InnerloopError

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.chaos.process"])

ASKING = threading.Lock()
"""Held while the fork server is asked. How a process ended is told once: of two threads that ask
the second one reads 255, and starting any process asks after all of them.
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a worker does to itself: at the `at`-th time it passes `point`, once it may."""

    point: str = ""  # of stream.checkpoints; empty = nothing
    at: int = 1
    action: Literal["kill", "stop", "wait"] = "kill"
    delay_s: float = 0.0  # before a kill or a stop, which then hits what comes after the point
    commits: int = 1  # batches that this process must have committed and applied before
    file_limit: int = 0  # bytes that a file may have; 0 = no limit; what a full disk looks like


class Saboteur:
    """Listens at the checkpoints of a worker and carries out its plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._batches = 0
        self._passed = 0

    def __call__(self, point: str) -> None:
        """The worker came to this point."""
        if point == self._plan.point and self._batches >= self._plan.commits:
            self._passed += 1
            if self._passed == self._plan.at:
                self._act(point)
        self._batches += point == checkpoints.APPLIED

    def _act(self, point: str) -> None:
        sys.stderr.write(json.dumps({"event": "sabotage", "point": point}) + "\n")
        sys.stderr.flush()
        if self._plan.action == "wait":
            time.sleep(self._plan.delay_s)
        elif self._plan.delay_s:
            threading.Timer(self._plan.delay_s, self._signal).start()
        else:
            self._signal()

    def _signal(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL if self._plan.action == "kill" else signal.SIGSTOP)


Sabotage = Callable[[], None]
"""Changes the worker's code before it starts: a seeded fault, which a checker has to find."""


def _main(plain: str, plan: Plan, sabotage: Sabotage | None, log_file: Path) -> None:
    """The process: as `innerloop worker`, with someone at the checkpoints; settings as JSON."""
    settings = Settings(**json.loads(plain))
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started it
    log.configure(settings.log)
    if sabotage is not None:
        sabotage()
    if plan.file_limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan.file_limit, plan.file_limit))
    try:
        with assembly.worker(settings, Saboteur(plan)) as running:
            signal.signal(signal.SIGTERM, lambda *_: running.worker.stop())
            log.get("worker").info("listening", port=running.endpoint.port)
            running.worker.run()
    except InnerloopError as error:
        sys.stderr.write(f"innerloop: {error}\n")
        sys.stderr.flush()
        os._exit(error.exit_code)
    os._exit(0)


class WorkerProcess:
    """One worker id with its state folder, started as often as it is killed."""

    def __init__(self, settings: Settings, bundle: Path, folder: Path, name: str) -> None:
        changes = {
            "worker_id": name,
            "model": settings.model.model_copy(update={"bundle": str(bundle)}),
            "state": settings.state.model_copy(update={"dir": folder / name}),
            "http": settings.http.model_copy(update={"port": 0}),
            "log": settings.log.model_copy(update={"format": "json"}),
        }
        self.name = name
        self.settings = settings.model_copy(update=changes)
        self.state = folder / name
        self.log_file = folder / f"{name}.log"
        self._process: BaseProcess | None = None
        self._begins = 0  # of this start's lines in the log

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # -- its life -----------------------------------------------------------------------------

    def start(self, plan: Plan | None = None, sabotage: Sabotage | None = None) -> None:
        """Begin to run. Events are served a second or two later.

        Where files are limited the log begins anew: it is one of them.
        """
        if plan is not None and plan.file_limit:
            self.log_file.write_bytes(b"")
        self._begins = self.log_file.stat().st_size if self.log_file.exists() else 0
        arguments = (self.settings.model_dump_json(), plan or Plan(), sabotage, self.log_file)
        self._process = CONTEXT.Process(target=_main, args=arguments, daemon=True)
        with ASKING:
            self._process.start()

    @property
    def alive(self) -> bool:
        """Whether the process is there, running or stopped."""
        return self._process is not None and self.exit_code is None

    @property
    def exit_code(self) -> int | None:
        """Its exit code, minus the signal's number where one ended it; None while it is there."""
        with ASKING:
            return None if self._process is None else self._process.exitcode

    @property
    def stopped(self) -> bool:
        """Whether SIGSTOP holds it."""
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return False
        return status.rpartition(")")[2].split()[0] == "T"

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        return 0 if self._process is None else int(self._process.pid or 0)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process is there."""
        if self.alive:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and wait."""
        self.signal(signal.SIGKILL)
        self.join(None)

    def terminate(self, patience: float = 60.0) -> int | None:
        """SIGTERM, and wait; the exit code."""
        self.signal(signal.SIGTERM)
        return self.join(patience)

    def join(self, patience: float | None = 60.0) -> int | None:
        """Wait for its end, None = however long; the exit code, None when it did not come."""
        if self._process is not None:
            wait([self._process.sentinel], patience)
        return self.exit_code

    # -- what it says -------------------------------------------------------------------------

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        """Its log lines since it was started, those of one event where it is named."""
        lines = self.text().splitlines() if self.log_file.exists() else []
        found = [json.loads(x) for x in lines if x.startswith('{"') and x.endswith("}")]
        return [line for line in found if not event or line.get("event") == event]

    def text(self) -> str:
        """Its log since it was started."""
        return self.log_file.read_bytes()[self._begins :].decode(errors="replace")

    def ready(self) -> dict[str, Any] | None:
        """What /readyz says when it is ready, else None."""
        found = self.page("/readyz")
        return json.loads(found[1]) if found is not None and found[0] == 200 else None

    def page(self, path: str) -> tuple[int, str] | None:
        """Status and body of a page; None while nothing answers."""
        listening = self.lines("listening")
        if not listening:
            return None
        address = f"http://127.0.0.1:{listening[-1]['port']}{path}"
        try:
            with urllib.request.urlopen(address, timeout=2) as found:
                return int(found.status), found.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return None
