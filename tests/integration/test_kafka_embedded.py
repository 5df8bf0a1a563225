"""The broker for development: it starts without Java, cleans up, and never outlives its parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from stream import embedded_kafka, kafka_jars, kafka_node
from stream.config import load
from stream.embedded_kafka import EmbeddedKafka
from stream.errors import BrokerStartError, PortInUse
from stream.kafka.admin import Admin, NewTopic
from stream.kafka.producer import TransactionalProducer
from stream.kafka.reader import LogReader
from stream.ports import Message, TopicPartition


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Poll until it holds; the caller's next assert says what did not."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_three_brokers_replicate_survive_one_and_leave_nothing() -> None:
    """Replication 3 with min ISR 2 takes a transaction with one broker killed."""
    fast = {"broker.session.timeout.ms": "2000", "broker.heartbeat.interval.ms": "200"}
    with EmbeddedKafka(brokers=3, heap_mb=256, properties=fast) as kafka:
        pids, folder = kafka.pids, kafka.nodes[0].folder.parent
        settings = load(None, {"kafka.bootstrap_servers": kafka.bootstrap_servers})
        with Admin(settings.kafka) as admin:
            assert admin.cluster().brokers == 3
            admin.create([NewTopic("t", 1, 3, {"min.insync.replicas": "2"})])
            assert admin.replication(["t"]) == {"t": 3}
        producer = TransactionalProducer(settings, "w")
        producer.init()
        kafka.kill(3)
        producer.begin()
        producer.produce([Message("t", 0, b"k", b"v")])
        assert list(producer.commit().values()) == [0]
        producer.close()
        kafka.restart(3)
        with Admin(settings.kafka) as admin:
            assert admin.cluster().brokers == 3
        pids += kafka.pids
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not folder.exists()


START = """
import sys, time
from stream.embedded_kafka import EmbeddedKafka
kafka = EmbeddedKafka(heap_mb=256)
kafka.start()
print(kafka.pids[0], kafka.nodes[0].folder.parent, flush=True)
time.sleep(600)
"""


def test_notes_of_a_first_start_that_are_damaged_stop_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Java says so in its log and starts as if there were none."""
    notes = tmp_path / "classes.aot"
    notes.write_bytes(kafka_node.class_cache().read_bytes()[: 1 << 20])
    monkeypatch.setattr(kafka_node, "class_cache", lambda: notes)
    with EmbeddedKafka(heap_mb=256) as kafka:
        assert f"-XX:AOTCache={notes}" in psutil.Process(kafka.pids[0]).cmdline()
        kept = psutil.Process(kafka.pids[0]).open_files()
        assert not [file.path for file in kept if file.path == str(notes)]


def test_a_killed_parent_leaves_no_broker_and_no_folder() -> None:
    """kill -9 of the process that started it: broker and folder go."""
    with subprocess.Popen([sys.executable, "-c", START], stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        pid, folder = it.stdout.readline().split()
        it.kill()
    wait_for(lambda: not psutil.pid_exists(int(pid)) and not Path(folder).exists())
    assert not psutil.pid_exists(int(pid))
    assert not Path(folder).exists()


def test_the_command_keeps_data_across_starts_and_needs_no_java(tmp_path: Path) -> None:
    """`innerloop kafka --data` twice, no Java on the PATH: same cluster, topics still there."""
    seen = [run_command(tmp_path), run_command(tmp_path)]
    assert seen[0][0] == seen[1][0]
    assert seen == [(seen[0][0], False), (seen[0][0], True)]


def run_command(data: Path) -> tuple[str, bool]:
    """Start, make a topic, stop; returns the cluster id and whether the topic was there."""
    command = [sys.executable, "-m", "stream", "kafka", "--port", "0", "--data", str(data)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAVA", "KAFKA_"))}
    environment["PATH"] = str(Path(sys.executable).parent)
    with subprocess.Popen(
        [*command, "--heap", "256"], stdout=subprocess.PIPE, text=True, env=environment
    ) as it:
        assert it.stdout is not None
        servers = it.stdout.readline().split()[-1]
        with Admin(load(None, {"kafka.bootstrap_servers": servers}).kafka) as admin:
            cluster = admin.cluster()
            admin.create([NewTopic("kept", 1, 1, {})])
        it.send_signal(signal.SIGTERM)
        assert it.wait(20) == 0
    return cluster.id, "kept" in cluster.partitions


def test_a_taken_port_is_named() -> None:
    """The error names the port and the flag, before anything is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"{port}.*--port"):
            EmbeddedKafka(port=port).start()


def test_nobody_who_connects_is_given_the_port_of_a_broker_that_is_down() -> None:
    """Ports lie outside of the range from which the system takes those of clients."""
    ports = embedded_kafka._free_ports(50)
    assert len(set(ports)) == 50
    assert max(ports) < embedded_kafka._first_ephemeral_port()


def test_a_broker_that_cannot_start_names_its_log() -> None:
    """A property Kafka refuses: the error names a log that says why, and that is still there."""
    kafka = EmbeddedKafka(properties={"log.retention.bytes": "many"}, heap_mb=128)
    with pytest.raises(BrokerStartError, match=r"innerloop-broker-\w+\.log") as caught:
        kafka.start()
    log = Path(next(w for w in caught.value.detail.split() if w.endswith(".log")))
    assert "log.retention.bytes" in log.read_text()
    log.unlink()


def test_data_of_another_number_of_brokers_is_refused(tmp_path: Path) -> None:
    """A folder of three brokers is not one broker's."""
    for i in (1, 2, 3):
        (tmp_path / f"node-{i}").mkdir()
    with pytest.raises(BrokerStartError, match="--brokers 3"):
        EmbeddedKafka(data=tmp_path).start()


def test_the_kafka_command_starts_nothing_beside_a_given_broker(broker: str) -> None:
    """KAFKA_BOOTSTRAP_SERVERS is checked, said, and that is all."""
    done = subprocess.run(
        [sys.executable, "-m", "stream", "kafka"],
        env={**os.environ, "KAFKA_BOOTSTRAP_SERVERS": broker},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0
    assert "Nothing was started" in done.stdout


def test_jars_that_cannot_be_fetched_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network and no cache: one error that names the mirror setting and the folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("INNERLOOP_MAVEN_URL", "http://127.0.0.1:9/maven2")
    with pytest.raises(BrokerStartError, match="INNERLOOP_MAVEN_URL"):
        kafka_jars.classpath()


def test_a_damaged_jar_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository that hands out something else than what was pinned is not believed."""
    jar, _ = kafka_jars.pinned()[0]
    group, artifact, version = jar.split(":")
    home = tmp_path / "maven" / Path(*group.split(".")) / artifact / version
    home.mkdir(parents=True)
    (home / f"{artifact}-{version}.jar").write_bytes(b"not a jar")
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"],
        cwd=tmp_path / "maven",
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split("port ")[1].split()[0]
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("INNERLOOP_MAVEN_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(kafka_jars, "pinned", lambda: [(jar, "0" * 64)])
        with pytest.raises(BrokerStartError, match="checksum"):
            kafka_jars.fetch()
    finally:
        server.kill()
        server.wait()
        server.stdout.close() if server.stdout else None
    assert not list((tmp_path / "cache").rglob("*.jar"))


def test_a_transaction_that_a_crash_of_the_only_broker_left_open_is_ended() -> None:
    """It does not hold back for good who reads committed records."""
    with EmbeddedKafka(heap_mb=256) as kafka:
        servers = {"kafka.bootstrap_servers": kafka.bootstrap_servers}
        settings = load(None, {**servers, "kafka.transaction_timeout_ms": 1_000})
        with Admin(settings.kafka) as admin:
            admin.create([NewTopic("t", 1, 1, {})])
        producer = TransactionalProducer(settings, "w")
        producer.init()
        producer.begin()
        producer.produce([Message("t", 0, b"k", b"v")])
        producer._producer.flush(10)
        kafka.kill(1)
        producer.hurry()
        kafka.restart(1)
        again = TransactionalProducer(settings, "w")
        again.init()
        reader, at = LogReader(settings.kafka), TopicPartition("t", 0)
        batches = reader.read({at: 0}, reader.end_offsets([at]))
        ended: list[bool] = []
        wait_for(lambda: ended.append(next(batches, None) is None) or ended[-1])
        assert ended[-1], "the transaction is still open"
        for end in (reader, producer, again):
            end.close()
