"""Asking for an erasure and seeing it done."""

from __future__ import annotations

import pytest

from stream.errors import ConfigError
from stream.forgetting import Erased, Watch, request
from stream.message_checks import COLD_KEY
from stream.ports import TopicPartition
from stream.testing import MemoryReader
from stream.testing_worker import MemoryWorld, item

FILMS = [item("h1", "Night of the Haunted House"), item("c1", "Merry Wedding Party")]


@pytest.fixture
def world() -> MemoryWorld:
    """A user who clicked once."""
    made = MemoryWorld(FILMS, partitions=1)
    made.click("ada", "h1")
    made.run()
    return made


def watched(world: MemoryWorld) -> Watch:
    """Ask to erase ada."""
    kafka, reader = world.settings.kafka, MemoryReader(world.log)
    events, state = (TopicPartition(kafka.topic(role), 0) for role in ("events", "state"))
    starts = reader.end_offsets([events, state])
    event = request("ada", world.settings.messages, world.clock)
    world.send(event)
    return Watch(reader=reader, event=event, events=events, state=state, starts=starts)


def test_the_null_is_seen_when_it_is_committed(world: MemoryWorld) -> None:
    """Before the worker has read the request there is nothing to see, and waiting ends in time."""
    watch = watched(world)
    assert watch.wait(0) is None
    world.run()
    assert watch.wait(0) is Erased.NULL


def test_a_user_who_acts_at_once_has_a_new_record(world: MemoryWorld) -> None:
    """No null was written, but the record that is there knows nothing from before."""
    watch = watched(world)
    world.click("ada", "c1")
    world.run()
    assert watch.wait(0) is Erased.CAME_BACK
    assert world.lists()["ada"]["shots"] == 1


def test_events_before_the_request_are_no_erasure(world: MemoryWorld) -> None:
    """A record of the user that does not know of the request yet proves nothing."""
    kafka, reader = world.settings.kafka, MemoryReader(world.log)
    before = reader.end_offsets([TopicPartition(kafka.topic("state"), 0)])
    world.click("ada", "c1")
    world.run()
    watch = watched(world)
    early = Watch(
        reader=reader,
        event=watch.event,
        events=watch.events,
        state=watch.state,
        starts={**watch.starts, **before},
    )
    assert early.wait(0) is None


@pytest.mark.parametrize("user", ["", COLD_KEY, "x" * 300])
def test_ids_that_no_user_can_have_are_refused(world: MemoryWorld, user: str) -> None:
    """The worker would make dead letters of such requests."""
    with pytest.raises(ConfigError):
        request(user, world.settings.messages, world.clock)


def test_every_request_has_an_id_of_its_own(world: MemoryWorld) -> None:
    """Asking twice is no duplicate."""
    made = {request("ada", world.settings.messages, world.clock).id for _ in range(3)}
    assert len(made) == 3
