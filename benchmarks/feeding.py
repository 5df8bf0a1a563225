"""Settings, topics and records of the runs."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from stream import topics
from stream.config import Kafka, Settings, load
from stream.kafka.producer import BulkProducer
from stream.message_encoding import encode
from stream.message_types import Event, Item

PER_FETCH = 8_192
"""Bytes of a partition that one fetch brings."""

PER_RECORD_BATCH = 32
"""Events that are written together."""


def settings_on(servers: str, folder: Path, partitions: int, largest_batch: int) -> Settings:
    """Settings of a world of its own on this broker; its topics are made."""
    prefix = f"bench-{uuid.uuid4().hex[:8]}."
    settings = load(
        None,
        {
            "kafka.bootstrap_servers": servers,
            "kafka.prefix": prefix,
            "kafka.partitions": partitions,
            "batch.max_events": largest_batch,
            "state.dir": str(folder / prefix),
            "model.device": "cpu",
            "model.threads": 1,
        },
    )
    topics.create(settings)
    return settings


def reading(settings: Settings) -> Kafka:
    """The Kafka settings of a member of the group that gets its records as live traffic comes.

    Left alone, a fetch of a backlog brings one partition after the other, thousands of records
    each, and a batch would lie in one partition.
    """
    return settings.kafka.model_copy(
        update={"properties": {"max.partition.fetch.bytes": str(PER_FETCH)}}
    )


def send_items(settings: Settings, known: Iterable[Item]) -> None:
    """Write the catalogue to the topic `items`."""
    topic = settings.kafka.topic("items")
    with closing(BulkProducer(settings)) as producer:
        for item in known:
            producer.produce(topic, item.item.encode(), encode(item))
        producer.flush()


class Feeder:
    """Writes events, a few to a record batch, so that fetches can mix partitions."""

    def __init__(self, settings: Settings) -> None:
        properties = {"batch.num.messages": str(PER_RECORD_BATCH)}
        kafka = settings.kafka.model_copy(update={"properties": properties})
        self._topic = kafka.topic("events")
        self._producer = BulkProducer(settings.model_copy(update={"kafka": kafka}))

    def send(self, events: Iterable[Event]) -> int:
        """Returns when all are written, with their number."""
        sent = 0
        for event in events:
            self._producer.produce(self._topic, event.user.encode(), encode(event))
            sent += 1
        self._producer.flush()
        return sent

    def close(self) -> None:
        """Let go of the connection."""
        self._producer.close()
