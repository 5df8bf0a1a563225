"""librdkafka's properties for every kind of client, as plain dictionaries."""

from __future__ import annotations

from typing import Literal

from stream.config import Kafka, Settings

Properties = dict[str, str | int | float | bool]

HEADROOM_BYTES = 65_536
"""What a dead letter may take beyond the largest event."""

TURN_BYTES = 1_048_576
"""How much of a partition is read before it is the turn of the others: they share the delay.

Not less than a producer's largest batch: a broker gives one that is larger than this to the first
partition of a fetch alone (KIP-74), and the others wait until that one is worked off.
"""

QUEUE_KB = 16_384
"""What is read ahead of all partitions together, in kB.

Where it holds a turn of each, they take turns; where it does not, the first to be fetched stays
first until its backlog is gone.
"""


def client(kafka: Kafka) -> Properties:
    """What all clients share. The user's own properties win over ours, here and in what follows:
    those that a promise rests on are refused when settings are read (`config.OWNED`).
    """
    return {
        "bootstrap.servers": kafka.bootstrap_servers,
        "client.id": "innerloop",
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        "retry.backoff.ms": 5,
        "socket.nagle.disable": True,
        **kafka.properties,
    }


def _reading(kafka: Kafka, wait_ms: int) -> Properties:
    return {
        **client(kafka),
        "group.id": kafka.group_id,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "isolation.level": "read_committed",
        "fetch.wait.max.ms": wait_ms,
        "fetch.error.backoff.ms": 50,
        "fetch.queue.backoff.ms": 5,  # the default of a second starves a fast reader
        "queued.max.messages.kbytes": QUEUE_KB,
        **kafka.properties,
    }


def group_consumer(
    kafka: Kafka, instance_id: str, auto_offset_reset: Literal["earliest", "error"]
) -> Properties:
    """A static, cooperative member of the classic protocol: it takes over at once after a crash."""
    return {
        **_reading(kafka, wait_ms=100),
        "group.protocol": "classic",
        "group.instance.id": instance_id,
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": kafka.session_timeout_ms,
        "heartbeat.interval.ms": max(100, min(3_000, kafka.session_timeout_ms // 3)),
        "auto.offset.reset": auto_offset_reset,
        "max.partition.fetch.bytes": TURN_BYTES,
        **kafka.properties,
    }


def offsets_of(kafka: Kafka, group: str) -> Properties:
    """Asks for the committed offsets of a group that it never joins, open transactions or not."""
    return {**client(kafka), "group.id": group, "isolation.level": "read_uncommitted"}


def reader(kafka: Kafka) -> Properties:
    """Reads up to a point; its waits are short, since the end shows as an empty fetch.

    Many may be open at once, one for each partition that is restored: what waits is bounded.
    """
    return {
        **_reading(kafka, wait_ms=10),
        "queued.max.messages.kbytes": 8_192,
        "enable.partition.eof": True,
        "auto.offset.reset": "error",
        **kafka.properties,
    }


def tail(kafka: Kafka) -> Properties:
    """Follows partitions for as long as the process runs."""
    return {
        **_reading(kafka, wait_ms=50),
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest",
    }


def _writing(settings: Settings) -> Properties:
    return {
        **client(settings.kafka),
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": 5,
        "compression.type": "lz4",
        "message.max.bytes": 100_000_000,  # the topics' own limits decide
        "batch.size": 1_000_000,
        "queue.buffering.max.messages": 1_000_000,
        "partitioner": settings.kafka.partitioner,
        **settings.kafka.properties,
    }


def transactional_producer(settings: Settings, transactional_id: str) -> Properties:
    """One stable id per worker. The commit flushes, so that nothing lingers."""
    return {
        **_writing(settings),
        "transactional.id": transactional_id,
        "transaction.timeout.ms": settings.kafka.transaction_timeout_ms,
    }


def bulk_producer(settings: Settings) -> Properties:
    """Loads files: large batches, reports on failures alone."""
    return {
        **_writing(settings),
        "linger.ms": 20,
        "delivery.report.only.error": True,
        **settings.kafka.properties,
    }
