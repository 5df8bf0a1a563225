"""What must not harm a user's adapter: bad steps, late events, events at fault, all in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stream.config import Settings
from stream.message_encoding import encode
from stream.testing_worker import NOW, MemoryWorld, click, item
from stream.user_state import Layout, Records, user_key

FILMS = [item(f"f{i}", f"Film number {i}", category=["Drama"]) for i in range(12)]


def stored(world: MemoryWorld, user: str) -> Records:
    """The record [1] of a user in the stores."""
    layout = Layout.of(world.serving.meta.config)
    found = [s.records.get(user_key(user.encode())) for s in world.stores.values()]
    return layout.decode([value for value in found if value is not None])


def adapter_of(world: MemoryWorld, user: str) -> dict[str, torch.Tensor]:
    """The fields of a user's adapter that steps move."""
    layout = Layout.of(world.serving.meta.config)
    state = layout.adapter_state(stored(world, user), "cpu")
    return {name: value for name, value in state.items() if name not in ("count", "time")}


# -- steps that are refused ---------------------------------------------------------------------


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e6])
def test_a_step_that_is_not_finite_or_too_far_is_refused(scale: float) -> None:
    """It is counted and leaves the adapter as it was; the event is a shot, the list comes out."""
    world = MemoryWorld(FILMS)
    world.click("ada", "f1")
    world.run()
    before = adapter_of(world, "ada")
    scales = torch.full_like(world.serving.meta["step_scale"], scale)
    world.serving.meta.tensors["step_scale"] = scales
    world.click("ada", "f2")
    world.run()
    after = adapter_of(world, "ada")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert world.metrics.refused._value.get() == 1
    assert world.lists()["ada"]["shots"] == 2
    assert np.isfinite([entry["score"] for entry in world.lists()["ada"]["items"]]).all()


# -- events out of order ------------------------------------------------------------------------


def test_a_late_event_counts_and_time_does_not_go_back() -> None:
    """An event older than the newest one is a shot like any other, with its own time."""
    world = MemoryWorld(FILMS)
    world.send(click("ada", "f1", NOW + 100))
    world.send(click("ada", "f2", NOW - 5_000))
    world.run()
    record = stored(world, "ada")
    assert record["shots"][0] == 2
    assert record["last_time"][0] == (NOW + 100) * 1_000
    assert record["first_time"][0] == (NOW - 5_000) * 1_000
    assert record["support"]["time"][0, :2].tolist() == [(NOW - 5_000) * 1_000, (NOW + 100) * 1_000]
    assert world.lists()["ada"]["caused_by"]["event_time"] == (NOW - 5_000) * 1_000


def test_order_within_a_batch_is_the_order_of_offsets() -> None:
    """One batch of late events leaves the same record as a batch for each of them."""
    events = [click("ada", f"f{i}", NOW + at) for i, at in enumerate((60, 0, 30, -90))]
    together, apart = MemoryWorld(FILMS), MemoryWorld(FILMS)
    for world in (together, apart):
        world.run()
    for event in events:
        together.send(event)
        apart.send(event)
        apart.run()
    together.run()
    both = [stored(world, "ada") for world in (together, apart)]
    assert both[0]["support"].tolist() == both[1]["support"].tolist()
    assert both[0]["shots"] == both[1]["shots"] == 4


# -- events at fault ----------------------------------------------------------------------------


def test_one_event_at_fault_does_not_stop_the_others() -> None:
    """While users go on acting, it is found and buried, and everybody else has a list."""
    world = MemoryWorld(FILMS, largest_list=1_200)
    world.run()
    verbose, others = "a-user-with-a-very-long-id" * 9, [f"user-{i}" for i in range(6)]
    world.click(verbose, "f1")
    for turn in range(40):
        for other in others:
            world.click(other, f"f{turn % 12}")
        world.run(turns=1)
    world.run(turns=5)
    dead = world.records("dead_letters")
    assert [record.key for record in dead] == [verbose.encode()]
    assert {world.lists()[other]["shots"] for other in others} == {40}


def test_several_events_at_fault_are_all_found() -> None:
    """Each of them gets a dead letter, in the order of their offsets, and nothing else does."""
    world = MemoryWorld(FILMS, largest_list=1_200)
    world.run()
    verbose = [f"{i}-user-with-a-very-long-id" * 9 for i in range(3)]
    for i, user in enumerate(verbose):
        world.click(user, "f1")
        world.click(f"user-{i}", "f2")
    world.run(turns=60)
    assert {record.key for record in world.records("dead_letters")} == {u.encode() for u in verbose}
    assert world.metrics.dead_letters.labels("unprocessable")._value.get() == 3
    assert {world.lists()[f"user-{i}"]["shots"] for i in range(3)} == {1}


def test_an_event_whose_dead_letter_is_refused_is_buried_without_its_bytes() -> None:
    """The letter says how much was left out; users behind it go on."""
    world = MemoryWorld(FILMS, largest_list=1_200)
    world.run()
    kafka, verbose = world.settings.kafka, "a-user-with-a-very-long-id" * 9
    world.log.limit(kafka.topic("dead_letters"), 700)
    event = click(verbose, "f1", NOW)
    world.send(event)
    world.click("ada", "f2")
    world.run(turns=40)
    dead = world.records("dead_letters")
    headers = dict(dead[0].headers)
    assert [(record.key, record.value) for record in dead] == [(verbose.encode(), None)]
    assert headers["reason"] == b"unprocessable"
    assert headers["left_out"] == str(len(encode(event))).encode()
    assert world.lists()["ada"]["shots"] == 1


# -- records that nobody can read ----------------------------------------------------------------


@pytest.mark.parametrize("record", [b"", b"what is this", b"?" * 9_000])
def test_a_record_that_nobody_can_read_is_begun_anew(record: bytes) -> None:
    """Its user begins anew with a version that does not go back; it is counted, others go on."""
    world = MemoryWorld(FILMS, settings=Settings(state={"ttl_days": 1}))  # type: ignore[arg-type]
    for name in ("f1", "f2"):
        world.click("ada", name)
        world.click("bob", name)
    world.run()
    version = world.lists()["ada"]["state_version"]
    store = next(s for s in world.stores.values() if user_key(b"ada") in s.records)
    store.records[user_key(b"ada")] = record
    world.click("ada", "f3")
    world.click("bob", "f3")
    world.run()
    assert [world.lists()[user]["shots"] for user in ("ada", "bob")] == [1, 3]
    assert world.lists()["ada"]["state_version"] > version
    assert world.metrics.damaged._value.get() == 1


def test_an_abort_by_the_broker_while_searching_reads_everything_again() -> None:
    """Batches that wait are given up together, so that no event is skipped or taken twice."""
    settings = Settings(batch={"max_events": 8})  # type: ignore[arg-type]
    world = MemoryWorld(FILMS, settings=settings, largest_list=1_200)
    world.run()
    verbose = "a-user-with-a-very-long-id" * 9
    for user in ("ada", "bob", verbose, "carl", "dora"):
        world.click(user, "f1")
        world.click(user, "f2")
    for turn in range(40):
        world.log.failing_commits = int(turn % 3 == 0)
        world.run(turns=1)
    world.run(turns=60)
    assert {record.key for record in world.records("dead_letters")} == {verbose.encode()}
    assert {world.lists()[user]["shots"] for user in ("ada", "bob", "carl", "dora")} == {2}
