"""What only a real broker shows: its errors in our words, and topics as they should be."""

from __future__ import annotations

import random
import socket
import time

import pytest

from stream import topics
from stream.config import Settings, load
from stream.errors import AccessDenied, BrokerUnavailable, ConfigError, TopicError
from stream.kafka import properties
from stream.kafka.admin import Admin, NewTopic
from stream.kafka.producer import BulkProducer
from stream.kafka.reader import LogReader
from stream.murmur2 import partition_of
from stream.ports import TopicPartition


def with_kafka(settings: Settings, **changes: object) -> Settings:
    """The same settings with others of the `kafka` section."""
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update=changes)})


def test_a_missing_broker_is_named_within_seconds() -> None:
    """Nothing listens there: one clear error, soon."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = load(None, {"kafka.bootstrap_servers": address})
        started = time.monotonic()
        with Admin(settings.kafka) as admin, pytest.raises(BrokerUnavailable, match=address):
            admin.cluster(timeout=2.0)
        assert time.monotonic() - started < 4.0


def test_a_setting_librdkafka_does_not_know_is_a_clear_error() -> None:
    """Extra properties reach the library, and its complaint reaches the user."""
    settings = load(None, {"kafka.properties": {"no.such.property": "1"}})
    with pytest.raises(Exception, match=r"no\.such\.property"):
        Admin(settings.kafka)


def test_a_property_that_promises_rest_on_is_refused() -> None:
    """The message names the property and what to do; the others reach librdkafka over our own."""
    for name, remedy in (("isolation.level", "leave it out"), ("group.id", "set kafka.group")):
        with pytest.raises(ConfigError, match=f"{name}: .*{remedy}"):
            load(None, {"kafka.properties": {name: "any"}})
    settings = load(None, {"kafka.properties": {"linger.ms": "7", "fetch.wait.max.ms": "9"}})
    assert properties.transactional_producer(settings, "id")["linger.ms"] == "7"
    assert properties.group_consumer(settings.kafka, "one", "error")["fetch.wait.max.ms"] == "9"
    assert properties.tail(settings.kafka)["fetch.wait.max.ms"] == "9"


def test_refused_credentials_are_not_called_a_missing_broker(kafka_settings: Settings) -> None:
    """A broker that speaks no TLS: the error is about security, not about reachability."""
    settings = with_kafka(kafka_settings, properties={"security.protocol": "ssl"})
    with Admin(settings.kafka) as admin, pytest.raises(AccessDenied):
        admin.cluster(timeout=3.0)


def test_topics_are_created_once_and_pass_the_check(kafka_settings: Settings) -> None:
    """`create` makes all seven, a second call none, and `check` finds nothing."""
    assert len(topics.create(kafka_settings)) == 8
    assert topics.create(kafka_settings) == []
    assert topics.check(kafka_settings) == []
    assert topics.require(kafka_settings) == 4


def test_the_worker_is_told_what_is_missing(kafka_settings: Settings) -> None:
    """`require` names a topic and the command that makes it."""
    with pytest.raises(TopicError, match=r"events.*innerloop topics create"):
        topics.require(kafka_settings)


def test_new_topics_follow_the_partition_count_of_existing_ones(kafka_settings: Settings) -> None:
    """A count other than the configured one is right as long as all four agree."""
    with Admin(kafka_settings.kafka) as admin:
        admin.create([NewTopic(kafka_settings.kafka.topic("events"), 3, 1, {})])
    topics.create(kafka_settings, alter=True)
    assert topics.check(kafka_settings) == []
    assert topics.require(kafka_settings) == 3


def test_topics_that_disagree_are_refused_without_offering_growth(
    kafka_settings: Settings,
) -> None:
    """Two counts among the four: create and check both refuse, neither proposes more partitions."""
    kafka = kafka_settings.kafka
    with Admin(kafka) as admin:
        admin.create([NewTopic(kafka.topic("events"), 3, 1, {})])
        admin.create([NewTopic(kafka.topic("state"), 2, 1, {})])
    with pytest.raises(TopicError, match="prefix"):
        topics.create(kafka_settings)
    problem = next(p for p in topics.check(kafka_settings) if p.setting == "partitions")
    assert (problem.topic, problem.found) == (kafka.topic("state"), "2")


def test_wrong_settings_are_found_and_corrected_on_demand(kafka_settings: Settings) -> None:
    """Every broken rule is named with what it must be; `alter` sets exactly these."""
    kafka = kafka_settings.kafka
    wrong = {"cleanup.policy": "delete", "segment.ms": "604800000"}
    with Admin(kafka) as admin:
        admin.create([NewTopic(kafka.topic("state"), 4, 1, {**wrong, "retention.ms": "-1"})])
        admin.create([NewTopic(kafka.topic("events"), 4, 1, {"max.message.bytes": "4000000"})])
    topics.create(kafka_settings)
    found = {(p.topic.removeprefix(kafka.prefix), p.setting) for p in topics.check(kafka_settings)}
    assert found == {
        ("state", "cleanup.policy"),
        ("state", "segment.ms"),
        ("state", "max.compaction.lag.ms"),
        ("dead-letters", "max.message.bytes"),
    }
    topics.create(kafka_settings, alter=True)
    assert topics.check(kafka_settings) == []
    with Admin(kafka) as admin:
        assert admin.configs([kafka.topic("state")])[kafka.topic("state")]["retention.ms"] == "-1"


def test_fewer_copies_than_wanted_are_a_problem(kafka_settings: Settings) -> None:
    """Replication below the configured one is found."""
    topics.create(kafka_settings)
    problems = topics.check(with_kafka(kafka_settings, replication=3, min_insync_replicas=2))
    assert {p.setting for p in problems} == {"replication", "min.insync.replicas"}


def test_loading_places_every_key_where_the_java_clients_would(kafka_settings: Settings) -> None:
    """The bulk producer's partition is that of murmur2, and nothing fails silently."""
    topics.create(kafka_settings)
    topic = kafka_settings.kafka.topic("events")
    producer = BulkProducer(kafka_settings)
    keys = [f"user-{i}".encode() for i in range(50)]
    for key in keys:
        producer.produce(topic, key, b"{}")
    producer.flush()
    producer.close()
    assert producer.failures == []
    reader, tps = LogReader(kafka_settings.kafka), [TopicPartition(topic, i) for i in range(4)]
    batches = reader.read(dict.fromkeys(tps, 0), reader.end_offsets(tps))
    found = {record.key: record.partition for batch in batches for record in batch}
    assert found == {key: partition_of(key, 4) for key in keys}


def test_a_message_the_broker_refuses_is_collected(kafka_settings: Settings) -> None:
    """One failure with its key and reason; its neighbours arrive."""
    topic = f"{kafka_settings.kafka.prefix}small"
    with Admin(kafka_settings.kafka) as admin:
        admin.create([NewTopic(topic, 2, 1, {"max.message.bytes": "1000"})])
    producer = BulkProducer(kafka_settings)
    small = next(f"s{i}".encode() for i in range(99) if partition_of(f"s{i}".encode(), 2) == 0)
    large = next(f"l{i}".encode() for i in range(99) if partition_of(f"l{i}".encode(), 2) == 1)
    producer.produce(topic, small, b"fits")
    producer.produce(topic, large, random.Random(0).randbytes(5_000))
    producer.flush()
    producer.close()
    assert [(key, "large" in reason) for key, reason in producer.failures] == [(large, True)]


def test_ids_tell_a_recreated_topic_from_the_old_one(kafka_settings: Settings) -> None:
    """Cluster and topic ids are there for the stores to compare."""
    name = kafka_settings.kafka.topic("events")
    with Admin(kafka_settings.kafka) as admin:
        admin.create([NewTopic(name, 1, 1, {})])
        first = admin.topic_ids([name])[name]
        admin.delete([name])
        deadline = time.monotonic() + 10
        while name in admin.cluster().partitions and time.monotonic() < deadline:
            time.sleep(0.02)
        admin.create([NewTopic(name, 1, 1, {})])
        assert admin.topic_ids([name])[name] != first
        assert len(admin.cluster().id) == 22
