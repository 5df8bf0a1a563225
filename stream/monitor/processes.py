"""A run of retraining as processes of this machine, which outlive the monitor that began them.

The processes of a run hold a lock on a file, which the kernel lets go of when the last one has
ended, however it ended. So a monitor that was killed and is back knows whether its run goes on, and
the run's folder tells how it ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from string import Template

from stream.state_dir import explained

LOG = "output.log"
CONFIG = "config.yaml"
_EXIT = "exit-code"
_GROUP = "process-group"
_LOCK = "retraining.lock"
_KEPT = 20
_TAIL_BYTES = 8_192
_LINE = 500

_SHELL = Template("( $command ); code=$$?; echo $$code > $exit; exit $$code")
"""Keeps the exit code where a monitor finds it that was not there at the end."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run has ended; the exit code is None where it was killed."""

    exit_code: int | None
    verdict: str


class Processes:
    """The runs of one monitor, one at a time; each has a folder in `runs`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None

    def folder(self, run: str) -> Path:
        """Where a run keeps its output, and what it makes."""
        return self._folder / "runs" / run

    def going(self) -> bool:
        """Whether a process of the last run is alive."""
        if self._child is not None:
            self._child.poll()
        lock = self._lock()
        if lock is not None:
            os.close(lock)
        return lock is None

    def start(self, run: str, command: str, config: str) -> None:
        """Begin a run; the shell and all that it starts hold the lock. Raises `StateError`.

        `config` is the text of the settings' file that the command reads; it may hold passwords.
        """
        folder = self.folder(run)
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CONFIG).touch(0o600)
            (folder / CONFIG).write_text(config)
            exit_code = shlex.quote(str(folder / _EXIT))
            self._spawn(folder, _SHELL.substitute(command=command, exit=exit_code))
        self._remove_old()

    def end(self, run: str) -> None:
        """Ask all processes of a run to end."""
        self._signal(run, signal.SIGTERM)

    def kill(self, run: str) -> None:
        """End all processes of a run."""
        self._signal(run, signal.SIGKILL)

    def ended(self, run: str) -> Ended:
        """How a run that goes on no more has ended. Its settings are removed."""
        folder = self.folder(run)
        (folder / CONFIG).unlink(missing_ok=True)
        try:
            exit_code: int | None = int((folder / _EXIT).read_text())
        except (OSError, ValueError):
            exit_code = None
        return Ended(exit_code=exit_code, verdict=_last_line(folder / LOG))

    def _spawn(self, folder: Path, script: str) -> None:
        lock = self._lock()
        if lock is None:
            raise BlockingIOError("a run is under way")
        try:
            with (folder / LOG).open("ab") as log:
                self._child = subprocess.Popen(
                    ["/bin/sh", "-c", script],
                    cwd=folder,
                    env=_environment(folder / CONFIG),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(lock,),
                    start_new_session=True,
                )
        finally:
            os.close(lock)
        (folder / _GROUP).write_text(f"{self._child.pid}\n")

    def _lock(self) -> int | None:
        """The lock, or None while a run has it."""
        with explained(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor

    def _signal(self, run: str, number: int) -> None:
        """To the whole group: its id is not given anew while one of its processes is alive."""
        if not self.going():
            return
        with contextlib.suppress(OSError, ValueError):
            os.killpg(int((self.folder(run) / _GROUP).read_text()), number)

    def _remove_old(self) -> None:
        """Keep the folders of the latest runs that hold no more than output."""
        old = sorted((self._folder / "runs").iterdir(), key=lambda path: path.name)[:-_KEPT]
        for folder in old:
            for name in (LOG, CONFIG, _EXIT, _GROUP):
                (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a bundle that may be serving
                folder.rmdir()


def _environment(config: Path) -> dict[str, str]:
    """The monitor's own, its settings in a file, `innerloop` and `python` of this installation."""
    ours = ("INNERLOOP_", "KAFKA_BOOTSTRAP_SERVERS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    return {**kept, "PATH": path, "INNERLOOP_CONFIG": str(config)}


def _last_line(path: Path) -> str:
    """The last line of a file that says anything, without what a terminal would obey."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = (line.strip() for line in reversed(lines))
    last = next((line for line in said if line), "")
    return "".join(c if c.isprintable() else "?" for c in last)[:_LINE]
