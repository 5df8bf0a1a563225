"""The partitioning rule against vectors of Apache Kafka's own tests and of librdkafka's."""

from __future__ import annotations

import confluent_kafka
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.murmur2 import murmur2, murmur2_many, partition_of, partitions_of

KAFKA_VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "signed"), KAFKA_VECTORS.items())
def test_the_hash_is_kafkas_own(key: bytes, signed: int) -> None:
    """Keys hash as Apache Kafka's unit tests say."""
    assert murmur2(key) == signed & 0xFFFFFFFF


@given(st.lists(st.binary(max_size=70), max_size=40))
def test_a_batch_hashes_like_its_keys(keys: list[bytes]) -> None:
    """The vectorised hash equals the scalar one for keys of any length, empty ones too."""
    assert murmur2_many(keys).tolist() == [murmur2(key) for key in keys]


@pytest.mark.parametrize("partitioner", ["murmur2_random", "consistent_random"])
def test_partitions_of_a_batch_agree_with_one_by_one(partitioner: str) -> None:
    """Both rules give the same partitions for a batch as for each key."""
    keys = [f"user-{n}".encode() for n in range(500)]
    expected = [partition_of(key, 32, partitioner) for key in keys]
    assert partitions_of(keys, 32, partitioner).tolist() == expected
    assert np.bincount(expected, minlength=32).min() > 0


@pytest.mark.parametrize("partitioner", ["murmur2_random", "consistent_random"])
def test_librdkafka_partitions_alike(partitioner: str) -> None:
    """A librdkafka producer with the same setting puts keys where we expect them."""
    delivered: dict[bytes, int] = {}

    def on_delivery(error: object, message: confluent_kafka.Message) -> None:
        key = message.key()
        if error is None and isinstance(key, bytes):
            delivered[key] = int(message.partition() or 0)

    producer = confluent_kafka.Producer(
        {"test.mock.num.brokers": 1, "bootstrap.servers": "mock", "partitioner": partitioner}
    )
    keys = [f"user-{n}".encode() * (n % 5 + 1) for n in range(100)]
    for key in keys:
        producer.produce("events", b"", key, on_delivery=on_delivery)
    producer.flush(20)
    count = len(producer.list_topics("events", timeout=10).topics["events"].partitions)
    assert count > 1
    assert delivered == {key: partition_of(key, count, partitioner) for key in keys}
