"""Workers that were thought dead: stopped beyond their session, replaced, and let go on.

Nothing that such a worker commits may be seen. What fences it are the group's metadata, which every
transaction carries together with offsets, and the broker's time limit on transactions.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from stream import checkpoints
from stream.checkpoints import SWEEP
from stream.config import Settings
from stream.errors import Aborted
from stream.kafka.admin import Admin
from stream.kafka.consumer import GroupConsumer
from stream.kafka.producer import TransactionalProducer
from stream.ports import Message, TopicPartition
from stream.testing_worker import NOW, click
from tests.chaos.process import Plan, WorkerProcess
from tests.integration.faults import DAY, Site, site
from tests.integration.world import eventually

SHORT_MS, LONG_MS = 2_000, 60_000
"""Time limits of transactions, below and above the session timeout."""


@pytest.fixture
def place(broker: str, bundle: Path, tmp_path: Path) -> Iterator[Site]:
    """Transactions end before the session does."""
    with site(broker, bundle, tmp_path, kafka__transaction_timeout_ms=SHORT_MS) as made:
        yield made


def stop_and_replace(place: Site, old: WorkerProcess, new: WorkerProcess) -> None:
    """`old` stops by its plan under traffic; return when `new` serves everything."""
    place.act_until(old)
    assert old.stopped, old.text()
    new.start()
    serves_all(new)


def serves_all(worker: WorkerProcess) -> None:
    """Return when a worker serves both partitions."""
    eventually(lambda: (worker.ready() or {}).get("serving") == [0, 1], worker.text)


def go_on(old: WorkerProcess) -> None:
    """Let a stopped worker go on; return when it has given up what it had in hand."""
    old.signal(signal.SIGCONT)
    eventually(lambda: old.lines("aborted") or old.lines("starting over"), old.text)


def end(place: Site, *workers: WorkerProcess) -> None:
    """Some more traffic, a clean end, and the check."""
    place.act()
    place.settle(*workers)
    assert [worker.terminate() for worker in workers] == [0] * len(workers)
    place.check(*workers)


# -- stopped ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point", [checkpoints.PRODUCED, checkpoints.OFFSETS_SENT, checkpoints.COMMITTING]
)
def test_a_worker_stopped_in_a_batch_commits_nothing_later(place: Site, point: str) -> None:
    """Another worker handles the events of that batch; the first one gives its own up."""
    with place.worker("old") as old, place.worker("new") as new:
        old.start(Plan(point=point, action="stop"))
        stop_and_replace(place, old, new)
        place.act()
        place.settle(new)
        go_on(old)
        end(place, old, new)


@pytest.mark.parametrize("batches", [0, 1])
def test_a_worker_stopped_in_a_sweep_erases_nobody_later(
    broker: str, bundle: Path, tmp_path: Path, batches: int
) -> None:
    """The sweep was begun for a user who has come back meanwhile: the user stays.

    Without a batch before, the sweep is the list for unseen users; with one, users expire.
    """
    limits = {"kafka__transaction_timeout_ms": SHORT_MS, "state__ttl_days": 1.0}
    with (
        site(broker, bundle, tmp_path, **limits) as place,
        place.worker("old") as old,
        place.worker("new") as new,
    ):
        back, busy = (place.user(0, number) for number in range(2))
        old.start(Plan(point=SWEEP + checkpoints.PRODUCED, action="stop", commits=batches))
        if batches:
            place.topics.send(click(back, "h1", NOW), click(busy, "h2", NOW + 2 * DAY))
        eventually(lambda: old.stopped, old.text)
        new.start()
        serves_all(new)
        place.topics.send(click(back, "h3", NOW + 2 * DAY))
        place.settle(new)
        go_on(old)
        place.topics.send(click(back, "h4", NOW + 2 * DAY + 60))
        place.settle(old, new)
        assert [old.terminate(), new.terminate()] == [0, 0]
        assert place.topics.lists(back)[-1]["shots"] >= 2
        place.check(old, new)


def test_a_commit_that_was_only_late_counts_once(broker: str, bundle: Path, tmp_path: Path) -> None:
    """Offsets were in before another worker took over: it waits for the outcome and has it all."""
    limits = {"kafka__transaction_timeout_ms": LONG_MS}
    with (
        site(broker, bundle, tmp_path, **limits) as place,
        place.worker("old") as old,
        place.worker("new") as new,
    ):
        old.start(Plan(point=checkpoints.COMMITTING, action="stop"))
        place.act_until(old)
        new.start()
        eventually(lambda: new.lines("assigned"), new.text)
        old.signal(signal.SIGCONT)
        serves_all(new)
        end(place, old, new)


def test_records_are_in_the_log_before_the_offsets_are_in_the_transaction(place: Site) -> None:
    """A worker that is given partitions after that restores up to the end of such a transaction."""
    kafka = place.settings.kafka
    tp, events = (TopicPartition(kafka.topic(role), 0) for role in ("state", "events"))
    messages = [Message(*tp, b"%d" % i, b"x" * 2_000) for i in range(2_000)]
    with Admin(kafka) as admin, joined(place.settings) as consumer:
        producer = TransactionalProducer(place.settings, "late")
        producer.init()
        producer.begin()
        producer.produce(messages)
        producer.send_offsets({events: 0}, consumer.group_metadata())
        assert admin.end_offsets([tp])[tp] == len(messages)
        producer.abort()
        producer.close()


def test_who_is_no_member_has_nothing_to_commit_with(place: Site) -> None:
    """A group that is empty would take offsets from a member that it threw out long ago."""
    consumer = GroupConsumer(place.settings.kafka, "late", auto_offset_reset="earliest")
    with pytest.raises(Aborted, match="not a member"):
        consumer.group_metadata()
    consumer.close()


@contextmanager
def joined(settings: Settings) -> Iterator[GroupConsumer]:
    """A member of the group that does nothing."""
    consumer, listener = GroupConsumer(settings.kafka, "late", auto_offset_reset="earliest"), Idle()
    consumer.subscribe(settings.kafka.topic("events"), listener)
    eventually(lambda: consumer.consume(1, 0.05) or consumer.assignment())
    yield consumer
    consumer.close()


class Idle:
    """A rebalance listener that takes no notice."""

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Nothing."""

    def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """Nothing."""


# -- timed out ----------------------------------------------------------------------------------


def test_a_transaction_that_took_too_long_is_begun_anew(place: Site) -> None:
    """The broker aborts it; the worker asks what became of it, restores, and goes on by itself."""
    with place.worker() as slow:
        slow.start(Plan(point=checkpoints.PRODUCED, action="wait", delay_s=SHORT_MS / 1000 + 2.5))
        eventually(lambda: place.act() or slow.lines("starting over"), slow.text)
        place.settle(slow)
        page = slow.page("/metrics")
        assert page is not None
        assert "innerloop_starts_over_total 1.0" in page[1]
        assert slow.terminate() == 0
    place.check(owner=slow)


# -- twins --------------------------------------------------------------------------------------


def test_of_two_workers_with_one_id_the_newer_lives(place: Site) -> None:
    """The older one ends with exit code 7 and one line that says why."""
    with place.worker("twin", "older") as older, place.worker("twin", "newer") as newer:
        older.start()
        serves_all(older)
        place.act()
        newer.start()
        eventually(lambda: not older.alive, lambda: older.text() + newer.text())
        place.act()
        assert older.exit_code == 7
        assert "Another worker took over this worker's id" in older.text()
        place.settle(newer)
        assert newer.terminate() == 0
    place.check(older, owner=newer)
