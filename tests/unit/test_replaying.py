"""Records of `state` against the log of events they follow from."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from stream.comparing import TOLERANCE, Adapter, Report, Verdict
from stream.config import Settings
from stream.message_types import Ranking
from stream.ports import TopicPartition
from stream.replaying import Replayer
from stream.testing_worker import NOW, MemoryWorld, item, untrained_model
from stream.user_layout import copied
from stream.user_state import Layout

FILMS = [
    *(item(f"h{i}", f"Night of the Haunted House {i}", category=["Horror"]) for i in range(12)),
    *(item(f"c{i}", f"Merry Wedding Party {i}", category=["Comedy"]) for i in range(12)),
]
DAY = 86_400.0


def traffic(world: MemoryWorld, rounds: int = 6) -> None:
    """Some users act, in batches of changing size; one is forgotten, one is shown things alone."""
    for number in range(rounds):
        for user in range(8):
            for turn in range(1 + (number * user) % 5):
                name = FILMS[(7 * user + 3 * number + turn) % len(FILMS)].item
                world.click(f"user-{user}", name, action="dislike" if turn == 3 else "click")
        if number % 2:
            world.run()
    world.send_raw(b"user-1", b"{broken")
    shown = Ranking(id="r", timestamp=int(1000 * world.clock), user="idle", items=["h1"])
    world.send(shown)
    world.forget("user-2")
    world.forget("user-3")
    world.click("user-3", "h1")
    world.run()


def replayed(
    world: MemoryWorld, *, size: int = 1_000, adapters: bool = True, refreshed: bool = False
) -> Report:
    """The report on all partitions, with the model and the catalogue as they are."""
    serving = world.pipeline.roles.champion.serving
    report, kafka = Report(), world.settings.kafka
    batch = world.settings.batch.model_copy(update={"max_events": size})
    replayer = Replayer(
        world.settings.model_copy(update={"batch": batch}),
        serving,
        partitions=world.partitions,
        known_since=dict.fromkeys(serving.table.ids, -1),
    )
    for partition in range(world.partitions):
        tp = TopicPartition(kafka.topic("events"), partition)
        records = [r for r in world.records("events") if r.partition == partition]
        state = {
            r.key: r.value
            for r in world.records("state")
            if r.partition == partition and r.key is not None
        }
        kept = {user: value for user, value in state.items() if value is not None}
        until = world.log.group(kafka.group_id).committed.get(tp, 0)
        start = world.log.partition(tp).start
        users = replayer.replay([records], until)
        found = replayer.compare(kept, users, cut=start > 0, adapters=adapters, refreshed=refreshed)
        report.take(found)
    return report


@pytest.fixture
def world() -> MemoryWorld:
    """Two partitions with traffic."""
    made = MemoryWorld(FILMS)
    traffic(made)
    return made


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_every_record_follows_from_the_log(world: MemoryWorld, size: int) -> None:
    """Forgotten, shown and broken things included, whatever the batches were."""
    report = replayed(world, size=size)
    assert report.verdicts == {Verdict.AGREES: 8}, list(report.lines())
    assert report.adapters == {Adapter.COMPARED: 7}
    assert report.largest <= TOLERANCE


def test_a_hot_user_is_the_same_in_one_batch_and_in_many() -> None:
    """Hundreds of events of one user at once take several rounds, none of which begins anew."""
    world = MemoryWorld(FILMS, partitions=1)
    for number in range(300):
        world.click("hot", FILMS[number * 5 % len(FILMS)].item)
    world.run()
    for size in (1_000, 11):
        report = replayed(world, size=size)
        assert report.verdicts == {Verdict.AGREES: 1}, list(report.lines())


@pytest.mark.parametrize("name", ["state_version", "shots", "support", "adapter"])
def test_a_record_that_was_tampered_with_is_named(world: MemoryWorld, name: str) -> None:
    """Whatever was changed, the user is told with what differs."""
    layout = Layout.of(world.serving.meta.config)
    newest = next(r for r in reversed(world.records("state")) if r.key == b"user-7")
    assert newest.value is not None
    records = copied(layout.decode([newest.value]))
    if name == "adapter":
        records["adapter"]["weight"][0, 0, 0, 0] += np.float16(0.5)
    elif name == "support":
        records["support"]["value"][0, 1] = -9.0
    else:
        records[name] += np.uint64(1)
    topic = world.settings.kafka.topic("state")
    world.log.append(topic, b"user-7", layout.encode(records)[0], partition=newest.partition)
    assert bool(replayed(world, adapters=False).differences) == (name != "adapter")
    (found,) = replayed(world).differences
    assert found.user == b"user-7"
    assert found.what.startswith("support set" if name == "support" else name)


def test_lists_without_an_event_raise_versions_and_nothing_else(world: MemoryWorld) -> None:
    """After a change of the model counts, support sets and rebuilt adapters follow from the log."""
    world.offer("test-2", untrained_model(FILMS, world.settings, seed=5))
    world.release("test-2")
    world.run(20)
    report = replayed(world, refreshed=True)
    assert report.verdicts == {Verdict.AGREES: 8}, list(report.lines())
    assert report.adapters == {Adapter.COMPARED: 7}
    strict = replayed(world).differences
    assert len(strict) == 7
    assert all(found.what.startswith("state_version") for found in strict)


def test_a_record_that_is_missing_or_of_nobody_is_named(world: MemoryWorld) -> None:
    """Users of the log have a record, and records have users in the log."""
    state = world.settings.kafka.topic("state")
    newest = next(r for r in reversed(world.records("state")) if r.key == b"user-7")
    world.log.append(state, b"user-7", None, partition=newest.partition)
    world.log.append(state, b"ghost", newest.value, partition=newest.partition)
    found = {difference.user: difference.what for difference in replayed(world).differences}
    assert found == {b"user-7": "no record in state", b"ghost": "no event in the log"}


def test_expired_users_are_no_difference() -> None:
    """Neither those who are gone nor those who came back after that."""
    world = MemoryWorld(FILMS, partitions=1, settings=Settings(state={"ttl_days": 30}))  # type: ignore[arg-type]
    for user in ("gone", "back"):
        world.click(user, "h1")
    world.run()
    world.click("busy", "h2", after=40 * DAY)
    state = world.settings.kafka.topic("state")
    world.run()
    for user in (b"gone", b"back"):
        world.log.append(state, user, None)
        world.stores[0].records.pop(b"u" + user, None)
    world.click("back", "h3")
    world.run()
    assert replayed(world).verdicts == {Verdict.EXPIRED: 2, Verdict.AGREES: 1}


def test_without_expiry_a_missing_record_is_a_difference(world: MemoryWorld) -> None:
    """The excuse counts only where the setting is on and the time is over."""
    topic = world.settings.kafka.topic("state")
    newest = next(r for r in reversed(world.records("state")) if r.key == b"user-7")
    world.log.append(topic, b"user-7", None, partition=newest.partition)
    on = world.settings.state.model_copy(update={"ttl_days": 30.0})
    world.settings = world.settings.model_copy(update={"state": on})
    assert replayed(world).verdicts[Verdict.DIFFERS] == 1


def test_users_who_began_before_the_log_are_left_out(world: MemoryWorld) -> None:
    """Retention took their first events; who began later is compared."""
    world.click("late", "h1")
    world.run()
    for partition in range(world.partitions):
        tp = TopicPartition(world.settings.kafka.topic("events"), partition)
        world.log.delete_before(tp, 20)
    verdicts = replayed(world).verdicts
    assert verdicts[Verdict.BEFORE_LOG] >= 5
    assert verdicts[Verdict.AGREES] >= 1
    assert not verdicts[Verdict.DIFFERS]


def test_users_who_act_meanwhile_are_left_out(world: MemoryWorld) -> None:
    """Events that state need not know yet excuse their users, and no others."""
    world.click("user-7", "h1")
    world.click("new", "h1")
    assert replayed(world).verdicts == {Verdict.AGREES: 7, Verdict.ACTED_MEANWHILE: 1}


def test_adapters_are_compared_where_that_means_something(world: MemoryWorld) -> None:
    """Not with another model, and not where an item was not yet as it is now."""
    world.serving.version = "test-2"
    assert replayed(world).adapters == Counter({Adapter.OTHER_MODEL: 7})
    world.serving.version = "test-1"
    world.send_item(item("late", "Night of the Haunted House 99"))
    world.click("user-7", "late")
    world.click("user-6", "never-heard-of")
    world.run()
    replayer = Replayer(
        world.settings,
        world.serving,
        partitions=world.partitions,
        known_since={**dict.fromkeys(world.serving.table.ids, -1), "late": int(2e3 * NOW)},
    )
    records = world.records("events")
    late: set[bytes] = set()
    for partition in range(world.partitions):
        own = [r for r in records if r.partition == partition]
        late |= replayer.replay([own], 10**9).late
    assert late == {b"user-6", b"user-7"}


def test_events_that_workers_gave_up_on_are_left_out(world: MemoryWorld) -> None:
    """An event that became a dead letter as unprocessable changed nobody."""
    world.click("user-7", "h1")
    newest = next(r for r in reversed(world.records("events")) if r.key == b"user-7")
    own = [r for r in world.records("events") if r.partition == newest.partition]
    layout, shots = Layout.of(world.serving.meta.config), []
    for condemned in ([], [(newest.partition, newest.offset)]):
        replayer = Replayer(
            world.settings,
            world.serving,
            partitions=world.partitions,
            known_since={},
            condemned=condemned,
        )
        record = replayer.replay([own], newest.offset + 1).records()[b"user-7"]
        shots.append(int(layout.decode([record])["shots"][0]))
    assert shots[0] == shots[1] + 1
