"""Errors that come out of librdkafka's callbacks, whole or without their cause."""

from __future__ import annotations

import confluent_kafka as ck
import pytest

from stream.errors import ProducerFenced
from stream.kafka.client import Trouble


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
