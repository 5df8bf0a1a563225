"""Scheduled retraining: begins when the crontab says so, never twice, and tells how it ended."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

import msgspec
import yaml

from stream import log
from stream.config import Settings
from stream.errors import GateRefused
from stream.monitor.alarms import remedy
from stream.monitor.processes import LOG, Processes
from stream.monitor.runs import FAILED, Run, Status

_log = log.get("retraining")

GRACE_S = 30.0
"""Between the request to end a run that takes too long and its end by force."""


_RUN = "{run}"
"""In the command: the folder of the run."""


class ClaimsPort(Protocol):
    """`stream.monitor.runs.Claims`, or a twin of it."""

    def newest(self) -> Run | None:
        """The newest run of any monitor."""

    def claim(self, run: Run, *, going: bool) -> bool:
        """Write a run that begins, unless another is under way."""

    def tell(self, run: Run) -> None:
        """Write how a run has ended."""


class Retraining:
    """The retraining of one monitor. `resume`, `begin` and `tick` do I/O, one at a time."""

    def __init__(
        self,
        settings: Settings,
        monitor: str,
        claims: ClaimsPort,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._monitor = monitor
        self._claims = claims
        self._clock = clock
        self._processes = Processes(settings.monitor.dir.absolute())
        self._mine: Run | None = None  # goes on, or its end has not been told
        self._asked_at: float | None = None  # when it was asked to end
        self.newest: Run | None = None
        self.outcomes: Counter[Status] = Counter()

    def resume(self) -> None:
        """At the start: find out whether a run of this monitor goes on, or how it has ended."""
        self.newest = self._claims.newest()
        if self.newest and self.newest.monitor == self._monitor and self.newest.status == "running":
            self._mine = self.newest

    def begin(self) -> bool:
        """Begin a run unless one is under way, here or with another monitor."""
        run = self._planned()
        going = self._mine is not None or self._processes.going()
        if going or not self._claims.claim(run, going=False):
            _log.warning("not begun", why="a run is under way")
            return False
        self._processes.start(run.run, run.command, self._config())
        self._mine, self.newest, self._asked_at = run, run, None
        _log.info("begun", run=run.run, command=run.command, output=run.log)
        return True

    def tick(self) -> None:
        """End a run that takes too long; tell how one has ended."""
        run = self._mine
        if run is not None and self._processes.going():
            self._hurry(run)
        elif run is not None:
            self._finish(run)

    def _planned(self) -> Run:
        now = self._clock()
        name = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
        folder = self._processes.folder(name)
        limit = 3_600 * self._settings.monitor.retrain_timeout_hours
        return Run(
            run=name,
            status="running",
            monitor=self._monitor,
            command=self._settings.monitor.retrain_command.replace(_RUN, shlex.quote(str(folder))),
            started_at=int(1000 * now),
            ends_by=int(1000 * (now + limit + 2 * GRACE_S)),
            log=str(folder / LOG),
        )

    def _config(self) -> str:
        return yaml.safe_dump(self._settings.model_dump(mode="json"), allow_unicode=True)

    def _too_long(self, run: Run) -> bool:
        return self._clock() >= run.ends_by / 1000 - 2 * GRACE_S

    def _hurry(self, run: Run) -> None:
        """Ask a run that takes too long to end, then end it."""
        if not self._too_long(run):
            return
        if self._asked_at is None:
            self._asked_at = self._clock()
            self._processes.end(run.run)
        elif self._clock() >= self._asked_at + GRACE_S:
            self._processes.kill(run.run)

    def _finish(self, run: Run) -> None:
        ended = self._processes.ended(run.run)
        done = msgspec.structs.replace(
            run,
            status="timed_out" if self._asked_at is not None else _status(ended.exit_code),
            finished_at=int(1000 * self._clock()),
            exit_code=ended.exit_code,
            verdict=ended.verdict,
        )
        self._claims.tell(done)
        self._mine, self.newest = None, done
        self.outcomes[done.status] += 1
        _report(done)


def _status(exit_code: int | None) -> Status:
    if exit_code == GateRefused.exit_code:
        return "refused"
    return "succeeded" if exit_code == 0 else "failed"


def _report(run: Run) -> None:
    """The line about a run that has ended, with what to do next where it failed."""
    said = {"run": run.run, "exit_code": run.exit_code, "seconds": run.seconds}
    if run.status in FAILED:
        _log.error(run.status, **said, verdict=run.verdict, next=remedy(run))
    else:
        _log.info(run.status, **said, verdict=run.verdict)
