"""One suite over both implementations of the log ports: real Kafka and memory."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from stream.config import Settings
from stream.errors import Aborted, Fenced, OffsetOutOfRange, TopicError
from stream.ports import (
    GroupConsumer,
    LogReader,
    Message,
    Record,
    Tail,
    TimeReader,
    TopicPartition,
    TransactionalProducer,
)

PARTITIONS = 2


@dataclass
class Ports:
    """How a test gets at one of the implementations."""

    topic: str
    consumer: Callable[[], GroupConsumer]
    producer: Callable[[str], TransactionalProducer]
    reader: Callable[[], TimeReader]
    tail: Callable[[str], Tail]

    def at(self, partition: int) -> TopicPartition:
        """A partition of the test's topic."""
        return TopicPartition(self.topic, partition)

    def message(self, value: bytes, partition: int = 0) -> Message:
        """A message to the test's topic."""
        return Message(self.topic, partition, b"key", value, (("h", b"1"),))


@dataclass
class Listener:
    """Resumes what comes in and remembers what goes."""

    consumer: GroupConsumer
    resume: bool = True
    came: list[TopicPartition] = field(default_factory=list)
    went: list[TopicPartition] = field(default_factory=list)
    lost: list[bool] = field(default_factory=list)

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Of the port."""
        self.came += partitions
        if self.resume:
            self.consumer.resume(partitions)

    def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """Of the port."""
        self.went += partitions
        self.lost.append(lost)


@pytest.fixture(params=["memory", "kafka"])
def ports(request: pytest.FixtureRequest) -> Iterator[Ports]:
    """Both implementations, each with a topic of two partitions."""
    opened: list[Any] = []

    def keep(made: Any) -> Any:
        opened.append(made)
        return made

    make = _memory if request.param == "memory" else _kafka
    yield make(request, keep)
    for each in reversed(opened):
        each.close()


def _memory(request: pytest.FixtureRequest, keep: Callable[[Any], Any]) -> Ports:
    from stream import testing

    log = testing.MemoryLog()
    log.create("events", PARTITIONS, max_bytes=2_000)
    return Ports(
        topic="events",
        consumer=lambda: keep(testing.MemoryConsumer(log)),
        producer=lambda name: keep(testing.MemoryProducer(log, name)),
        reader=lambda: keep(testing.MemoryReader(log)),
        tail=lambda topic: keep(testing.MemoryTail(log, topic)),
    )


def _kafka(request: pytest.FixtureRequest, keep: Callable[[Any], Any]) -> Ports:
    from stream.kafka import consumer, producer, reader
    from stream.kafka.admin import Admin, NewTopic

    settings: Settings = request.getfixturevalue("kafka_settings")
    topic = settings.kafka.topic("events")
    with Admin(settings.kafka) as admin:
        admin.create([NewTopic(topic, PARTITIONS, 1, {"max.message.bytes": "2000"})])
    name = settings.kafka.prefix
    return Ports(
        topic=topic,
        consumer=lambda: keep(
            consumer.GroupConsumer(
                settings.kafka, f"member-{uuid.uuid4().hex}", auto_offset_reset="earliest"
            )
        ),
        producer=lambda id_: keep(producer.TransactionalProducer(settings, name + id_)),
        reader=lambda: keep(reader.LogReader(settings.kafka)),
        tail=lambda of: keep(reader.Tail(settings.kafka, of)),
    )


def started(ports: Ports, name: str = "w") -> TransactionalProducer:
    """A producer after `init`."""
    producer = ports.producer(name)
    producer.init()
    return producer


def write(producer: TransactionalProducer, *messages: Message) -> dict[TopicPartition, int]:
    """One committed transaction."""
    producer.begin()
    producer.produce(messages)
    return producer.commit()


def drop(producer: TransactionalProducer, *messages: Message) -> None:
    """One aborted transaction."""
    producer.begin()
    producer.produce(messages)
    producer.abort()


def join(ports: Ports, *, resume: bool = True) -> tuple[GroupConsumer, Listener]:
    """A consumer that owns all partitions."""
    consumer = ports.consumer()
    listener = Listener(consumer, resume)
    consumer.subscribe(ports.topic, listener)
    return consumer, listener


def consume(consumer: GroupConsumer, count: int, seconds: float = 20.0) -> list[Record]:
    """At least `count` records."""
    found: list[Record] = []
    deadline = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < deadline:
        found += consumer.consume(100, 0.05)
    return found


def own(consumer: GroupConsumer, listener: Listener) -> None:
    """Poll until all partitions are there."""
    deadline = time.monotonic() + 20
    while len(listener.came) < PARTITIONS and time.monotonic() < deadline:
        consumer.consume(1, 0.02)


def values(records: Sequence[Record]) -> list[bytes | None]:
    """Their values."""
    return [record.value for record in records]


def read_all(reader: LogReader, ports: Ports) -> list[Record]:
    """Everything committed."""
    tps = [ports.at(i) for i in range(PARTITIONS)]
    batches = reader.read(dict.fromkeys(tps, 0), reader.end_offsets(tps))
    return [record for batch in batches for record in batch]


def test_a_committed_record_comes_back_as_it_was_written(ports: Ports) -> None:
    """Key, value, headers, partition and offset survive; the timestamp is that of production."""
    before = int(time.time() * 1000)
    written = write(started(ports), ports.message(b"a", 1), Message(ports.topic, 1, None, None))
    first, second = read_all(ports.reader(), ports)
    assert first[:3] == (ports.topic, 1, 0)
    assert first[4:] == (b"key", b"a", (("h", b"1"),))
    assert before - 5 <= first.timestamp <= int(time.time() * 1000) + 5
    assert second[4:] == (None, None, ())
    assert written == {ports.at(1): 1}


def test_commit_tells_the_last_offset_of_every_partition(ports: Ports) -> None:
    """The offsets that a transaction wrote are known after it, over several calls of produce."""
    producer = started(ports)
    write(producer, ports.message(b"x"))
    producer.begin()
    producer.produce([ports.message(b"a"), ports.message(b"b", 1), ports.message(b"c")])
    producer.produce([ports.message(b"d")])
    assert producer.commit() == {ports.at(0): 4, ports.at(1): 0}


def test_aborted_records_are_invisible(ports: Ports) -> None:
    """Readers, tails and groups see what was committed alone."""
    producer = started(ports)
    drop(producer, ports.message(b"never"))
    write(producer, ports.message(b"always"))
    tail = ports.tail(ports.topic)
    followed: list[Record] = []
    while not tail.caught_up():
        followed += tail.poll(100, 0.05)
    assert values(followed) == [b"always"]
    assert values(read_all(ports.reader(), ports)) == [b"always"]
    assert values(consume(join(ports)[0], 1)) == [b"always"]


def test_a_reader_reaches_its_target_over_markers_and_aborted_records(ports: Ports) -> None:
    """An end that consists of nothing visible is reached all the same."""
    producer = started(ports)
    write(producer, ports.message(b"a"))
    drop(producer, ports.message(b"b"), ports.message(b"c", 1))
    assert values(read_all(ports.reader(), ports)) == [b"a"]


def test_a_reader_waits_for_an_open_transaction_below_its_target(ports: Ports) -> None:
    """The target counts open transactions, and their outcome is waited for."""
    producer, reader = started(ports), ports.reader()
    producer.begin()
    producer.produce([ports.message(b"late")])
    tps = [ports.at(0)]
    deadline = time.monotonic() + 10
    while not reader.end_offsets(tps)[tps[0]] and time.monotonic() < deadline:
        time.sleep(0.01)
    batches = reader.read({tps[0]: 0}, reader.end_offsets(tps))
    assert next(batches) == []
    producer.commit()
    assert values([record for batch in batches for record in batch]) == [b"late"]


def test_a_reader_stops_at_its_target(ports: Ports) -> None:
    """Nothing is returned that lies at or beyond the target."""
    producer = started(ports)
    write(producer, *[ports.message(b"%d" % i) for i in range(10)])
    batches = ports.reader().read({ports.at(0): 3}, {ports.at(0): 6})
    assert values([record for batch in batches for record in batch]) == [b"3", b"4", b"5"]


def test_a_reader_ends_where_some_partitions_have_nothing_new(ports: Ports) -> None:
    """A partition that stands at its target already is not waited for."""
    producer, reader = started(ports), ports.reader()
    write(producer, ports.message(b"old"), ports.message(b"older", 1))
    tps = [ports.at(0), ports.at(1)]
    starts = reader.end_offsets(tps)
    write(producer, ports.message(b"new"))
    batches = reader.read(starts, reader.end_offsets(tps))
    deadline = time.monotonic() + 20
    found: list[Record] = []
    for batch in batches:
        found += batch
        assert time.monotonic() < deadline
    assert values(found) == [b"new"]


def test_offsets_are_found_by_the_time_of_production(ports: Ports) -> None:
    """Reading begins with the first record of the time; where none is as new, at the end."""
    producer, reader, tps = started(ports), ports.reader(), [ports.at(0), ports.at(1)]
    write(producer, ports.message(b"old"), ports.message(b"older", 1))
    old = max(record.timestamp for record in read_all(reader, ports))
    while (new := int(time.time() * 1000)) <= old:
        pass
    write(producer, ports.message(b"new"))
    starts, ends = reader.offsets_at(tps, new), reader.end_offsets(tps)
    found = [record for batch in reader.read(starts, ends) for record in batch]
    assert values(found) == [b"new"]
    assert starts[tps[1]] == ends[tps[1]]
    assert reader.offsets_at(tps, 0) == reader.start_offsets(tps)
    assert reader.offsets_at(tps, new + 86_400_000) == ends


def test_a_position_beyond_the_end_is_refused(ports: Ports) -> None:
    """A store that is ahead of its changelog is noticed."""
    reader = ports.reader()
    with pytest.raises(OffsetOutOfRange):
        list(reader.read({ports.at(0): 7}, reader.end_offsets([ports.at(0)])))


def test_a_tail_follows(ports: Ports) -> None:
    """What is written after the tail was opened comes without being asked for again."""
    producer, tail = started(ports), ports.tail(ports.topic)
    found: list[Record] = []
    write(producer, ports.message(b"a", 1))
    deadline = time.monotonic() + 10
    while not found and time.monotonic() < deadline:
        found += tail.poll(10, 0.1)
    assert values(found) == [b"a"]


def test_a_tail_of_nothing_is_refused(ports: Ports) -> None:
    """A topic that does not exist is an error with a remedy."""
    with pytest.raises(TopicError):
        ports.tail("no-such-topic")


def test_assigned_partitions_are_paused(ports: Ports) -> None:
    """Nothing is delivered before `resume`."""
    write(started(ports), ports.message(b"a"), ports.message(b"b", 1))
    consumer, listener = join(ports, resume=False)
    own(consumer, listener)
    assert consumer.assignment() == {ports.at(0), ports.at(1)} == set(listener.came)
    assert consumer.consume(10, 0.3) == []
    consumer.resume([ports.at(1)])
    assert values(consume(consumer, 1)) == [b"b"]


def test_a_batch_is_read_again_after_seek(ports: Ports) -> None:
    """Seek goes back to the offset of the first record, also at once after assignment."""
    write(started(ports), *[ports.message(b"%d" % i) for i in range(5)])
    consumer, listener = join(ports, resume=False)
    own(consumer, listener)
    consumer.seek({ports.at(0): 2})
    consumer.resume(listener.came)
    assert values(consume(consumer, 3)) == [b"2", b"3", b"4"]
    consumer.seek({ports.at(0): 4})
    assert values(consume(consumer, 1)) == [b"4"]


def test_a_partition_that_is_restarted_is_read_from_there(ports: Ports) -> None:
    """As after seek; the others go on where they are."""
    producer = started(ports)
    write(producer, *[ports.message(b"%d" % i) for i in range(5)], ports.message(b"other", 1))
    consumer, _ = join(ports)
    assert len(consume(consumer, 6)) == 6
    consumer.restart({ports.at(0): 3, TopicPartition("of nobody", 0): 7})
    assert values(consume(consumer, 2)) == [b"3", b"4"]
    write(producer, ports.message(b"more", 1))
    assert values(consume(consumer, 1)) == [b"more"]


def test_a_paused_partition_stays_paused_over_seek(ports: Ports) -> None:
    """Seek moves a partition; it does not start it."""
    write(started(ports), *[ports.message(b"%d" % i) for i in range(5)])
    consumer, listener = join(ports, resume=False)
    own(consumer, listener)
    consumer.seek({ports.at(0): 3})
    assert consumer.consume(10, 0.3) == []
    consumer.resume([ports.at(0)])
    assert values(consume(consumer, 2)) == [b"3", b"4"]


def test_offsets_move_with_their_transaction(ports: Ports) -> None:
    """Committed positions are those of committed transactions; unknown ones are left out."""
    consumer, listener = join(ports)
    own(consumer, listener)
    producer, both = started(ports), [ports.at(0), ports.at(1)]
    assert consumer.committed(both) == {}
    producer.begin()
    producer.send_offsets({ports.at(0): 5}, consumer.group_metadata())
    producer.abort()
    assert consumer.committed(both) == {}
    producer.begin()
    producer.send_offsets({ports.at(0): 7}, consumer.group_metadata())
    producer.commit()
    assert consumer.committed(both) == {ports.at(0): 7}


def test_a_newer_producer_of_the_same_id_fences_the_older(ports: Ports) -> None:
    """What the older one left open is aborted, and it cannot write any more."""
    older = started(ports)
    older.begin()
    older.produce([ports.message(b"zombie")])
    newer = started(ports)
    write(newer, ports.message(b"new"))
    with pytest.raises(Fenced):
        write_more(older, ports.message(b"zombie"))
    assert values(read_all(ports.reader(), ports)) == [b"new"]


def write_more(producer: TransactionalProducer, message: Message) -> None:
    """Go on with an open transaction."""
    producer.produce([message])
    producer.commit()


def test_a_message_that_is_too_large_blames_its_batch(ports: Ports) -> None:
    """The transaction is aborted, says so, and the next one works."""
    import random

    producer = started(ports)
    with pytest.raises(Aborted, match=r"large|bytes") as caught:
        write(producer, ports.message(random.Random(0).randbytes(5_000)))
    assert caught.value.blames_batch
    producer.abort()
    write(producer, ports.message(b"fine"))
    assert values(read_all(ports.reader(), ports)) == [b"fine"]


def test_a_member_that_lost_its_partitions_cannot_commit(ports: Ports) -> None:
    """Group metadata of an older generation aborts the transaction, offsets stay."""
    consumer, listener = join(ports)
    own(consumer, listener)
    stale = consumer.group_metadata()
    second, heir = join(ports)
    deadline = time.monotonic() + 20
    while not (heir.came and listener.went) and time.monotonic() < deadline:
        consumer.consume(1, 0.02)
        second.consume(1, 0.02)
    producer = started(ports)
    producer.begin()
    with pytest.raises(Aborted) as caught:
        producer.send_offsets({ports.at(0): 3}, stale)
    assert not caught.value.blames_batch
    producer.abort()
    assert second.committed([ports.at(0)]) == {}
