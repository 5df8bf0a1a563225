"""A member of the group whose partitions librdkafka does not fetch, for once or for good."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import confluent_kafka as ck
import pytest

from stream.config import Settings
from stream.errors import OffsetOutOfRange
from stream.kafka.admin import Admin, NewTopic
from stream.kafka.consumer import GroupConsumer
from stream.kafka.producer import BulkProducer
from stream.ports import TopicPartition
from tests.integration.world import eventually

PARTITIONS = 4


class Member:
    """Owns all partitions of a topic with records in each, of a group that never committed."""

    def __init__(self, settings: Settings) -> None:
        self.came: list[TopicPartition] = []
        self.refused: set[TopicPartition] = set()
        self.read: set[int] = set()
        self.consumer = GroupConsumer(settings.kafka, "one", auto_offset_reset="error")
        self.consumer.subscribe(settings.kafka.topic("events"), self)

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Of the listener."""
        self.came += partitions
        self.consumer.resume(partitions)

    def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """Of the listener."""

    def turn(self) -> None:
        """Reads; what has no offset to begin at stays as it is."""
        try:
            self.read |= {record.partition for record in self.consumer.consume(10, 0.05)}
        except OffsetOutOfRange as missing:
            self.refused.add(TopicPartition(missing.topic, missing.partition))

    def stands(self) -> bool:
        """Whether librdkafka has given up on all partitions."""
        self.turn()
        return len(self.refused) == PARTITIONS

    def reads(self) -> bool:
        """Whether something of every partition was read."""
        self.turn()
        return len(self.read) == PARTITIONS


@pytest.fixture
def member(kafka_settings: Settings) -> Iterator[Member]:
    """Before its first turn."""
    topic = kafka_settings.kafka.topic("events")
    with Admin(kafka_settings.kafka) as admin:
        admin.create([NewTopic(topic, PARTITIONS, 1, {})])
    producer = BulkProducer(kafka_settings)
    for i in range(10 * PARTITIONS):
        producer.produce(topic, b"%d" % i, b"{}")
    producer.flush()
    producer.close()
    made = Member(kafka_settings)
    yield made
    made.consumer.close()


def test_partitions_that_librdkafka_gave_up_are_begun(member: Member) -> None:
    """Where nothing is committed it stops until it is told where to begin, also when paused."""
    eventually(member.stands)
    member.consumer.pause(member.came)
    member.consumer.seek(dict.fromkeys(member.came, 0))
    member.turn()
    assert not member.read
    member.consumer.resume(member.came)
    eventually(member.reads, lambda: f"read: {member.read}")


def test_a_partition_that_stands_still_goes_on_though_nobody_said_why(member: Member) -> None:
    """The word that it was given up may be lost: a partition is moved or assigned anew."""
    eventually(member.stands)
    member.consumer._stopped.clear()
    member.consumer.seek(dict.fromkeys(member.came[:2], 0))
    member.consumer.restart(dict.fromkeys(member.came[2:], 0))
    eventually(member.reads, lambda: f"read: {member.read}")


def test_an_assignment_that_failed_half_way_is_tried_again(member: Member) -> None:
    """Given back and not yet taken again: it is still ours."""
    eventually(member.stands)
    member.consumer._consumer.incremental_unassign([ck.TopicPartition(*member.came[0])])
    member.consumer.restart(dict.fromkeys(member.came, 0))
    eventually(member.reads, lambda: f"read: {member.read}")
