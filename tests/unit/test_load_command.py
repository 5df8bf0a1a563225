"""`innerloop load` against librdkafka's mock cluster, which knows neither groups nor retention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import confluent_kafka
import pytest
from confluent_kafka.admin import AdminClient
from typer.testing import CliRunner

from stream import cli
from stream.errors import ConfigError, DataError, DeliveryFailed
from stream.messages import Interaction, encode
from stream.murmur2 import partition_of

NOW = 1_700_000_000_000
EVENTS = [
    Interaction(id=f"e{n}", timestamp=NOW + n, user=f"u{n}", item="i", type="click")
    for n in range(30)
]


@contextmanager
def mock_cluster(**properties: str) -> Iterator[str]:
    """The address of a mock cluster of one broker."""
    owner = confluent_kafka.Producer(
        {"test.mock.num.brokers": "1", "bootstrap.servers": "mock", **properties}
    )
    (broker,) = owner.list_topics(timeout=10).brokers.values()
    yield f"{broker.host}:{broker.port}"
    owner.flush(1)


@pytest.fixture(scope="module")
def mock() -> Iterator[str]:
    """One mock cluster for all tests; each has a prefix of its own."""
    with mock_cluster() as servers:
        yield servers


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A file of 30 events."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(encode(event) for event in EVENTS))
    return path


def run(*args: str) -> str:
    """What the command prints. Raises what it raises."""
    result = CliRunner().invoke(cli.app, ["load", *args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def read(servers: str, topic: str, count: int) -> list[confluent_kafka.Message]:
    """The first `count` records of a topic."""
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": servers, "group.id": "test", "auto.offset.reset": "earliest"}
    )
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([confluent_kafka.TopicPartition(topic, p, 0) for p in partitions])
    found: list[confluent_kafka.Message] = []
    while len(found) < count:
        batch = consumer.consume(count, 10)
        assert batch, f"{len(found)} of {count} records after 10 s"
        found.extend(message for message in batch if message.error() is None)
    consumer.close()
    return found


def test_a_file_arrives_whole_on_the_partitions_of_its_users(mock: str, log: Path) -> None:
    """Every line arrives unchanged, keyed and partitioned by user, stamped with now."""
    prefix = _topic(mock, "whole-")
    said = run(str(log), "--topic", "events", "-b", mock, "--prefix", prefix)
    assert "30 events to whole-events" in said
    found = read(mock, "whole-events", 30)
    assert {m.value() for m in found} == {encode(event) for event in EVENTS}
    for message in found:
        key = message.key()
        assert isinstance(key, bytes)
        assert message.partition() == partition_of(key, 4)
        assert message.timestamp()[1] > EVENTS[-1].timestamp + 86_400_000


def test_a_replay_of_part_of_a_file(mock: str, log: Path) -> None:
    """Speed, begin, end and limit work together."""
    prefix = _topic(mock, "part-")
    span = ["--from", str(NOW + 5), "--until", "2023-11-14T22:13:20.020Z", "--limit", "10"]
    said = run(str(log), "--topic", "events", "--speed", "2", *span, "-b", mock, "--prefix", prefix)
    assert said.startswith("10 events")
    assert {m.key() for m in read(mock, "part-events", 10)} == {
        f"u{n}".encode() for n in range(5, 15)
    }


def test_bad_lines_are_passed_over_when_asked(mock: str, log: Path) -> None:
    """--skip-bad loads the rest and says what it left out."""
    prefix = _topic(mock, "bad-")
    log.write_bytes(b"nonsense\n" + log.read_bytes())
    said = run(str(log), "-t", "events", "--skip-bad", "-b", mock, "--prefix", prefix)
    assert "line 1: The message is not JSON" in said
    assert "30 events to bad-events" in said
    assert "1 bad lines passed over" in said


def test_mistakes_give_one_line_and_a_remedy(mock: str, log: Path, tmp_path: Path) -> None:
    """No topic named, a bad time, a bad line, a missing file: each is said and fails."""
    prefix = _topic(mock, "mistakes-")
    to = ["--topic", "events", "-b", mock, "--prefix", prefix]
    with pytest.raises(ConfigError, match="--topic events or --topic items"):
        run(str(log), "-b", mock)
    with pytest.raises(ConfigError, match="--from yesterday"):
        run(str(log), "--from", "yesterday", *to)
    with pytest.raises(DataError, match="No such file"):
        run(str(tmp_path / "none.jsonl"), *to)
    log.write_bytes(log.read_bytes() + b"\nx")
    with pytest.raises(DataError, match=r"line 31.*30 messages before it were sent"):
        run(str(log), *to)


def test_messages_that_are_not_delivered_fail_the_load(log: Path) -> None:
    """A broker that does not confirm in time gives a non-zero exit that names a key."""
    hasty = "kafka.properties={message.timeout.ms: '100'}"
    with mock_cluster(**{"test.mock.broker.rtt": "400"}) as servers:
        prefix = _topic(servers, "slow-")
        with pytest.raises(DeliveryFailed, match="30 of 30, first key 'u0'") as raised:
            run(str(log), "-t", "events", "-b", servers, "--prefix", prefix, "-s", hasty)
    assert raised.value.exit_code != 0


def _topic(servers: str, prefix: str) -> str:
    """Asking the mock for a topic makes it, with 4 partitions."""
    client = AdminClient({"bootstrap.servers": servers})
    assert (
        len(client.list_topics(f"{prefix}events", timeout=10).topics[f"{prefix}events"].partitions)
        == 4
    )
    return prefix
