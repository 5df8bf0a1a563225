"""Ports of the worker with a tap: batches of a chosen size, and a look at what is written."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from stream.kafka.consumer import GroupConsumer
from stream.kafka.producer import TransactionalProducer
from stream.ports import Message, Positions, RebalanceListener, Record, TopicPartition


class TappedConsumer:
    """`stream.ports.GroupConsumer` that says how much was read, and how long that took."""

    def __init__(self, consumer: GroupConsumer) -> None:
        self._consumer = consumer
        self.limit = 1
        self.patience = 0.1  # seconds for a batch to become full
        self.delivered = 0
        self.seconds = 0.0

    def hold(self) -> None:
        """Fetch nothing."""
        self._consumer.pause(self.assignment())

    def release(self) -> None:
        """Fetch again."""
        self._consumer.resume(self.assignment())

    def subscribe(self, topic: str, listener: RebalanceListener) -> None:
        """Join the group."""
        self._consumer.subscribe(topic, listener)

    def consume(self, limit: int, timeout: float) -> list[Record]:
        """`self.limit` records, fewer only when they do not come."""
        started = time.perf_counter()
        timeout = self.patience if timeout else 0.0
        records = self._consumer.consume(min(limit, self.limit), timeout)
        self.seconds += time.perf_counter() - started
        self.delivered += len(records)
        return records

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver nothing of these."""
        self._consumer.pause(partitions)

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver again."""
        self._consumer.resume(partitions)

    def seek(self, positions: Positions) -> None:
        """Go on from these offsets."""
        self._consumer.seek(positions)

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Committed offsets."""
        return self._consumer.committed(partitions)

    def assignment(self) -> set[TopicPartition]:
        """The partitions that are owned now."""
        return self._consumer.assignment()

    def group_metadata(self) -> object:
        """What fences a member that lost its partitions."""
        return self._consumer.group_metadata()

    def close(self) -> None:
        """Stop."""
        self._consumer.close()


class TappedProducer:
    """`stream.ports.TransactionalProducer` that keeps the messages of its latest transaction."""

    def __init__(self, producer: TransactionalProducer) -> None:
        self._producer = producer
        self.messages: list[Message] = []

    def init(self) -> None:
        """Fence older producers of the same id."""
        self._producer.init()

    def renew(self) -> None:
        """Begin anew with the same id."""
        self._producer.renew()

    def begin(self) -> None:
        """Open a transaction."""
        self._producer.begin()

    def produce(self, messages: Iterable[Message]) -> None:
        """Queue messages."""
        self.messages = list(messages)
        self._producer.produce(self.messages)

    def send_offsets(self, positions: Positions, group_metadata: object) -> None:
        """Add the consumed positions."""
        self._producer.send_offsets(positions, group_metadata)

    def commit(self) -> dict[TopicPartition, int]:
        """Flush and commit."""
        return self._producer.commit()

    def abort(self) -> None:
        """Throw the transaction away."""
        self._producer.abort()
