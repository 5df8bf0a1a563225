"""The image and the compose file agree with the settings and with each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream import kafka_jars
from stream.config import load
from stream.config_docs import settings, variable

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The compose file, through `docker compose config` where that can be run."""
    path = ROOT / "docker-compose.yml"
    if shutil.which("docker"):
        command = ["docker", "compose", "--file", str(path), "config"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        plugin_missing = re.search(
            "unknown (command|flag|shorthand)|is not a docker", result.stderr
        )
        if not plugin_missing:
            assert result.returncode == 0, result.stderr
            return dict(yaml.safe_load(result.stdout))
    return dict(yaml.safe_load(path.read_text()))


def published(service: dict[str, Any]) -> set[tuple[str, int, int]]:
    """Host address, host port and container port, of the short and of the long form."""
    return {
        (port["host_ip"], int(port["published"]), int(port["target"]))
        if isinstance(port, dict)
        else (port.split(":")[0], *map(int, port.split(":")[1:]))
        for port in service.get("ports", [])
    }


def image_environment() -> dict[str, str]:
    """What the image sets."""
    return dict(re.findall(r"(INNERLOOP_\w+)=(\S+)", DOCKERFILE))


def worker_environment(compose: dict[str, Any]) -> dict[str, str]:
    """What a worker's process sees of the image and of the compose file."""
    return image_environment() | dict(compose["services"]["worker"]["environment"])


def test_every_variable_is_a_setting(compose: dict[str, Any]) -> None:
    """A variable of the image or of the compose file that is no setting would do nothing."""
    known = {variable(name) for name in settings()}
    given = set(image_environment()) | {
        name
        for service in compose["services"].values()
        for name in service.get("environment", {})
        if name.startswith("INNERLOOP_")
    }
    assert given <= known
    assert "INNERLOOP_KAFKA__BOOTSTRAP_SERVERS" in given


def test_the_worker_accepts_its_variables(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables load as settings: state on the volume, metrics on the published port."""
    for name in [name for name in os.environ if name.startswith(("INNERLOOP_", "KAFKA_"))]:
        monkeypatch.delenv(name)
    for name, value in worker_environment(compose).items():
        monkeypatch.setenv(name, value)
    loaded = load()
    worker = compose["services"]["worker"]
    targets = {
        volume["target"] if isinstance(volume, dict) else volume.split(":")[1]
        for volume in worker["volumes"]
    }
    assert {str(loaded.state.dir), loaded.model.bundle} <= targets
    assert published(worker) == {("127.0.0.1", loaded.http.port, loaded.http.port)}
    assert loaded.http.host == "0.0.0.0"


def test_the_monitor_accepts_its_variables(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its id and runs on a volume of its own and answers on the published port."""
    for name in [name for name in os.environ if name.startswith(("INNERLOOP_", "KAFKA_"))]:
        monkeypatch.delenv(name)
    monitor = compose["services"]["monitor"]
    for name, value in (image_environment() | dict(monitor["environment"])).items():
        monkeypatch.setenv(name, value)
    loaded = load().monitor
    volume = monitor["volumes"][0]
    source, target = (
        (volume["source"], volume["target"]) if isinstance(volume, dict) else volume.split(":")
    )
    assert (source, loaded.dir.is_relative_to(target)) == ("monitor", True)
    assert published(monitor) == {("127.0.0.1", loaded.port, loaded.port)}
    assert loaded.host == "0.0.0.0"
    assert f":{loaded.port}/healthz" in monitor["healthcheck"]["test"][-1]


def test_kafka_is_reached_where_it_says(compose: dict[str, Any]) -> None:
    """Workers use the advertised inner listener, this machine the outer one."""
    services = compose["services"]
    listeners = services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    advertised = dict(listener.split("://") for listener in listeners)
    servers = services["worker"]["environment"]["INNERLOOP_KAFKA__BOOTSTRAP_SERVERS"]
    assert servers == advertised["INSIDE"] == "kafka:19092"
    assert advertised["OUTSIDE"] == "localhost:9092"
    assert published(services["kafka"]) == {("127.0.0.1", 9092, 9092)}


def test_ports_are_open_to_this_machine_alone(compose: dict[str, Any]) -> None:
    """Nothing is published on another address than 127.0.0.1."""
    hosts = {host for service in compose["services"].values() for host, *_ in published(service)}
    assert hosts == {"127.0.0.1"}


def test_one_kafka_version(compose: dict[str, Any]) -> None:
    """Containers run the Kafka that the tests run."""
    assert compose["services"]["kafka"]["image"] == f"apache/kafka:{kafka_jars.KAFKA_VERSION}"


def test_topics_come_before_the_worker(compose: dict[str, Any]) -> None:
    """Worker and monitor start after the topics were created, they after Kafka was ready."""
    services = compose["services"]
    needs = {name: service.get("depends_on", {}) for name, service in services.items()}
    assert services["topics"]["command"] == ["topics", "create"]
    assert needs["topics"]["kafka"]["condition"] == "service_healthy"
    for name in ("worker", "monitor"):
        assert needs[name]["topics"]["condition"] == "service_completed_successfully"


def test_one_image_of_the_projects_version(compose: dict[str, Any]) -> None:
    """All services but Kafka run the image that is named after the project's version."""
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    images = {s["image"] for name, s in compose["services"].items() if name != "kafka"}
    assert version
    assert images == {f"innerloop:{version[1]}"}


def test_the_image_runs_as_nobody_special() -> None:
    """The last stage ends with a numeric user, and probes the path that restarts a hung worker."""
    last = DOCKERFILE.rpartition("FROM ")[2]
    assert re.findall(r"^USER (.+)", last, re.M) == ["10001"]
    assert "/healthz" in last


def test_the_image_holds_what_it_copies() -> None:
    """Every path that is copied from the project exists and is let through by .dockerignore."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M)
    for path in " ".join(lines).split():
        assert (ROOT / path).exists(), path
        assert path.split("/")[0] in allowed, path
