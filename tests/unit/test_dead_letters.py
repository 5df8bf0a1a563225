"""Dead letters: read back as they were, and sent back once."""

from __future__ import annotations

import pytest

from stream.dead_letters import RESENT, Letter, Resend, counted, dump, find, letters, place_of
from stream.errors import ProducerFenced, UnknownLetter
from stream.message_checks import Reason
from stream.message_encoding import bare_letter, encode
from stream.murmur2 import partition_of
from stream.ports import Record
from stream.testing import MemoryProducer
from stream.testing_worker import NOW, MemoryWorld, click, item

FILMS = [item("h1", "Night of the Haunted House"), item("c1", "Merry Wedding Party")]
SWIPE = encode(click("ada", "h1", NOW, action="swipe"))


@pytest.fixture
def world() -> MemoryWorld:
    """A worker that has met bytes that are no text, and an action nobody configured."""
    made = MemoryWorld(FILMS)
    events = made.settings.kafka.topic("events")
    made.log.append(events, b"bob", b"\xff\x00", headers=(("trace", b"7"),))
    made.log.append(events, b"ada", SWIPE)
    made.run()
    return made


def found(world: MemoryWorld) -> list[Letter]:
    """The letters as they are now."""
    return letters(world.records("dead_letters"))


def resend(world: MemoryWorld) -> Resend:
    """To the topics of this world."""
    kafka = world.settings.kafka
    return Resend(
        dead_letters=kafka.topic("dead_letters"),
        partitions={kafka.topic("events"): world.partitions},
        partitioner=kafka.partitioner,
    )


def send(world: MemoryWorld, chosen: list[Letter], name: str = "ops") -> None:
    """Send them back in a transaction."""
    producer = MemoryProducer(world.log, name)
    producer.init()
    assert [one for some in resend(world).send(producer, chosen) for one in some] == chosen


def test_a_letter_is_the_record_as_it_was(world: MemoryWorld) -> None:
    """Key, bytes, headers and origin come back; reasons are counted."""
    letter = next(x for x in found(world) if x.reason == "not_utf8")
    original = next(r for r in world.records("events") if r.key == b"bob")
    assert (letter.key, letter.value, letter.headers) == (b"bob", b"\xff\x00", (("trace", b"7"),))
    assert (*letter.origin, letter.origin_offset) == original[:3]
    assert find(found(world), place_of(letter.name)) == letter
    assert counted(found(world)) == "1 not_utf8, 1 unknown_action"


def test_sent_back_is_the_same_record_and_is_marked(world: MemoryWorld) -> None:
    """Bytes, key and headers go to the partition of the key; the letter knows of it ever after."""
    chosen = [x for x in found(world) if x.reason == "not_utf8"]
    send(world, chosen)
    again = [r for r in world.records("events") if r.key == b"bob"][-1]
    assert (again.value, again.partition) == (b"\xff\x00", partition_of(b"bob", world.partitions))
    assert again.headers == (("trace", b"7"), (RESENT, chosen[0].name.encode()))
    assert {x.reason: x.sent_back for x in found(world)} == {
        "not_utf8": True,
        "unknown_action": False,
    }


def test_what_is_refused_again_is_a_new_letter(world: MemoryWorld) -> None:
    """It carries no mark, and goes back with one header, not with one for each time."""
    send(world, [x for x in found(world) if x.reason == "not_utf8"])
    world.run()
    newest = [x for x in found(world) if x.reason == "not_utf8"][-1]
    assert not newest.sent_back
    send(world, [newest])
    again = [r for r in world.records("events") if r.key == b"bob"][-1]
    assert [name for name, _ in again.headers] == ["trace", RESENT]


def test_two_runs_at_the_same_time_send_once(world: MemoryWorld) -> None:
    """The one that began first is fenced before anything of it counts."""
    first, second = (MemoryProducer(world.log, "ops") for _ in range(2))
    first.init()
    chosen = found(world)
    second.init()
    list(resend(world).send(second, found(world)))
    with pytest.raises(ProducerFenced):
        list(resend(world).send(first, chosen))
    assert len(world.records("events")) == 4


def test_a_letter_without_its_bytes_says_how_many_there_were(world: MemoryWorld) -> None:
    """Key and reason are there, the size is that of the original."""
    record = Record("events", 3, 991, 1_000, b"ada", b"x" * 5_000, (("trace", b"7"),))
    key, value, headers = bare_letter(record, Reason.UNPROCESSABLE, "It was too large.")
    (letter,) = letters([Record("dead-letters", 0, 1, 2_000, key, value, headers)])
    assert (letter.key, letter.value, letter.headers) == (b"ada", None, ())
    assert (letter.size, letter.left_out, letter.origin_offset) == (5_000, 5_000, 991)


def test_places_and_foreign_records() -> None:
    """What is no place is refused, a record that no worker wrote is left out."""
    for text in ("", "3", "a:1", "1:-1"):
        with pytest.raises(UnknownLetter, match="PARTITION:OFFSET"):
            place_of(text)
    with pytest.raises(UnknownLetter, match="0:7"):
        find([], (0, 7))
    world = MemoryWorld(FILMS)
    world.log.append(world.settings.kafka.topic("dead_letters"), b"x", b"y")
    assert found(world) == []


def test_bytes_are_shown_without_harm() -> None:
    """Sixteen a line, with what is printable beside them."""
    assert list(dump(b"\x1b[2Jhello, world!!")) == [
        "00000000  1b 5b 32 4a 68 65 6c 6c 6f 2c 20 77 6f 72 6c 64  .[2Jhello, world",
        "00000010  21 21                                            !!",
    ]
