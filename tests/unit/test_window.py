"""A window of `events` and `items`: what a worker would have learned from, and nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from adapters.types import ModelConfig
from stream import left_out, window
from stream.columns import Columns, to_columns
from stream.config import load
from stream.errors import DataError
from stream.message_encoding import encode
from stream.message_types import Event, Field, Forget, Item, Ranking, User
from stream.ports import Message, TopicPartition
from stream.testing import MemoryProducer, MemoryReader
from stream.testing_log import MemoryLog
from stream.testing_worker import NOW, MemoryWorld, click, item
from stream.window import Taken, Window

DAY = 86_400.0
PARTITIONS = 3
FILMS = [item(f"f{i}", f"Film number {i}") for i in range(9)]


class Topics:
    """Both topics in memory, with a clock for the records' own time."""

    def __init__(self, **overrides: object) -> None:
        self.now = NOW
        self.settings = load(None, {k.replace("__", "."): v for k, v in overrides.items()})
        self.log = MemoryLog(lambda: self.now)
        self.log.create("events", PARTITIONS, max_bytes=200_000)
        self.log.create("items", 2)
        self.reader = MemoryReader(self.log)

    def send(self, *messages: Event | Item, partition: int | None = None) -> None:
        """Produce at the time of the clock."""
        for message in messages:
            topic = "items" if isinstance(message, Item) else "events"
            key = message.item if isinstance(message, Item) else message.user
            self.log.append(topic, key.encode(), encode(message), partition=partition)

    def measure(self, length_s: float | None = None, until: float | None = None) -> Window:
        """The window as it is now."""
        both = (self.log.partitions(topic) for topic in ("events", "items"))
        return window.measured(self.reader, *both, self.settings, length_s, until)

    def take(self, which: Window | None = None) -> Taken:
        """What is in a window, without one in all of the log."""
        return window.taken(self.reader, which or self.measure(), self.settings)


def pairs(columns: Columns) -> list[tuple[str, str]]:
    """User and item of each interaction."""
    both = zip(columns.users.tolist(), columns.items.tolist(), strict=True)
    return [(columns.user_ids[user], columns.item_ids[row]) for user, row in both]


def users(taken: Taken) -> set[str]:
    """Who is in a window."""
    return set(taken.columns.user_ids)


def test_a_window_reads_what_files_would() -> None:
    """The same events give the same columns, in order of event time over all partitions."""
    topics, rng = Topics(), np.random.default_rng(0)
    events: list[Event] = [
        click(f"u{rng.integers(20)}", f"f{rng.integers(9)}", NOW - int(rng.integers(5 * DAY)))
        for _ in range(300)
    ]
    events += [Ranking(id="r", timestamp=int(NOW * 1e3), user="u1", items=["f8", "new", "f2"])]
    events += [User(id="p", timestamp=1, user="u2", fields=[Field(name="age", value=3)])]
    topics.send(*events)
    found, wanted = topics.take().columns, to_columns(events, topics.settings.messages)
    assert Counter(pairs(found)) == Counter(pairs(wanted))
    np.testing.assert_array_equal(found.times, wanted.times)
    assert found.shown is not None
    assert [found.item_ids[i] for i in found.shown.items] == ["f2", "new", "f8"]
    assert found.told is not None
    assert [found.user_ids[u] for u in found.told.users] == ["u2"]


def test_an_old_log_has_the_window_that_it_had_then() -> None:
    """A log of years ago that was produced today is cut by event time, not by its records'."""
    topics, then = Topics(), NOW - 3_000 * DAY
    topics.send(*(click(f"u{day}", "f1", then + day * DAY) for day in range(10)))
    found = topics.take(topics.measure(2.5 * DAY))
    assert users(found) == {"u7", "u8", "u9"}
    assert found.left.interactions.outside == 7
    early = topics.take(topics.measure(2.5 * DAY, until=then + 5 * DAY))
    assert users(early) == {"u3", "u4"}


def test_reading_begins_where_the_window_can() -> None:
    """Records too old to hold an event of the window are not read; clocks that differ harm not."""
    topics = Topics()
    for day in range(10):
        topics.now = NOW + day * DAY
        topics.send(*(click(f"u{day}-{i}", "f1", topics.now) for i in range(30)))
    topics.now -= DAY  # a producer whose clock is behind sends an event of the newest day
    topics.send(click("late", "f1", topics.now + 500))
    measured = topics.measure(1.5 * DAY)
    assert 60 <= measured.events.size < 3 * 30 + 2
    found = topics.take(measured)
    assert users(found) == {"late", *(f"u{day}-{i}" for day in (8, 9) for i in range(30))}


def test_an_event_ahead_of_its_record_is_not_missed() -> None:
    """Event time may be `messages.future_ms` ahead of the record; such events are in, too."""
    topics = Topics(messages__future_ms=3_600_000)
    topics.send(click("ahead", "f1", NOW + 3_500))
    topics.now = NOW + DAY
    topics.send(click("last", "f2", topics.now))
    assert users(topics.take(topics.measure(DAY - 3_400))) == {"ahead", "last"}


def test_who_was_forgotten_is_left_out() -> None:
    """All that came before an erasure goes, in the log or by event time; what follows stays."""
    topics = Topics()
    topics.send(click("ada", "f1", NOW + 9), click("ada", "f2", NOW), click("bob", "f1", NOW))
    topics.send(click("eve", "f4", NOW), Ranking(id="r", timestamp=1, user="eve", items=["f9"]))
    topics.send(Forget(id="x", timestamp=int(NOW * 1e3) + 5_000, user="ada"))
    topics.send(click("ada", "f3", NOW + 2))  # late: it was before she asked
    topics.send(click("ada", "f3", NOW + 3), partition=0)
    topics.send(click("ada", "f3", NOW + 3), partition=1)
    topics.send(click("ada", "f5", NOW + 6))
    topics.send(Forget(id="y", timestamp=int(NOW * 1e3), user="eve"))
    found = topics.take()
    assert sorted(pairs(found.columns)) == [("ada", "f5"), ("bob", "f1")]
    assert found.columns.shown is None
    assert found.left.interactions.erased == 6
    assert found.left.misrouted >= 1


def test_a_forget_outside_the_window_counts() -> None:
    """Who asked after the window's end, or with an old event time, is gone all the same."""
    topics = Topics()
    topics.send(click("ada", "f1", NOW), click("bob", "f1", NOW), click("eve", "f1", NOW))
    topics.send(Forget(id="x", timestamp=int((NOW + DAY) * 1e3) - 86_000_000, user="ada"))
    topics.send(Forget(id="y", timestamp=1, user="bob"))
    assert users(topics.take(topics.measure(DAY, until=NOW + 1))) == {"eve"}


def test_what_workers_refuse_is_counted() -> None:
    """Dead letters and skips are those of the worker, by reason, and cost no neighbour."""
    topics = Topics(messages__actions={"click": {}, "hover": {"weight": 0.0}})
    topics.send(click("ada", "f1", NOW))
    topics.log.append("events", b"ada", b"{")
    topics.log.append("events", b"ada", None)
    topics.log.append("events", b"bob", encode(click("ada", "f1", NOW + 1)))
    topics.send(click("ada", "f2", NOW, action="swipe"), click("ada", "f3", NOW, action="hover"))
    topics.send(click("ada", "f4", NOW + DAY))
    topics.log.append("items", b"f1", b"[]")
    found = topics.take()
    assert pairs(found.columns) == [("ada", "f1")]
    reasons = ["not_json", "key_mismatch", "unknown_action", "timestamp_future"]
    assert found.left.dead == dict.fromkeys(reasons, 1)
    assert found.left.skipped == {"empty": 1, "ignored_action": 1}
    assert found.left.bad_items == {"wrong_type": 1}


@pytest.mark.parametrize("most", [None, 3])
def test_repeats_are_skipped_as_workers_skip_them(most: int | None) -> None:
    """Of a log with events sent twice and floods, a user has as many as a worker has counted."""
    settings = load(None, {"messages.max_per_minute": most})
    world = MemoryWorld(FILMS, partitions=PARTITIONS, settings=settings)
    rng = np.random.default_rng(1)
    for number in range(400):
        at = NOW + int(rng.integers(600))
        event = click(f"u{rng.integers(6)}", f"f{rng.integers(9)}", at)
        for _ in range(2 if rng.random() < 0.2 else 1):
            world.send(event)
        if number % 40 == 0:
            world.run()
    world.run()
    shots = {user: found["shots"] for user, found in world.lists().items() if user != "_cold"}
    reader, kafka = MemoryReader(world.log), world.settings.kafka
    both = (world.log.partitions(kafka.topic(role)) for role in ("events", "items"))
    found = window.taken(reader, window.measured(reader, *both, settings), settings)
    counted = Counter(user for user, _ in pairs(found.columns))
    assert counted == shots
    assert found.left.interactions.duplicates > 20
    assert (found.left.interactions.too_many > 20) == (most is not None)


def test_an_id_is_known_as_long_as_workers_know_it() -> None:
    """An event that is sent again behind 64 others counts again, behind 63 it does not."""
    assert ModelConfig().support == left_out.KNOWN
    topics = Topics()
    for user, others in (("ada", 63), ("bob", 64)):
        first = click(user, "f1", NOW)
        topics.send(first, *(click(user, "f2", NOW + 1 + i) for i in range(others)), first)
    counted = Counter(user for user, _ in pairs(topics.take().columns))
    assert counted == {"ada": 64, "bob": 66}


def test_a_window_that_was_kept_is_read_again_as_it_was() -> None:
    """Later events, items and erasures change nothing of a window, not even through JSON."""
    topics = Topics()
    topics.send(*FILMS, *(click(f"u{i}", f"f{i}", NOW + i) for i in range(9)))
    kept = Window.from_dict(topics.measure(DAY).to_dict())
    before = topics.take(kept)
    topics.send(click("u1", "f3", NOW + 60), item("f1", "Another title"), item("new", "New"))
    topics.send(Forget(id="x", timestamp=int(NOW * 1e3) + 60_000, user="u2"))
    again = topics.take(kept)
    assert again.items == before.items
    assert pairs(again.columns) == pairs(before.columns)
    assert len(pairs(topics.take().columns)) == 9


def test_items_are_the_newest_and_in_order_of_their_ids() -> None:
    """Of each item the last message counts, deleted ones are gone, rows have a fixed order."""
    topics = Topics()
    topics.send(*reversed(FILMS), item("f3", "Better title"))
    topics.log.append("items", b"f5", None)
    found = topics.take().items
    assert [one.item for one in found] == sorted({f.item for f in FILMS} - {"f5"})
    assert found[3].fields[0].value == "Better title"


def test_only_what_is_committed_is_read() -> None:
    """Records of an aborted transaction are none; those behind the measured end wait."""
    topics = Topics()
    producer = MemoryProducer(topics.log)
    producer.init()
    for user, end in (("ada", producer.abort), ("bob", producer.commit)):
        event = click(user, "f1", NOW)
        producer.begin()
        producer.produce([Message("events", 0, user.encode(), encode(event))])
        end()
    assert users(topics.take()) == {"bob"}


def test_a_window_that_retention_has_passed_says_so() -> None:
    """The partition is named, with what to do."""
    topics = Topics()
    topics.send(*(click("ada", "f1", NOW + i) for i in range(9)))
    measured = topics.measure()
    topics.log.delete_before(TopicPartition(*topics.log.records("events")[0][:2]), 5)
    with pytest.raises(DataError, match=r"events\[\d\] no longer holds .* longer than a training"):
        topics.take(measured)


def test_an_empty_log_has_an_empty_window() -> None:
    """Nothing is no error here: who reads the window says how much is needed."""
    found = Topics().take(Topics().measure(DAY))
    assert (len(found.columns), found.items) == (0, [])
