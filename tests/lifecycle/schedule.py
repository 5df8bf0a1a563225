"""Retraining as operators have it: `innerloop monitor`, its crontab and its command."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from stream.config import Settings
from stream.monitor.processes import Processes
from stream.monitor.runs import Run, decode
from tests.integration.world import Monitor, Topics

LEAD_S = 45.0
"""From here to the strike at the least: the monitor starts, and freshness is measured before."""


class Schedule:
    """A monitor whose crontab strikes once; a context manager that leaves no process behind."""

    def __init__(
        self, settings: Settings, folder: Path, steps: int, train: str, promote: str
    ) -> None:
        """The command is the default with these options of `train` and `promote` after its own.

        `steps` are those of the outer loop, a setting that the monitor hands on.
        """
        own = settings.model_copy(
            update={
                "learning": settings.learning.model_copy(update={"steps": steps}),
                "log": settings.log.model_copy(update={"level": "info"}),
            }
        )
        self.strike = datetime.fromtimestamp((time.time() + LEAD_S) // 60 * 60 + 60, UTC)
        cron = f"{self.strike.minute} {self.strike.hour} * * *"
        training, judging, cleaning = settings.monitor.retrain_command.split(" && ")
        command = f"{training} {train} && {judging} {promote} && {cleaning}"
        self._monitor = Monitor(own, folder, retrain_cron=cron, retrain_command=command)
        self._folder = folder
        self._topics = Topics(settings)

    def __enter__(self) -> Schedule:
        self._monitor.start()
        self._monitor.wait_until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self._monitor.kill()
        self._topics.close()
        processes = Processes(self._folder)
        for run in self._folder.glob("runs/*"):
            processes.kill(run.name)

    def ended(self) -> Run | None:
        """The run by its message on `retraining`, once it has ended."""
        found = [run for record in self._topics.records("retraining") if (run := decode(record))]
        return found[-1] if found and found[-1].status != "running" else None

    def counted(self, run: Run) -> bool:
        """Whether the monitor's metrics and its page say of the run what the message says."""
        shown = self._monitor.status().get("retraining") or {}
        total = f'innerloop_retrainings_total{{outcome="{run.status}"}} 1.0'
        told = (shown.get("status"), shown.get("verdict")) == (run.status, run.verdict)
        return told and total in self._monitor.get("/metrics")[1]

    def log(self) -> str:
        """What the monitor has said."""
        return self._monitor.log()
