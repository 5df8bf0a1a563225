"""Readers of which nothing comes: a silent client is begun anew, an open transaction is named."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, MutableMapping
from typing import Any

import confluent_kafka as ck
import pytest
from structlog.testing import capture_logs

from stream.config import Settings
from stream.kafka.admin import Admin, NewTopic
from stream.kafka.producer import TransactionalProducer
from stream.kafka.reader import LogReader, Tail
from stream.ports import Message, Record, TopicPartition
from tests.integration.world import eventually

TWO = [0, 1]

Lines = list[MutableMapping[str, Any]]


@pytest.fixture
def topic(kafka_settings: Settings) -> str:
    """A topic with two partitions."""
    name = f"read-{uuid.uuid4().hex[:8]}"
    with Admin(kafka_settings.kafka) as admin:
        admin.create([NewTopic(name, len(TWO), 1, {})])
    return name


@pytest.fixture
def producer(kafka_settings: Settings) -> Iterator[TransactionalProducer]:
    """Its transactions are short."""
    made = TransactionalProducer(kafka_settings, f"w-{uuid.uuid4().hex[:8]}")
    made.init()
    yield made
    made.close()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """What is logged; readers look often, not every ten seconds."""
    monkeypatch.setattr("stream.kafka.reader.LOOK_S", 0.2)
    with capture_logs() as captured:
        yield captured


def write(producer: TransactionalProducer, topic: str, value: bytes) -> None:
    """One record to each partition, in a transaction that is still open."""
    producer.begin()
    producer.produce([Message(topic, partition, b"k", value) for partition in TWO])
    producer._producer.flush(10)


def said(lines: Lines, event: str) -> Lines:
    """Log lines of this event."""
    return [line for line in lines if line["event"] == event]


def test_a_partition_that_is_no_longer_fetched_is_read_anew(
    kafka_settings: Settings,
    topic: str,
    producer: TransactionalProducer,
    lines: Lines,
) -> None:
    """No record is missed or comes twice, and what flows is not disturbed."""
    tail = Tail(kafka_settings.kafka, topic)
    eventually(tail.caught_up)
    came: list[Record] = []

    def both(value: bytes) -> bool:
        came.extend(tail.poll())
        return [r.value for r in came].count(value) == len(TWO)

    for value, silent in ((b"1", []), (b"2", [ck.TopicPartition(topic, 1)])):
        tail._follower._consumer.pause(silent)
        write(producer, topic, value)
        producer.commit()
        eventually(lambda value=value: both(value))
    assert sorted((r.partition, r.value) for r in came) == [
        (0, b"1"), (0, b"2"), (1, b"1"), (1, b"2")
    ]  # fmt: skip
    assert [line["partitions"] for line in said(lines, "reading anew")] == [[f"{topic}[1]"]]
    tail.close()


def test_an_open_transaction_that_holds_a_reader_back_is_named(
    kafka_settings: Settings,
    topic: str,
    producer: TransactionalProducer,
    lines: Lines,
) -> None:
    """The partition and the offset; it goes on by itself when the transaction ends."""
    at = TopicPartition(topic, 1)
    write(producer, topic, b"1")
    producer.commit()
    write(producer, topic, b"2")
    reader = LogReader(kafka_settings.kafka)
    batches = reader.read({at: 0}, reader.end_offsets([at]))
    came: list[bytes | None] = []

    def held() -> Lines:
        came.extend(r.value for r in next(batches))
        return said(lines, "held back")

    line = eventually(held)[0]
    assert (line["topic"], line["partition"], line["offset"]) == (topic, 1, 2)
    assert came == [b"1"]
    producer.commit()
    came += [r.value for batch in batches for r in batch]
    assert came == [b"1", b"2"]
    assert not said(lines, "reading anew")
    reader.close()
