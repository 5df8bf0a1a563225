"""A window of the real topics: by time, committed records alone, from all partitions."""

from __future__ import annotations

import time

import pytest

from stream import topics, window
from stream.config import Settings
from stream.kafka.producer import TransactionalProducer
from stream.message_encoding import encode
from stream.message_types import Forget
from stream.ports import Message
from stream.testing_worker import NOW, click, item
from tests.integration.world import FILMS, Topics

DAY = 86_400.0


def test_a_window_of_the_topics(kafka_settings: Settings) -> None:
    """Aborted, forgotten, bad and old events are left out, and a kept window stays as it was."""
    topics.create(kafka_settings)
    world, kafka = Topics(kafka_settings), kafka_settings.kafka
    world.send(*FILMS, item("h3", "Better title"))
    world.delete_item("h5")
    world.send(*(click(f"u{i}", f"h{i % 12}", NOW - i * DAY / 10) for i in range(40)))
    world.send(click("u1", "swiped", NOW, action="swipe"))
    world.send(Forget(id="x", timestamp=int(NOW * 1e3), user="u3"))
    ghost = click("ghost", "h1", NOW)
    producer = TransactionalProducer(kafka_settings, "writer")
    producer.init()
    producer.begin()
    producer.produce([Message(kafka.topic("events"), 0, b"ghost", encode(ghost))])
    producer.abort()
    producer.close()

    kept = window.measure(kafka_settings, DAY)
    found = window.take(kafka_settings, kept)
    assert set(found.columns.user_ids) == {f"u{i}" for i in range(11)} - {"u3"}
    assert found.left.dead == {"unknown_action": 1}
    assert found.left.interactions.outside == 40 - 11
    assert found.left.interactions.erased == 1
    assert len(found.items) == len(FILMS) - 1
    assert {one.fields[0].value for one in found.items if one.item == "h3"} == {"Better title"}

    world.send(click("later", "h1", NOW + DAY), item("later", "New"))
    again = window.take(kafka_settings, window.Window.from_dict(kept.to_dict()))
    assert again.columns.user_ids == found.columns.user_ids
    assert again.items == found.items
    world.close()


@pytest.mark.usefixtures("broker")
def test_reading_begins_at_the_window(kafka_settings: Settings) -> None:
    """Where event time is the time of production, older records are not fetched at all."""
    settings = kafka_settings.model_copy(
        update={"messages": kafka_settings.messages.model_copy(update={"future_ms": 0})}
    )
    topics.create(settings)
    world = Topics(settings)
    world.send(*(click(f"u{i}", "h1", time.time()) for i in range(50)))
    border = time.time()
    while time.time() < border + 0.01:
        pass
    world.send(*(click("ada", "h1", border + 0.01 + i / 1e3) for i in range(20)))
    measured = window.measure(settings, 0.025)
    assert sum(measured.events.starts) >= 50
    assert set(window.take(settings, measured).columns.user_ids) == {"ada"}
    world.close()
