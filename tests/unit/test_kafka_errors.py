"""Which of librdkafka's errors pass by themselves."""

from __future__ import annotations

import confluent_kafka as ck
import pytest

from stream.errors import BrokerUnavailable
from stream.kafka.client import Patience, retried
from stream.kafka.errors import translate


@pytest.mark.parametrize("name", ["_TRANSPORT", "_DESTROY_BROKER", "NOT_COORDINATOR"])
def test_a_broker_that_goes_away_while_it_is_asked_is_asked_again(name: str) -> None:
    """Until patience is over: then it is an outage, which the worker outlives."""
    error = ck.KafkaError(getattr(ck.KafkaError, name))
    assert error.name() == name
    answers = [error, error, None]

    def ask() -> str:
        if (answer := answers.pop(0)) is not None:
            raise ck.KafkaException(answer)
        return "here"

    assert retried(ask, Patience(5.0)) == "here"
    assert isinstance(translate(error, "asking"), BrokerUnavailable)
