"""What comes out of librdkafka: errors of callbacks, and errors among records."""

from __future__ import annotations

from collections.abc import Callable

import confluent_kafka as ck
import pytest

from stream.config import load
from stream.errors import Aborted, BrokerUnavailable, ProducerFenced
from stream.kafka import properties, reader
from stream.kafka.admin import Admin
from stream.kafka.client import Trouble
from stream.kafka.consumer import GroupConsumer
from stream.ports import Record


def test_a_fatal_error_that_lost_its_cause_is_a_fence() -> None:
    """A flush that ends without saying why has ended the producer: its outcome is not known."""
    with pytest.raises(ProducerFenced, match="flushing"), Trouble().explained("flushing"):
        raise SystemError("<method 'flush'> returned NULL without setting an exception")


def test_the_cause_of_a_fatal_error_is_what_counts() -> None:
    """Where it is there, the error is translated by it."""
    cause = ck.KafkaException(ck.KafkaError(ck.KafkaError.INVALID_PRODUCER_EPOCH, "older"))
    with pytest.raises(ProducerFenced, match="older"), Trouble().explained("committing"):
        raise SystemError("returned a result with an exception set") from cause


def test_an_exception_of_our_own_stays_what_it_is() -> None:
    """A mistake in a callback is not taken for Kafka's."""
    with pytest.raises(SystemError), Trouble().explained("polling"):
        raise SystemError("returned a result with an exception set") from ValueError("ours")


# -- errors among records ------------------------------------------------------------------------


class Said:
    """A message as librdkafka hands it out: a record, or an error."""

    def __init__(self, offset: int, error: ck.KafkaError | None = None) -> None:
        self._offset, self._error = offset, error

    def topic(self) -> str:
        """Of the record."""
        return "events"

    def partition(self) -> int:
        """Of the record."""
        return 0

    def offset(self) -> int:
        """Of the record."""
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        """Kind and ms."""
        return 1, 1_000

    def key(self) -> bytes:
        """Of the record."""
        return b"ada"

    def value(self) -> bytes:
        """Of the record."""
        return b"{}"

    def headers(self) -> None:
        """None."""

    def error(self) -> ck.KafkaError | None:
        """None for a record."""
        return self._error


class Scripted:
    """librdkafka's consumer, which says what it was told to."""

    def __init__(self, *answers: list[Said]) -> None:
        self._answers = list(answers)

    def consume(self, limit: int, timeout: float) -> list[Said]:
        """The next answer."""
        return self._answers.pop(0) if self._answers else []

    def poll(self, timeout: float) -> None:
        """Nothing."""

    def memberid(self) -> str:
        """It is a member."""
        return "one"

    def close(self) -> None:
        """Nothing to let go of."""


NOWHERE = load(None, {"kafka.bootstrap_servers": "127.0.0.1:1"}).kafka


def group_consumer(scripted: Scripted) -> Callable[[], list[Record]]:
    """Reads of a member of the group."""
    consumer = GroupConsumer(NOWHERE, "one", auto_offset_reset="error")
    consumer._consumer = scripted  # type: ignore[assignment]
    return lambda: consumer.consume(10, 0.0)


def follower(scripted: Scripted) -> Callable[[], list[Record]]:
    """Reads without a group, where the error is one that does not pass by itself."""
    made = reader._Follower(Admin(NOWHERE), properties.tail(NOWHERE), {}, {})
    made._consumer = scripted  # type: ignore[assignment]
    return lambda: made.poll(10, 0.0)


@pytest.mark.parametrize("reading", [group_consumer, follower])
def test_an_error_among_records_comes_after_them(
    reading: Callable[[Scripted], Callable[[], list[Record]]],
) -> None:
    """None of the records that came with it is lost, and it is raised once."""
    code = ck.KafkaError.COORDINATOR_NOT_AVAILABLE
    if reading is follower:
        code = ck.KafkaError.KAFKA_STORAGE_ERROR
    trouble = Said(0, ck.KafkaError(code, "for now"))
    read = reading(Scripted([Said(7), trouble, Said(8)], [Said(9)]))
    assert [record.offset for record in read()] == [7, 8]
    with pytest.raises(BrokerUnavailable, match="for now"):
        read()
    assert [record.offset for record in read()] == [9]
    alone = reading(Scripted([trouble]))
    with pytest.raises(BrokerUnavailable, match="for now"):
        alone()


class Rejoining(Scripted):
    """A member that librdkafka takes from generation to generation."""

    def __init__(self) -> None:
        super().__init__()
        self.member, self.generation = "first", 1

    def subscribe(self, topics: list[str], **callbacks: Callable[..., None]) -> None:
        """Keeps the callbacks, as librdkafka calls them out of `consume`."""
        self.tell = callbacks["on_assign"]

    def incremental_assign(self, partitions: list[ck.TopicPartition]) -> None:
        """Nothing."""

    pause = incremental_assign

    def memberid(self) -> str:
        """As it is now."""
        return self.member

    def consumer_group_metadata(self) -> int:
        """Stands for the generation of now."""
        return self.generation


class Told:
    """A listener that only listens."""

    def assigned(self, partitions: object) -> None:
        """Nothing."""

    def revoked(self, partitions: object, *, lost: bool) -> None:
        """Nothing."""


def test_what_fences_is_the_generation_that_gave_the_partitions() -> None:
    """A generation that was joined in the background counts once its assignment was told."""
    consumer, group = GroupConsumer(NOWHERE, "one", auto_offset_reset="error"), Rejoining()
    consumer._consumer = group  # type: ignore[assignment]
    consumer.subscribe("events", Told())
    with pytest.raises(Aborted, match="not a member"):
        consumer.group_metadata()
    group.tell(group, [])
    group.generation = 2
    assert consumer.group_metadata() == 1
    group.member, group.generation = "", -1
    with pytest.raises(Aborted, match="not a member"):
        consumer.group_metadata()
    group.member, group.generation = "second", 3
    with pytest.raises(Aborted, match="not a member"):
        consumer.group_metadata()
    group.tell(group, [])
    assert consumer.group_metadata() == 3
