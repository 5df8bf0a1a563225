"""After a change of the model: users who acted lately get a list by the new one, unasked."""

from __future__ import annotations

import itertools

import pytest

from stream.config import Settings
from stream.refreshing import CHUNK, Refresher
from stream.roles import Roles, ServedModel
from stream.testing_worker import MemoryWorld
from tests.pipeline.test_models import FILMS, other_model, version

DAY = 86_400.0


@pytest.fixture
def world() -> MemoryWorld:
    """Three users who acted within a week, one who did not, and a model to come."""
    return populated(MemoryWorld(FILMS, partitions=1))


def populated(made: MemoryWorld) -> MemoryWorld:
    """See `world`."""
    made.offer("test-2", other_model())
    made.click("old", "h1")
    made.clock += 10 * DAY
    for user in ("ada", "bob", "cleo"):
        made.click(user, "h2", after=60.0)
    made.run()
    return made


def metric(world: MemoryWorld, name: str) -> float | None:
    """A metric of the worker."""
    return world.metrics.registry.get_sample_value(name)


def test_recently_active_users_get_a_list_by_the_new_model(world: MemoryWorld) -> None:
    """It has no cause, the next version and the same count; who was away longer waits."""
    before = world.lists()
    world.release("test-2")
    world.run(20)
    after = world.lists()
    for user in ("ada", "bob", "cleo"):
        assert after[user]["model_version"] == "test-2"
        assert after[user]["caused_by"] is None
        assert after[user]["state_version"] == before[user]["state_version"] + 1
        assert after[user]["shots"] == before[user]["shots"]
    assert after["old"] == before["old"]


def test_a_refreshed_user_goes_on_as_one_who_was_rebuilt_when_he_acted() -> None:
    """The next list is the same whether the sweep or the event has rebuilt the adapter."""
    swept = populated(MemoryWorld(FILMS, partitions=1))
    still = populated(MemoryWorld(FILMS, partitions=1, settings=Settings(model=_never())))
    for one in (swept, still):
        one.release("test-2")
        one.run(20)
        one.click("ada", "h3")
        one.run()
    assert swept.lists()["bob"]["model_version"] == "test-2"
    assert still.lists()["bob"]["model_version"] == "test-1"
    assert swept.ranked("ada") == still.ranked("ada")


def _never() -> object:
    return {"refresh_within_days": 0}


def test_everybody_is_refreshed_once(world: MemoryWorld) -> None:
    """The sweep ends, says how many, and does not begin again."""
    world.release("test-2")
    world.run(30)
    assert metric(world, "innerloop_refreshed_users_total") == 3
    assert metric(world, "innerloop_refresh_left") == 0
    lists = [r for r in world.records("recommendations") if r.key == b"ada"]
    assert len(lists) == 2


def test_a_few_users_at_a_time(world: MemoryWorld) -> None:
    """A transaction has a bounded number of users, and the metric counts down."""
    for n in range(2 * CHUNK):
        world.click(f"user-{n}", "h3", after=0.01)
    world.run()
    world.release("test-2")
    left = []
    for _ in range(20):
        world.run(1)
        left.append(metric(world, "innerloop_refresh_left"))
    drops = [a - b for a, b in itertools.pairwise(left) if a is not None and b and a > b]
    assert max(left) == 2 * CHUNK + 3  # type: ignore[type-var]
    assert max(drops) == CHUNK
    assert left[-1] == 0


def test_a_sweep_leaves_full_batches_nine_tenths_of_the_time(world: MemoryWorld) -> None:
    """While batches are full its work waits; with room to spare it does not."""
    now = 0.0
    world.start("test-2")
    roles = Roles(ServedModel(world.settings, world.serving, lambda: now))
    refresher = Refresher(7.0, roles, clock=lambda: now)
    refresher.serve(0, world.stores[0])
    refresher.next(busy=True)  # counts
    refresher.took(1.0)
    now = 9.9
    assert refresher.next(busy=True) is None
    now = 10.1
    due = refresher.next(busy=True)
    assert due is not None
    assert due.names == ["ada", "bob", "cleo"]
    refresher.serve(0, world.stores[0])
    refresher.took(100.0)
    refresher.next(busy=False)
    assert refresher.next(busy=False) is not None


def test_a_sweep_goes_on_after_a_restart(world: MemoryWorld) -> None:
    """Who still waits follows from the records, wherever the sweep was broken off."""
    world.start("test-2")
    world.run(20)
    assert version(world, "ada") == "test-2"
    assert version(world, "old") == "test-1"


def test_a_sweep_whose_transaction_was_aborted_finds_its_users_again(world: MemoryWorld) -> None:
    """Nobody is left behind, and no version is given twice."""
    world.run()
    world.release("test-2")
    world.run(3)
    sweeps = (world.pipeline.sweep({0: world.stores[0]}) for _ in range(3))
    assert next(outcome.refreshed for outcome in sweeps if outcome.messages) == 3
    world.pipeline.aborted()
    world.run(20)
    lists = [r for r in world.records("recommendations") if r.key == b"ada"]
    assert len(lists) == 2
    assert version(world, "ada") == "test-2"


def test_users_of_a_challenger_are_refreshed_by_it() -> None:
    """Who moves to the challenger gets its list; the others keep theirs."""
    world = MemoryWorld(FILMS, partitions=1)
    world.offer("test-2", other_model())
    users = [f"user-{n}" for n in range(20)]
    for user in users:
        world.click(user, "h1", after=1.0)
    world.run()
    world.release("test-2", role="challenger", share=0.5)
    world.run(20)
    tried = {user for user in users if version(world, user) == "test-2"}
    assert 4 <= len(tried) <= 16
    assert metric(world, "innerloop_refreshed_users_total") == len(tried)


def test_a_forgotten_user_is_not_brought_back(world: MemoryWorld) -> None:
    """Between the look at the records and the list the store counts."""
    world.release("test-2")
    world.run(3)
    world.forget("ada")
    world.run(20)
    assert world.lists()["ada"] is None


def test_nobody_is_moved_back_while_another_model_is_wanted(world: MemoryWorld) -> None:
    """A worker that still prepares the champion leaves users whom others have moved already."""
    world.release("test-2")
    world.run(20)
    moved = world.lists()["ada"]
    world.executor.held = True
    world.start("test-1")
    world.run(20)
    assert world.lists()["ada"] == moved
    world.executor.held = False
    world.executor.let_go()
    world.run(20)
    assert world.lists()["ada"] == moved
