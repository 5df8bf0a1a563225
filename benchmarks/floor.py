"""The floor: a transactional pass-through with nothing of ours in it.

It consumes events and, in one transaction, produces what the worker wrote for as many events: the
same number of records, of the same sizes and contents, to the same partitions; then it sends the
offsets and commits. confluent_kafka is used directly, with the worker's properties.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager

import confluent_kafka as ck

from benchmarks.feeding import Feeder, reading
from benchmarks.measure import Batch, Run
from stream.config import Settings
from stream.kafka.properties import group_consumer, transactional_producer
from stream.message_types import Event
from stream.ports import Message

_PATIENCE = 60.0


class Floor:
    """A member of a group of its own, with topics of its own."""

    def __init__(self, settings: Settings, feeder: Feeder) -> None:
        self._kafka = settings.kafka
        self._feeder = feeder
        self._consumer = ck.Consumer(group_consumer(reading(settings), "floor", "earliest"))
        self._producer = ck.Producer(transactional_producer(settings, f"{self._kafka.prefix}floor"))

    def start(self) -> None:
        """Join, and wait for all partitions."""
        self._producer.init_transactions(_PATIENCE)
        self._consumer.subscribe([self._kafka.topic("events")])
        deadline = time.monotonic() + _PATIENCE
        while len(self._consumer.assignment()) < self._kafka.partitions:
            self._consumer.consume(1, 0.1)
            if time.monotonic() > deadline:
                raise TimeoutError(f"no partitions after {_PATIENCE:.0f} s")

    def run(self, events: Iterable[Event], size: int, written: Sequence[Message]) -> Run:
        """One run over `events` in batches of `size`, each of which writes `written`."""
        self._consumer.pause(self._consumer.assignment())
        waiting = self._feeder.send(events)
        batches = []
        cpu = time.process_time()
        self._consumer.resume(self._consumer.assignment())
        while waiting:
            started = time.perf_counter()
            done = self._batch(size, written)
            batches.append(Batch(events=done, seconds=time.perf_counter() - started))
            waiting -= done
        cpu = time.process_time() - cpu
        return Run(batches=batches, cpu=cpu, messages=len(batches) * len(written))

    def _batch(self, size: int, written: Sequence[Message]) -> int:
        consumed = self._consumer.consume(size, _PATIENCE)
        if any(message.error() for message in consumed) or not consumed:
            raise RuntimeError("the pass-through could not read its events")
        send = self._producer.produce
        self._producer.begin_transaction()
        for topic, partition, key, value, _ in written:
            send(topic, value, key, partition)
        self._producer.poll(0)
        positions = [
            p for p in self._consumer.position(self._consumer.assignment()) if p.offset > 0
        ]
        self._producer.send_offsets_to_transaction(
            positions, self._consumer.consumer_group_metadata()
        )
        self._producer.commit_transaction()
        return len(consumed)

    def close(self) -> None:
        """Leave."""
        self._consumer.close()
        self._producer.close()


def at(settings: Settings, written: Iterable[Message], theirs: Settings) -> list[Message]:
    """Messages of another world with the topics of this one."""
    names = {
        theirs.kafka.topic(role): settings.kafka.topic(role)
        for role in ("recommendations", "state", "signals")
    }
    return [message._replace(topic=names[message.topic]) for message in written]


@contextmanager
def floor(settings: Settings) -> Iterator[Floor]:
    """A pass-through that is ready."""
    with closing(Feeder(settings)) as feeder, closing(Floor(settings, feeder)) as made:
        made.start()
        yield made
