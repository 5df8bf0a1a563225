"""Runs of retraining: real processes, claims of two monitors, and what is told of the end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import jsonschema
import msgspec
import pytest
import typer
import yaml

from stream.cli import COMMANDS
from stream.config import Settings, load
from stream.errors import ConfigError
from stream.message_encoding import schema
from stream.monitor.alarms import remedy
from stream.monitor.app import check_cron
from stream.monitor.processes import Processes
from stream.monitor.retraining import GRACE_S, Retraining
from stream.monitor.runs import FAILED, KEY, Run, decode, encode, in_the_way
from stream.ports import Record
from tests.unit.monitoring import DAY

RUN = Run(
    run="one",
    status="running",
    monitor="monitor-1",
    command="true",
    started_at=int(1000 * DAY),
    ends_by=int(1000 * DAY) + 3_600_000,
    log="/runs/one/output.log",
)


class MemoryClaims:
    """`ClaimsPort` for monitors of one process, which ask one after the other."""

    def __init__(self) -> None:
        self.told: list[Run] = []

    def newest(self) -> Run | None:
        """The newest run of any monitor."""
        return self.told[-1] if self.told else None

    def claim(self, run: Run, *, going: bool) -> bool:
        """Write a run that begins, unless another is under way."""
        if in_the_way(self.newest(), run.monitor, going=going, now_ms=run.started_at):
            return False
        self.told.append(run)
        return True

    def tell(self, run: Run) -> None:
        """Write how a run has ended."""
        self.told.append(run)


class Place:
    """A monitor's folder, the claims it shares, and a clock that is moved by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.claims, self.now = folder, MemoryClaims(), DAY

    def retraining(self, command: str, name: str = "monitor-1") -> Retraining:
        """The retraining of a monitor that has just been started."""
        settings = self.settings(command, name)
        made = Retraining(settings, name, self.claims, lambda: self.now)
        made.resume()
        return made

    def settings(self, command: str, name: str = "monitor-1") -> Settings:
        """With this command, and a prefix that a child could not guess."""
        return load(
            None,
            {
                "monitor.dir": str(self.folder / name),
                "monitor.retrain_command": command,
                "kafka.prefix": "mine.",
            },
        )

    def ended(self, retraining: Retraining) -> Run:
        """Wait for the end of a run."""
        eventually(lambda: retraining.tick() or retraining.newest.status != "running")  # type: ignore[union-attr, func-returns-value]
        assert retraining.newest is not None
        return retraining.newest


def eventually(condition: Callable[[], object]) -> None:
    """Return when the condition is true."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place whose processes are gone afterwards."""
    made = Place(tmp_path)
    yield made
    for name in tmp_path.glob("*/runs/*"):
        Processes(name.parents[1]).kill(name.name)


def test_a_run_that_succeeds_is_told_with_its_last_line(place: Place) -> None:
    """Exit code, seconds, last line and output are in the record of the end."""
    retraining = place.retraining("echo begun; echo 'promoted: 20260301'; echo; sleep 0")
    assert retraining.begin()
    assert place.claims.told[-1].status == "running"
    place.now += 12
    run = place.ended(retraining)
    assert (run.status, run.exit_code, run.verdict) == ("succeeded", 0, "promoted: 20260301")
    assert run.seconds == 12.0
    assert Path(run.log).read_text().startswith("begun\n")
    assert place.claims.newest() == run
    assert retraining.outcomes == {"succeeded": 1}


def test_a_run_that_fails_says_what_to_do_next(place: Place) -> None:
    """The exit code of the command counts; what to do names the output to read."""
    retraining = place.retraining("false && echo never; echo 'no events' >&2; exit 4")
    retraining.begin()
    run = place.ended(retraining)
    assert (run.status, run.exit_code, run.verdict) == ("failed", 4, "no events")
    assert run.log in remedy(run)
    assert "the workers serve the model that they had" in remedy(run)


def test_a_refusal_of_the_gate_is_no_failure(place: Place) -> None:
    """The exit code of `innerloop promote` for it is an outcome of its own, without an alarm."""
    retraining = place.retraining("echo 'innerloop: The gate refused the model.'; exit 9")
    retraining.begin()
    run = place.ended(retraining)
    assert (run.status, run.exit_code) == ("refused", 9)
    assert retraining.outcomes == {"refused": 1}
    assert run.status not in FAILED


def test_the_command_gets_the_monitors_settings_and_a_folder(place: Place) -> None:
    """`{run}` is a new folder; settings come by a file that others cannot read and that goes."""
    command = 'stat -c %a "$INNERLOOP_CONFIG"; cp "$INNERLOOP_CONFIG" {run}/seen; command -v python'
    retraining = place.retraining(command)
    retraining.begin()
    run = place.ended(retraining)
    folder = Path(run.log).parent
    assert yaml.safe_load((folder / "seen").read_text())["kafka"]["prefix"] == "mine."
    assert Path(run.log).read_text().startswith("600\n")
    assert not (folder / "config.yaml").exists()


def test_never_two_at_once_on_one_machine(place: Place) -> None:
    """While a run goes on another does not begin, and afterwards it does."""
    retraining = place.retraining("while [ ! -e {run}/go ]; do sleep 0.01; done")
    assert retraining.begin()
    assert not retraining.begin()
    (Path(retraining.newest.log).parent / "go").touch()  # type: ignore[union-attr]
    place.ended(retraining)
    place.now += 60
    assert retraining.begin()


def test_a_monitor_that_was_killed_finds_its_run_again(place: Place) -> None:
    """The run goes on without it; the next start does not begin another and learns how it ends."""
    command = "while [ ! -e {run}/go ]; do sleep 0.01; done; echo done; exit 3"
    before = place.retraining(command)
    before.begin()
    del before
    after = place.retraining(command)
    assert not after.begin()
    after.tick()
    assert after.newest is not None
    assert after.newest.status == "running"
    (Path(after.newest.log).parent / "go").touch()
    run = place.ended(after)
    assert (run.status, run.exit_code, run.verdict) == ("failed", 3, "done")


def test_a_run_that_was_killed_is_no_success(place: Place) -> None:
    """Without an exit code it has failed; processes that it left behind still count as the run."""
    retraining = place.retraining("echo working; sleep 600")
    retraining.begin()
    assert retraining.newest is not None
    folder = Path(retraining.newest.log).parent
    eventually(lambda: (folder / "output.log").read_text())
    os.kill(int((folder / "process-group").read_text()), signal.SIGKILL)
    retraining.tick()
    assert retraining.newest.status == "running"
    Processes(folder.parents[1]).kill(folder.name)
    run = place.ended(retraining)
    assert (run.status, run.exit_code, run.verdict) == ("failed", None, "working")


def test_a_run_that_takes_too_long_is_ended_with_all_it_started(place: Place) -> None:
    """It is asked first, then made to; the record says that it timed out."""
    retraining = place.retraining("trap '' TERM; echo stubborn; while :; do sleep 0.05; done")
    retraining.begin()
    assert retraining.newest is not None
    eventually(Path(retraining.newest.log).read_text)
    place.now += 6 * 3_600
    retraining.tick()
    assert retraining.newest.status == "running"
    place.now += GRACE_S
    run = place.ended(retraining)
    assert (run.status, run.verdict) == ("timed_out", "stubborn")


def test_of_two_monitors_one_begins(place: Place) -> None:
    """The other one waits for the end of the run, and for the same minute to be over."""
    first = place.retraining("sleep 0", "monitor-1")
    second = place.retraining("sleep 0", "monitor-2")
    assert first.begin()
    assert not second.begin()
    place.ended(first)
    assert not second.begin()
    place.now += 3_600
    assert second.begin()


@pytest.mark.parametrize(
    ("newest", "monitor", "going", "after_s", "expected"),
    [
        (None, "monitor-1", False, 0, False),
        (RUN, "monitor-1", True, 60, True),
        (RUN, "monitor-1", False, 60, False),  # its own, and it is over: it was killed
        (RUN, "monitor-2", False, 3_599, True),
        (RUN, "monitor-2", False, 3_600, False),  # its monitor is gone; it cannot be alive
        (msgspec.structs.replace(RUN, status="failed"), "monitor-2", False, 10, True),
        (msgspec.structs.replace(RUN, status="failed"), "monitor-2", False, 120, False),
    ],
)
def test_what_is_in_the_way(
    newest: Run | None, monitor: str, going: bool, after_s: float, expected: bool
) -> None:
    """One's own run is known; another's counts until it must have ended."""
    now_ms = int(1000 * (DAY + after_s))
    assert in_the_way(newest, monitor, going=going, now_ms=now_ms) is expected


def test_records_of_runs_are_valid_and_strange_ones_are_nobodys_claim() -> None:
    """Every state of a run satisfies the schema; bytes that are no run are left alone."""
    for changes in ({}, {"status": "failed", "finished_at": 1, "exit_code": None, "verdict": "x"}):
        run = msgspec.structs.replace(RUN, **changes)
        jsonschema.Draft202012Validator(schema("retraining")).validate(json.loads(encode(run)))
        assert decode(Record("retraining", 0, 0, 0, KEY, encode(run))) == run
    for value in (None, b"{", b'{"run": 1}'):
        assert decode(Record("retraining", 0, 0, 0, KEY, value)) is None


def test_old_runs_are_cleared_but_for_what_they_made(place: Place) -> None:
    """Output of more than twenty runs is not kept; a bundle is left where it is."""
    processes = Processes(place.folder)
    for number in range(22):
        processes.start(f"run-{number:02}", "echo x", "{}")
        eventually(lambda: not processes.going())
        if number == 0:
            (processes.folder("run-00") / "bundle").mkdir()
    left = sorted(path.name for path in (place.folder / "runs").iterdir())
    assert left == ["run-00", *(f"run-{n:02}" for n in range(2, 22))]
    assert [path.name for path in processes.folder("run-00").iterdir()] == ["bundle"]


@pytest.mark.parametrize("schedule", ["every day", "61 * * * *", "* * * * * *", ""])
def test_a_crontab_that_is_none_is_refused(schedule: str) -> None:
    """The setting is named, with what it should look like."""
    with pytest.raises(ConfigError, match=r"monitor\.retrain_cron.*five fields"):
        check_cron(schedule)
    check_cron("*/5 3 * * mon-fri")


def test_the_default_command_is_one_that_this_version_has() -> None:
    """Every command and option of `monitor.retrain_command` exists: the first run can work."""
    *parts, cleaning = Settings().monitor.retrain_command.split("&&")
    assert cleaning.split() == ["rm", "-r", "{run}/bundle"]
    for part in parts:
        program, command, *arguments = shlex.split(part)
        assert (program, command in COMMANDS) == ("innerloop", True)
        module = import_module(f"stream.commands.{command}")
        known = {flag for p in typer.main.get_command(module.app).params for flag in p.opts}
        assert {a for a in arguments if a.startswith("--")} <= known
