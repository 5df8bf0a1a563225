"""What the demo runs on: a broker, topics of its own, and a worker as a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import orjson
import yaml

from stream import config, kafka_install, topics
from stream.config import Settings
from stream.embedded_kafka import EmbeddedKafka
from stream.errors import InnerloopError
from stream.kafka.admin import Admin

PARTITIONS = 4
_START_S = 60.0
_STOP_S = 15.0

# The worker ends when the demo does, however that ends: descriptor 0 is a pipe from it.
_WATCHED = """
exec 3<&0 </dev/null
(read -r _ <&3 || kill -TERM $$) >/dev/null 2>&1 &
exec 3<&-
exec "$@"
"""


class WorkerFailed(InnerloopError):
    """The worker of the demo ended. Read its log, which is named here."""

    exit_code = 9


@contextmanager
def broker() -> Iterator[Future[str]]:
    """Bootstrap servers, as soon as they answer: those of KAFKA_BOOTSTRAP_SERVERS, or a new one.

    A broker that was started is gone at the end, with its data.
    """
    servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    kafka = EmbeddedKafka()

    def start() -> str:
        if servers:
            return servers
        kafka_install.install(kafka_install.report)
        kafka.start()
        return kafka.bootstrap_servers

    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(start)
        try:
            yield starting
        finally:
            with contextlib.suppress(BaseException):
                starting.result()
            kafka.stop()


def settings_for(servers: str, bundle: Path, state: Path) -> Settings:
    """Settings of the demo's worker: topics of its own, the shipped data's actions."""
    from stream.datasets import messages_for
    from stream.loading import SHIPPED

    base = config.load()
    own = {
        "kafka.bootstrap_servers": servers,
        "kafka.prefix": f"demo-{uuid.uuid4().hex[:6]}.",
        "kafka.partitions": PARTITIONS,
        "messages": messages_for([SHIPPED], base.messages).model_dump(),
        "model.bundle": str(bundle),
        "state.dir": str(state),
        "http.port": 0,
        "log.format": "json",
    }
    return config.load(None, own)


@contextmanager
def own_topics(settings: Settings) -> Iterator[list[str]]:
    """The topics of these settings; they are gone at the end."""
    made = topics.create(settings)
    try:
        yield made
    finally:
        with contextlib.suppress(InnerloopError), Admin(settings.kafka) as admin:
            admin.delete(made)


class WorkerProcess:
    """`innerloop worker` in a process of its own."""

    def __init__(self, settings: Settings, folder: Path, log: Path) -> None:
        self.log = log
        path = folder / "worker.yaml"  # in a folder that only this user can read
        path.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
        command = [sys.executable, "-m", "stream", "worker", "--config", str(path)]
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _WATCHED, "innerloop-worker", *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_environment(),
            )
        self._port: int | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def check(self) -> None:
        """Raise `WorkerFailed` when it has ended by itself."""
        if self._process.poll() is not None:
            raise WorkerFailed(f"exit code {self._process.returncode}; its log is {self.log}")

    def wait_until_ready(self) -> None:
        """Return when it serves its partitions. Raises `WorkerFailed`."""
        deadline = time.monotonic() + _START_S
        while not self._ready():
            self.check()
            if time.monotonic() > deadline:
                raise WorkerFailed(f"not ready after {_START_S:.0f} s; its log is {self.log}")
            time.sleep(0.05)

    def get(self, path: str) -> bytes:
        """What its endpoint says at `path`; b"" while there is no answer or a refusal."""
        self._port = self._port or self._listening()
        if self._port is None:
            return b""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self._port}{path}", timeout=5
            ) as answer:
                return bytes(answer.read())
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return b""

    def stop(self) -> None:
        """End it as SIGTERM does; by force where that takes too long."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(b"done\n")
                self._process.stdin.close()

    def _ready(self) -> bool:
        answer = self.get("/readyz")
        return bool(answer) and bool(orjson.loads(answer).get("serving"))

    def _listening(self) -> int | None:
        """The port that its log names."""
        for line in self.log.read_bytes().splitlines():
            if b'"listening"' in line and line.startswith(b"{"):
                return int(orjson.loads(line)["port"])
        return None


def _environment() -> dict[str, str]:
    """Without variables that would win over the file with all settings."""
    ours = ("INNERLOOP_", "KAFKA_BOOTSTRAP_SERVERS")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@contextmanager
def worker(settings: Settings, folder: Path, log: Path) -> Iterator[WorkerProcess]:
    """A worker that is starting; it has ended when the context ends."""
    process = WorkerProcess(settings, folder, log)
    try:
        yield process
    finally:
        process.stop()
