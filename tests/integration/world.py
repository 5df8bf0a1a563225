"""A small real world for integration tests: a bundle with a real ONNX encoder, and processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import orjson
import torch
import yaml

from adapters import backbone
from adapters.backbone import Backbone, BertShape, SentenceEncoder
from export import bundle as bundles
from export import parity, to_onnx
from export.bundle import Bundle, EncoderEntry, Manifest, Window
from export.encoder import OnnxEncoder
from export.parity import Probe
from stream.config import Settings
from stream.kafka.producer import BulkProducer
from stream.kafka.reader import Tail
from stream.message_encoding import encode
from stream.message_types import Event, Item
from stream.ports import Record
from stream.releases import Release, Role, encode_release
from stream.testing_worker import NOW, item, untrained_model
from tests import exports

FILMS = [
    *(item(f"h{i}", f"Night of the Haunted House {i}", category=["Horror"]) for i in range(12)),
    *(item(f"c{i}", f"Merry Wedding Party {i}", category=["Comedy"]) for i in range(12)),
    *(item(f"s{i}", f"Starship Galaxy Wars {i}", category=["Sci-Fi"]) for i in range(12)),
]

PATIENCE = 60.0
"""Seconds that a condition may take to come true on a busy machine."""

T = TypeVar("T")


# -- the model ----------------------------------------------------------------------------------


def small_bert() -> Backbone:
    """One layer with random weights and the real tokenizer."""
    tokenizer = backbone.default_folder() / "tokenizer.json"
    torch.manual_seed(3)
    shape = BertShape(
        vocabulary=30522,
        positions=64,
        token_types=2,
        layers=1,
        hidden=16,
        heads=2,
        inner=32,
        epsilon=1e-12,
    )
    return Backbone(
        module=SentenceEncoder(shape).eval(),
        tokenizer=backbone.tokens.load_tokenizer(tokenizer, 64),
        tokenizer_file=tokenizer,
        max_length=64,
        dim=16,
        sha="7" * 64,
    )


def save_bundle(
    folder: Path, settings: Settings, films: Sequence[Item] = FILMS, **changes: Any
) -> Bundle:
    """An untrained model that knows `films`, exported, checked and saved to `folder` / bundle.

    `changes` are those of `untrained_model`.
    """
    bert = small_bert()
    files = to_onnx.cached(bert, exports.folder(folder / "encoders"))
    encoder = OnnxEncoder(files, device="cpu", threads=1)
    texts = tuple(f"film number {n}" for n in range(12))
    expected = backbone.encode(bert, texts).numpy()
    meta, known = untrained_model(films, settings, encoder=encoder, **changes)
    manifest = Manifest(
        format_version=bundles.FORMAT_VERSION,
        name="small",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        window=Window(first=NOW - 1e6, last=NOW - 86_400.0, events=1, users=1, items=len(films)),
        config=meta.config.to_dict(),
        actions={name: rule.model_dump() for name, rule in settings.messages.actions.items()},
        encoder=EncoderEntry(sha=files.sha, dim=files.dim, max_length=files.max_length),
        parity=parity.compare(expected, encoder.encode(texts)),
    )
    bundle = Bundle(
        manifest=manifest,
        meta=meta,
        items=known,
        encoder=files,
        probe=Probe(texts=texts, vectors=expected),
    )
    return bundles.save(bundle, str(folder / "bundle"))


# -- processes ----------------------------------------------------------------------------------


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a user's shell: without settings of ours, with compiled modules kept."""
    ours = ("INNERLOOP_", "KAFKA_BOOTSTRAP_SERVERS", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "100", **(extra or {})}


def innerloop(
    *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "stream", *arguments],
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Worker:
    """`innerloop worker` in a process of its own; a context manager that leaves none behind."""

    command = "worker"

    def __init__(self, settings: Settings, bundle: Path, state: Path) -> None:
        changes = {
            "model": settings.model.model_copy(update={"bundle": str(bundle)}),
            "state": settings.state.model_copy(update={"dir": state}),
            "http": settings.http.model_copy(update={"port": 0}),
        }
        self._prepare(settings.model_copy(update=changes), state)

    def _prepare(self, settings: Settings, state: Path) -> None:
        """Write the settings beside the folder of the process."""
        log = settings.log.model_copy(update={"format": "json"})
        own = settings.model_copy(update={"log": log}).model_dump(mode="json")
        self.settings, self.state = settings, state
        self._config = state.with_suffix(".yaml")
        self._config.write_text(yaml.safe_dump(own))
        self._log = state.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def start(self) -> None:
        """Begin to run; `wait_until_ready` says when it serves."""
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stream", self.command, "--config", str(self._config)],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self._port = 0

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def terminate(self) -> tuple[int, float]:
        """SIGTERM: exit code, and seconds until it had ended."""
        assert self._process is not None
        began = time.monotonic()
        self._process.terminate()
        code = self._process.wait(PATIENCE)
        return code, time.monotonic() - began

    def wait_until_ready(self) -> None:
        """Return when every partition it was given is served."""
        eventually(lambda: self.get("/readyz")[0] == 200, self.log)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page of its endpoint; 0 while nothing listens."""
        assert self._process is not None
        assert self._process.poll() is None, f"the worker has ended:\n{self.log()}"
        self._port = self._port or self._listening()
        if not self._port:
            return 0, ""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=5) as page:
                return page.status, page.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ready(self) -> dict[str, Any]:
        """What /readyz says."""
        details: dict[str, Any] = orjson.loads(self.get("/readyz")[1])
        return details

    def log(self) -> str:
        """Everything it wrote since its start."""
        return self._log.read_text()

    def _listening(self) -> int:
        for line in self.log().splitlines():
            if line.startswith("{") and '"listening"' in line:
                with contextlib.suppress(orjson.JSONDecodeError):  # half a line
                    return int(orjson.loads(line)["port"])
        return 0


class Monitor(Worker):
    """`innerloop monitor` in a process of its own, on any free port."""

    command = "monitor"

    def __init__(self, settings: Settings, folder: Path, **changes: Any) -> None:
        """`changes` are settings of `monitor`."""
        update = {"dir": folder, "port": 0, "lag_s": 0.5, **changes}
        monitor = settings.monitor.model_copy(update=update)
        self._prepare(settings.model_copy(update={"monitor": monitor}), folder)

    def wait_until_ready(self) -> None:
        """Return when it follows every partition."""
        wanted = range(self.settings.kafka.partitions)
        eventually(lambda: self.status().get("partitions") == list(wanted), self.log)

    def status(self) -> dict[str, Any]:
        """What /status says; nothing while it does not answer."""
        code, body = self.get("/status")
        return dict(orjson.loads(body)) if code == 200 else {}

    def figure(self, by: str, name: str) -> dict[str, Any]:
        """The figures of the lists of a strategy, cohort or model."""
        rows = self.status().get("figures", {}).get(by, [])
        return next((dict(row) for row in rows if row["name"] == name), {})


# -- topics -------------------------------------------------------------------------------------


class Topics:
    """What platforms and readers do: send events and items, read committed lists."""

    def __init__(self, settings: Settings) -> None:
        self._kafka = settings.kafka
        self._producer = BulkProducer(settings)
        self._tails: dict[str, Tail] = {}
        self._read: dict[str, list[Record]] = {}

    def close(self) -> None:
        """Let go of the connections."""
        self._producer.close()
        for tail in self._tails.values():
            tail.close()

    def send(self, *messages: Event | Item) -> None:
        """Produce events by user and items by item; they are in their topics on return."""
        for message in messages:
            role, key = ("items", message.item) if isinstance(message, Item) else ("events", "")
            name = key or message.user  # type: ignore[union-attr]
            self._producer.produce(self._kafka.topic(role), name.encode(), encode(message))
        self._producer.flush()
        assert not self._producer.failures

    def delete_item(self, name: str) -> None:
        """Produce a null for an item."""
        self.send_raw("items", name.encode(), None)

    def send_raw(self, role: str, key: bytes, value: bytes | None) -> None:
        """Produce any bytes to the partition of the key."""
        self._producer.produce(self._kafka.topic(role), key, value)
        self._producer.flush()

    def release(
        self, bundle: Path, *, version: str = "", role: Role = "champion", share: float = 1.0
    ) -> str:
        """Name a bundle on `models`; its version, which is read from its manifest if not given."""
        if not version:
            manifest = orjson.loads((bundle / bundles.MANIFEST_FILE).read_bytes())
            version = manifest["version"]
        made = Release(
            role=role,
            version=version,
            bundle=str(bundle),
            share=share,
            reason="gate" if role == "champion" else "canary",
            published_at=int(time.time() * 1000),
        )
        self.send_raw("models", *encode_release(made))
        return version

    def records(self, role: str, settle: float = 0.02) -> list[Record]:
        """Committed records of a topic so far, until none came for `settle` seconds.

        A first look goes to the end of the topic, or up to an open transaction.
        """
        if role not in self._tails:
            self._tails[role] = Tail(self._kafka, self._kafka.topic(role))
            self._read[role] = []
        tail, read = self._tails[role], self._read[role]
        patience = time.monotonic() + 3
        while (found := tail.poll(timeout=settle)) or not tail.caught_up():
            read += found
            if not found and time.monotonic() > patience:
                break
        return read

    def lists(self, user: str) -> list[dict[str, Any]]:
        """All lists of a user so far, oldest first."""
        key = user.encode()
        found = [r.value for r in self.records("recommendations") if r.key == key]
        return [orjson.loads(value) for value in found if value is not None]

    def learned(self, *events: Event) -> None:
        """Return when each of these events, the last of their users, has caused a list."""
        wanted = {event.id for event in events}

        def missing() -> set[str]:
            values = (r.value for r in self.records("recommendations") if r.key != b"_cold")
            causes = (orjson.loads(value)["caused_by"] for value in values if value)
            return wanted - {cause["event_id"] for cause in causes if cause is not None}

        eventually(lambda: not missing(), lambda: f"without a list: {missing()}")

    def list_after(self, event_id: str, user: str) -> dict[str, Any]:
        """The list that this event caused, as soon as it is there."""

        def caused() -> dict[str, Any] | None:
            found = (x for x in self.lists(user) if x["caused_by"] is not None)
            return next((x for x in found if x["caused_by"]["event_id"] == event_id), None)

        return eventually(caused)


def eventually(
    condition: Callable[[], T], explain: Callable[[], str] = str, patience: float = PATIENCE
) -> T:
    """The first value of `condition` that counts as true; fails after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not so after {patience:.0f} s {explain()}"
        time.sleep(0.02)
    return value
