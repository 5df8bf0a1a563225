"""The worker over in-memory twins: what comes in, what goes out, what survives."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import pytest

from stream.config import Settings
from stream.errors import BrokerUnavailable
from stream.message_types import Ranking
from stream.ports import TopicPartition
from stream.testing import MemoryReader
from stream.testing_worker import NOW, MemoryWorld, item

FILMS = [
    *(item(f"h{i}", f"Night of the Haunted House {i}", category=["Horror"]) for i in range(12)),
    *(item(f"c{i}", f"Merry Wedding Party {i}", category=["Comedy"]) for i in range(12)),
    *(item(f"s{i}", f"Starship Galaxy Wars {i}", category=["Sci-Fi"]) for i in range(12)),
]


DAY = 86_400.0


def with_ttl(*, days: float) -> Settings:
    """Settings under which users expire."""
    return Settings(state={"ttl_days": days})  # type: ignore[arg-type]


@pytest.fixture
def world() -> MemoryWorld:
    """Two partitions, 36 films, a worker that has just started."""
    return MemoryWorld(FILMS)


def test_a_click_publishes_one_list_that_names_its_cause(world: MemoryWorld) -> None:
    """The list says which event moved it, how often the user acted, and drops what was seen."""
    world.click("ada", "h1")
    world.run()
    found = world.lists()["ada"]
    assert found["shots"] == 1
    assert found["strategy"] == "adapted"
    assert found["caused_by"]["event_id"] == f"ada-h1-{NOW + 1}-click"
    assert found["state_version"] == found["caused_by"]["offset"] + 1
    assert len(found["items"]) == 20
    assert "h1" not in world.ranked("ada")


def test_every_partition_gets_a_list_for_unseen_users(world: MemoryWorld) -> None:
    """A reader of any partition finds `_cold` there before anybody acted."""
    world.run()
    cold = [r.partition for r in world.records("recommendations") if r.key == b"_cold"]
    assert sorted(cold) == [0, 1]


def test_one_list_a_batch_whatever_the_number_of_events(world: MemoryWorld) -> None:
    """Three events of a user in a batch make three shots and one list, caused by the last."""
    world.run()
    for name in ("h1", "h2", "c3"):
        world.click("ada", name)
    world.run()
    lists = [r for r in world.records("recommendations") if r.key == b"ada"]
    assert len(lists) == 1
    assert world.lists()["ada"]["shots"] == 3
    assert world.lists()["ada"]["caused_by"]["event_id"].startswith("ada-c3-")


def test_a_duplicate_event_is_learned_once(world: MemoryWorld) -> None:
    """The same event id in the same or in a later batch changes nothing and publishes nothing."""
    world.click("ada", "h1")
    event = world.records("events")[-1]
    world.send_raw(event.key, event.value)
    world.run()
    world.send_raw(event.key, event.value)
    world.run()
    lists = [r for r in world.records("recommendations") if r.key == b"ada"]
    assert len(lists) == 1
    assert world.lists()["ada"]["shots"] == 1


def test_bad_records_become_dead_letters_and_spare_their_neighbours(world: MemoryWorld) -> None:
    """A batch with broken bytes in it still publishes the lists of the others."""
    world.send_raw(b"ada", b"{broken")
    world.click("bob", "h1")
    world.send_raw(b"carl", b"\xff\xfe")
    world.run()
    reasons = [dict(r.headers)["reason"] for r in world.records("dead_letters")]
    assert sorted(reasons) == [b"not_json", b"not_utf8"]
    assert "bob" in world.lists()


def test_impressions_publish_no_list_and_are_no_shots(world: MemoryWorld) -> None:
    """What was shown waits in the record; the next list comes with the next interaction."""
    shown = Ranking(id="r", timestamp=int(NOW * 1000), user="ada", items=["h1", "h2"])
    world.send(shown)
    world.run()
    assert "ada" not in world.lists()
    world.click("ada", "c1", after=4_000)
    world.run()
    assert world.lists()["ada"]["shots"] == 1


def test_an_unknown_item_counts_as_a_shot_and_is_learned_from_later(world: MemoryWorld) -> None:
    """An event on an item that nobody described keeps its place in the support set."""
    world.click("ada", "never-heard-of")
    world.run()
    assert world.lists()["ada"]["shots"] == 1


def test_a_deleted_item_leaves_every_later_list(world: MemoryWorld) -> None:
    """After a null on `items` neither users' lists nor `_cold` hold the item."""
    world.click("ada", "h1")
    world.run()
    gone = world.ranked("ada")[0]
    world.delete_item(gone)
    world.run()
    world.click("ada", "h2")
    world.run()
    assert gone not in world.ranked("ada")
    assert gone not in world.ranked("_cold")


def test_a_new_item_is_ranked_from_its_text_alone(world: MemoryWorld) -> None:
    """An item that the model never saw can be in the very next list."""
    world.click("ada", "h1")
    world.run()
    world.send_item(item("new", "Night of the Haunted House 99", category=["Horror"]))
    world.run()
    world.click("ada", "h2")
    world.run()
    assert world.pipeline.items() == len(FILMS) + 1
    assert "new" in world.ranked("ada")


def test_a_restart_goes_on_where_the_worker_stopped(world: MemoryWorld) -> None:
    """Shots go on and versions never go back when another worker takes over."""
    world.click("ada", "h1")
    world.run()
    before = world.lists()["ada"]
    world.start()
    world.click("ada", "h2")
    world.run()
    after = world.lists()["ada"]
    assert after["shots"] == 2
    assert after["state_version"] > before["state_version"]


def test_a_lost_disk_is_restored_to_the_same_bytes(world: MemoryWorld) -> None:
    """The changelogs bring back every record of the store, byte for byte."""
    for i in range(6):
        world.click(f"user-{i}", f"h{i}", after=1_000)
        world.click(f"user-{i}", f"c{i}", after=1_000)
        world.run()
    before = {p: dict(s.records) for p, s in world.stores.items()}
    world.wipe()
    world.start()
    world.run()
    assert {p: s.records for p, s in world.stores.items()} == before
    assert any(key.startswith(b"n") for records in before.values() for key in records)


def test_an_aborted_transaction_leaves_no_trace(world: MemoryWorld) -> None:
    """The batch is read again, counted once, and its list is published once."""
    world.run()
    world.click("ada", "h1")
    world.click("ada", "h2", after=4_000)
    world.log.failing_commits = 1
    world.run()
    lists = [r for r in world.records("recommendations") if r.key == b"ada"]
    assert len(lists) == 1
    assert world.lists()["ada"]["shots"] == 2
    counted = sum(s.counts[:, [0, -1]].sum() for s in world.serving.signals.parts.values())
    assert counted == pytest.approx(2.0, rel=0.1)


def test_a_commit_without_an_answer_is_counted_once(world: MemoryWorld) -> None:
    """The worker does not guess: it restores, and goes on where the group's offset is."""
    world.run()
    world.click("ada", "h1")
    world.log.unheard_commits = 1
    world.run()
    world.click("ada", "h2")
    world.run()
    lists = [orjson.loads(r.value) for r in world.records("recommendations") if r.key == b"ada"]
    assert [found["shots"] for found in lists] == [1, 2]
    assert world.metrics.restarts.collect()[0].samples[0].value == 1


def test_a_sweep_without_an_answer_leaves_the_offsets_where_they_are() -> None:
    """Offsets that a sweep sends along are those of the broker, never those from before a doubt."""
    world = MemoryWorld(FILMS, settings=with_ttl(days=1))
    world.click("ada", "h1")
    world.run()
    world.log.unheard_commits = 1
    world.click("bob", "h2", after=2 * DAY)
    world.run(turns=20)
    world.start()
    world.run(turns=20)
    lists = [r for r in world.records("recommendations") if r.key == b"bob"]
    assert len(lists) == 1


def test_users_who_no_longer_act_expire() -> None:
    """Their record and list become nulls; others stay; who comes back begins anew."""
    world = MemoryWorld(FILMS, settings=with_ttl(days=1), partitions=1)
    world.click("ada", "h1")
    world.click("bob", "h1", after=0.7 * DAY)
    world.run()
    version = world.lists()["ada"]["state_version"]
    world.click("carl", "h2", after=0.7 * DAY)
    world.run()
    assert world.lists()["ada"] is None
    assert world.lists()["bob"]["shots"] == 1
    assert b"uada" not in world.stores[0].records
    world.click("ada", "h3")
    world.run()
    assert world.lists()["ada"]["shots"] == 1
    assert world.lists()["ada"]["state_version"] > version


def test_more_events_in_a_minute_than_a_person_makes_are_skipped() -> None:
    """The cap counts minutes of event time, whatever the batches; a later event is learned."""
    settings = Settings(messages={"max_per_minute": 3})  # type: ignore[arg-type]
    world = MemoryWorld(FILMS, settings=settings)
    world.run()
    for i in range(6):
        world.click("bot", f"h{i}", after=1)
        world.click("ada", f"c{i}", after=20)
        if i == 3:
            world.run()
    world.run()
    assert world.lists()["ada"]["shots"] == 6
    for i in range(9):
        world.click("bot", f"s{i}", after=1 if i else 60)
    world.run()
    assert world.lists()["bot"]["shots"] == 6 + 3
    skipped = world.metrics.skipped.labels("too_many")._value.get()
    assert skipped == 6


def test_readiness_can_be_told_while_partitions_restore(world: MemoryWorld) -> None:
    """What /readyz answers is JSON at every moment of a start."""
    world.worker.assigned([TopicPartition("events", 7)])
    ready, details = world.worker.ready()
    assert not ready
    assert orjson.loads(orjson.dumps(details))["restoring"] == {"7": 0.0}


def test_forgetting_erases_the_record_and_the_list(world: MemoryWorld) -> None:
    """Nulls go to `state` and `recommendations`; versions still rise when the user comes back."""
    world.click("ada", "h1")
    world.run()
    before = world.lists()["ada"]["state_version"]
    world.forget("ada")
    world.run()
    assert world.lists()["ada"] is None
    assert all(b"uada" not in s.records for s in world.stores.values())
    world.click("ada", "h2")
    world.run()
    assert world.lists()["ada"]["shots"] == 1
    assert world.lists()["ada"]["state_version"] > before


def test_an_event_that_keeps_failing_alone_goes_to_dead_letters() -> None:
    """A batch is halved until the one event whose list is too large stands alone."""
    world = MemoryWorld(FILMS, largest_list=1_700)
    world.run()
    verbose = "a-user-with-a-very-long-id" * 9
    for user in ("ada", "bob", verbose, "carl", "dora"):
        world.click(user, "h1")
    world.run(turns=60)
    dead = world.records("dead_letters")
    assert [r.key for r in dead] == [verbose.encode()]
    assert dict(dead[0].headers)["reason"] == b"unprocessable"
    assert {"ada", "bob", "carl", "dora"} <= world.lists().keys()


def test_control_users_get_lists_without_adaptation() -> None:
    """A share of users, by hash, gets the start's list whatever they do."""
    settings = Settings(ranking={"control_share": 0.5})  # type: ignore[arg-type]
    world = MemoryWorld(FILMS, settings=settings)
    for i in range(20):
        world.click(f"user-{i}", "h1")
    world.run()
    strategies = {v["strategy"] for k, v in world.lists().items() if k != "_cold"}
    assert strategies == {"control", "adapted"}


def test_what_users_of_other_partitions_do_reaches_the_ranking(world: MemoryWorld) -> None:
    """Signals are the sum over partitions, as of the last closed bucket."""
    for i in range(30):
        world.click(f"user-{i}", "s5")
    world.run()
    world.click("late", "h1", after=7_200)
    world.run()
    prepared = world.serving.prepared()
    popularity = prepared.columns[16 + 8, : prepared.size]
    assert int(popularity.argmax()) == world.serving.table.row("s5")


def test_events_lost_to_retention_are_counted_and_the_worker_goes_on(world: MemoryWorld) -> None:
    """A worker that comes back too late says how many events it will never see."""
    world.click("ada", "h1")
    world.run()
    tp = world.log.append("events", b"ada", b"lost")
    world.log.append("events", b"ada", b"lost")
    world.log.delete_before(tp, world.log.end(tp))
    world.start()
    world.click("ada", "h2")
    world.run()
    assert world.metrics.gaps.collect()[0].samples[0].value == 2
    assert world.lists()["ada"]["shots"] == 2


def test_records_that_an_error_took_along_are_read_again(world: MemoryWorld) -> None:
    """A read that fails after it has moved on costs no event: the committed offsets count."""
    world.run()
    for losing in (1, 2):
        for name in ("h1", "h2", "c3"):
            world.click("ada", f"{name[0]}{int(name[1:]) + losing}")
        world.log.losing_reads = losing
        world.run(turns=20)
        assert world.log.losing_reads == 0
        assert world.lists()["ada"]["shots"] == 3 * losing


def test_a_partition_of_which_nothing_comes_is_read_anew(
    world: MemoryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noticed by its lag, counted, and goes on where it stood; quiet ones are left alone."""
    monkeypatch.setattr("stream.worker.HOUSEKEEPING_S", 0.0)
    monkeypatch.setattr("stream.lag.STANDS_S", 0.0)
    world.click("ada", "h1")
    world.run()

    def stalls() -> float:
        return float(world.metrics.stalls.collect()[0].samples[0].value)

    for shots in (2, 3):
        before = stalls()
        world.log.standing.update(world.log.partitions("events"))
        world.click("ada", f"h{shots}")
        world.run(turns=20)
        assert world.lists()["ada"]["shots"] == shots
        assert stalls() == before + 1
        world.start()  # who has handled nothing yet looks up where it stands


def test_a_partition_that_cannot_be_begun_for_now_is_begun_later(
    world: MemoryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No broker answers just when it is asked where the log begins."""
    answer, left = MemoryReader.start_offsets, [1]

    def away(
        reader: MemoryReader, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        if left and left.pop():
            raise BrokerUnavailable("gone for a moment")
        return answer(reader, partitions)

    monkeypatch.setattr(MemoryReader, "start_offsets", away)
    monkeypatch.setattr("stream.worker.BROKER_WAIT_S", 0.0)
    world.click("ada", "h1")
    world.run()
    assert not left
    assert world.lists()["ada"]["shots"] == 1
