"""Whatever a user gets wrong: one clear line with the remedy, a non-zero exit, no traceback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from stream import topics
from stream.cli import COMMANDS, app
from stream.config import load
from tests.integration.world import innerloop

EVENT = (
    '{"event": "interaction", "id": "a", "timestamp": 1700000000000, '
    '"user": "u", "item": "i", "type": "click"}\n'
)
FILES = {
    "good.jsonl": EVENT,
    "bad.jsonl": EVENT + "{oops\n",
    "broken.yaml": "batch: [1\n",
    "text.yaml": "just words\n",
    "list.yaml": "- batch\n",
    "unknown.yaml": "batch:\n  max_event: 5\n",
    "type.yaml": "batch:\n  max_events: many\n",
    "section.yaml": "batch: 5\n",
}


@dataclass(frozen=True)
class Case:
    """A mistake: arguments with {names} of the place, exit code, and what the line says."""

    arguments: str
    code: int
    said: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


HELP, SETTING = "See `innerloop", "--print-config"
WORKER = "worker -b {broker} --prefix {prefix} --http-port 0 --state-dir {folder}/state/{case}"
CASES = {
    # what is typed
    "unknown command": Case("wrok", 2, ("'wrok'", HELP)),
    "unknown option": Case("worker --prot 5", 2, ("--prot", HELP)),
    "option of a wrong type": Case("worker --http-port many", 2, ("--http-port", HELP)),
    "missing argument": Case("inspect", 2, ("'user'", HELP)),
    "load without a topic": Case("load {folder}/good.jsonl", 2, ("--topic events",)),
    "no time": Case("load x -t events --from soon", 2, ("--from soon", "2013-03-01")),
    "replay without a choice": Case("replay", 2, ("--verify", "--from-events")),
    "no duration": Case("train -e x -i x -o x --budget soon", 2, ("'soon'", "30s")),
    # settings
    "unknown setting": Case("worker -s batch.max_event=5", 2, ("perhaps max_events", SETTING)),
    "unknown setting in a file": Case("worker -c {folder}/unknown.yaml", 2, ("batch.max_event",)),
    "unknown section in a variable": Case(
        "worker",
        2,
        ("INNERLOOP_BACTH__LINGER_MS", "perhaps batch"),
        {"INNERLOOP_BACTH__LINGER_MS": "5"},
    ),
    "wrong type": Case("worker -s batch.max_events=many", 2, ("batch.max_events", "integer")),
    "wrong type in a file": Case("worker -c {folder}/type.yaml", 2, ("batch.max_events",)),
    "wrong type in a variable": Case(
        "worker", 2, ("batch.max_events", "integer"), {"INNERLOOP_BATCH__MAX_EVENTS": "many"}
    ),
    "variable that is no JSON": Case(
        "worker", 2, ("messages", "JSON"), {"INNERLOOP_MESSAGES": "{"}
    ),
    "value for a section": Case("worker -c {folder}/section.yaml", 2, ("batch", "section")),
    "value and section": Case("worker -s a=1 -s a.b=2", 2, ("a.b", "either")),
    "section and value": Case("worker -s a.b=2 -s a=1", 2, ("a: ", "either")),
    "override without a value": Case("worker -s batch.max_events", 2, ("section.name=value",)),
    "override that is no YAML": Case("worker -s batch.max_events=[1", 2, ("quotes",)),
    "bad YAML": Case("worker -c {folder}/broken.yaml", 2, ("broken.yaml line 2",)),
    "YAML without settings": Case("worker -c {folder}/text.yaml", 2, ("text.yaml", SETTING)),
    "YAML with a list": Case("worker -c {folder}/list.yaml", 2, ("list.yaml", SETTING)),
    "binary YAML": Case("worker -c {folder}/binary", 2, ("binary is not YAML",)),
    "missing YAML": Case("worker -c {folder}/none.yaml", 2, ("none.yaml", "Check the path")),
    "missing YAML in a variable": Case(
        "worker", 2, ("none.yaml", "Check the path"), {"INNERLOOP_CONFIG": "none.yaml"}
    ),
    # broker and topics
    "no broker": Case("topics check -b 127.0.0.1:1", 3, ("127.0.0.1:1", "`innerloop kafka`")),
    "no broker for a worker": Case("worker -b 127.0.0.1:1", 3, ("`innerloop kafka`",)),
    "missing topic": Case(
        "load {folder}/good.jsonl -t events -b {broker} --prefix no.",
        3,
        ("no.events", "innerloop topics create"),
    ),
    "wrong topic name": Case("topics create -b {broker} --prefix ?", 1, ("?events", "invalid")),
    "unknown user": Case("inspect eve -b {broker} --prefix {prefix}", 1, ("user eve", "--prefix")),
    "missing dead letter": Case(
        "dead-letters show 0:7 -b {broker} --prefix {prefix}", 1, ("0:7", "dead-letters list")
    ),
    # files
    "missing file": Case(
        "load {folder}/none.jsonl -t events -b {broker} --prefix {prefix}", 4, ("none.jsonl",)
    ),
    "bad line": Case(
        "load {folder}/bad.jsonl -t events -b {broker} --prefix {prefix}",
        4,
        ("bad.jsonl line 2", "--skip-bad"),
    ),
    "bad line in training": Case(
        "train -e {folder}/bad.jsonl -i {folder}/good.jsonl -o {folder}/model",
        4,
        ("line", "docs/messages.md"),
    ),
    # bundles
    "no bundle": Case(WORKER, 5, ("innerloop train", "--bundle")),
    "bundle that is a file": Case(WORKER + " --bundle {folder}/good.jsonl", 5, ("manifest.json",)),
    "damaged bundle": Case(WORKER + " --bundle {folder}/damaged", 5, ("damaged",)),
    # the machine
    "port taken": Case(
        WORKER.replace("port 0", "port {port}") + " --bundle {bundle}", 8, ("{port}", "--http-port")
    ),
    "port of the broker taken": Case("kafka --port {port}", 8, ("{port}", "--port")),
}


@dataclass(frozen=True)
class Place:
    """Where cases happen: a broker with topics, and a folder with files."""

    broker: str
    prefix: str
    folder: Path
    bundle: Path
    port: int

    def fill(self, text: str, case: int = 0) -> str:
        """The text with the names of this place in it, and the number of the case."""
        return text.format(**vars(self), case=case)


@pytest.fixture(scope="module")
def place(broker: str, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Topics that are right, files that are wrong, and a port that is taken."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "binary").write_bytes(b"\xff\xfe\x00\x01")
    shutil.copytree(bundle, folder / "damaged")
    (folder / "damaged" / "meta.safetensors").write_bytes(b"short")
    prefix = f"bad-{time.time_ns():x}."
    changes = {"kafka.bootstrap_servers": broker, "kafka.prefix": prefix, "kafka.partitions": 1}
    topics.create(load(None, changes))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield Place(broker, prefix, folder, bundle, taken.getsockname()[1])


Finished = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def outcome(place: Place) -> Iterator[Callable[[str], Finished]]:
    """What becomes of a case; from the first one on all run, two at a time."""
    running: dict[str, Future[Finished]] = {}

    def of(name: str) -> Finished:
        for other in [name] if running else [name, *CASES]:
            if other not in running:
                case = CASES[other]
                arguments = place.fill(case.arguments, case=len(running)).split()
                running[other] = pool.submit(innerloop, *arguments, env=case.env)
        return running[name].result()

    pool = ThreadPoolExecutor(2)
    yield of
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_gives_one_clear_line(
    name: str, place: Place, outcome: Callable[[str], Finished]
) -> None:
    """The line names what is wrong and what to do; the exit code tells scripts."""
    case, found = CASES[name], outcome(name)
    lines = found.stderr.splitlines()
    assert len(lines) == 1, found.stderr
    assert lines[0].startswith("innerloop: ")
    assert found.returncode == case.code
    for part in case.said:
        assert place.fill(part) in lines[0]
    assert found.stdout == ""


# -- disks --------------------------------------------------------------------------------------


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    ("options", "said"), [("size=16k", "no space left"), ("ro", "Read-only file system")]
)
def test_a_disk_that_takes_nothing_is_named(
    place: Place, tmp_path: Path, options: str, said: str
) -> None:
    """A full and a read-only disk give one line that names the folder and another way."""
    with disk(tmp_path / "disk", options) as folder:
        flags = place.fill(WORKER).replace(f"{place.folder}/state", f"{folder}/state").split()
        found = innerloop(*flags, "--bundle", str(place.bundle))
    assert found.returncode == 6
    assert len(found.stderr.splitlines()) == 1
    assert said in found.stderr
    assert str(folder) in found.stderr
    assert "--state-dir" in found.stderr


# -- help and settings --------------------------------------------------------------------------


def test_help_shows_an_example() -> None:
    """Every command's page ends with a line to copy; the first page says where to begin."""
    first = innerloop("--help")
    assert (first.returncode, first.stderr) == (0, "")
    assert "innerloop demo" in first.stdout
    letters = [f"dead-letters {name}" for name in ("list", "show", "send-back")]
    for name in (*COMMANDS, "topics create", "topics check", *letters):
        found = CliRunner().invoke(app, [*name.split(), "--help"])
        assert (found.exit_code, found.stderr) == (0, "")
        assert f"Example: innerloop {name}" in found.stdout


def test_version_names_what_it_stands_on() -> None:
    """The version of Innerloop comes first, then those of its parts."""
    found = innerloop("version")
    assert found.returncode == 0
    assert found.stdout.startswith("innerloop ")
    assert "torch" in found.stdout


def test_printed_settings_are_read_back(tmp_path: Path) -> None:
    """What --print-config prints is a file that gives the same settings."""
    first = innerloop("worker", "--print-config", "-s", "batch.max_events=7", "--prefix", "films.")
    path = tmp_path / "settings.yaml"
    path.write_text(first.stdout)
    again = innerloop("worker", "--print-config", "--config", str(path))
    assert again.stdout == first.stdout
    assert yaml.safe_load(again.stdout)["batch"]["max_events"] == 7


def test_flags_win_over_variables_over_files_over_defaults(tmp_path: Path) -> None:
    """Each source is overruled by the ones before it, setting by setting."""
    path = tmp_path / "settings.yaml"
    path.write_text(
        "kafka: {prefix: file., group: file, partitions: 3}\nbatch: {max_events: 3, linger_ms: 3}\n"
    )
    env = {
        "INNERLOOP_CONFIG": str(path),
        "INNERLOOP_KAFKA__PREFIX": "variable.",
        "INNERLOOP_KAFKA__GROUP": "variable",
        "INNERLOOP_BATCH__MAX_EVENTS": "2",
    }
    flags = ["--prefix", "flag.", "-s", "batch.max_events=1"]
    found = yaml.safe_load(innerloop("worker", "--print-config", *flags, env=env).stdout)
    kafka, batch = found["kafka"], found["batch"]
    assert (kafka["prefix"], kafka["group"], kafka["partitions"]) == ("flag.", "variable", 3)
    assert kafka["replication"] == 1
    assert (batch["max_events"], batch["linger_ms"]) == (1, 3)


def test_the_usual_broker_variable_is_read() -> None:
    """KAFKA_BOOTSTRAP_SERVERS counts where nothing of ours names a broker."""
    env = {"KAFKA_BOOTSTRAP_SERVERS": "there:1"}
    found = yaml.safe_load(innerloop("worker", "--print-config", env=env).stdout)
    assert found["kafka"]["bootstrap_servers"] == "there:1"
    found = yaml.safe_load(innerloop("worker", "--print-config", "-b", "here:2", env=env).stdout)
    assert found["kafka"]["bootstrap_servers"] == "here:2"
