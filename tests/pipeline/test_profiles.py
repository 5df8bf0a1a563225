"""Profiles in the worker: a list for who has done nothing yet, and the start of who then acts."""

from __future__ import annotations

import pytest

from stream.config import Settings
from stream.message_types import Field, Interaction, User
from stream.testing_worker import NOW, MemoryWorld, item
from stream.user_state import Layout, profile_buckets

FILMS = [
    *(item(f"h{i}", f"Night of the Haunted House {i}", category=["Horror"]) for i in range(12)),
    *(item(f"c{i}", f"Merry Wedding Party {i}", category=["Comedy"]) for i in range(12)),
]


@pytest.fixture
def world() -> MemoryWorld:
    """Two partitions, 24 films, a worker that has just started."""
    found = MemoryWorld(FILMS)
    found.run()
    return found


def told(user: str, category: str, *, at: float = NOW) -> User:
    """A profile that names a category of films."""
    fields = [Field(name="category", value=[category]), Field(name="age", value=31)]
    return User(id=f"p-{user}-{category}-{at}", timestamp=int(at * 1000), user=user, fields=fields)


def stored(world: MemoryWorld, user: str) -> bytes | None:
    """The record of a user in the stores."""
    parts = (store.records.get(b"u" + user.encode()) for store in world.stores.values())
    return next((value for value in parts if value is not None), None)


def attributes(world: MemoryWorld, user: str) -> int:
    """How many attributes the record of a user keeps."""
    layout = Layout.of(world.serving.meta.config)
    return int((profile_buckets(layout.decode([stored(world, user)])) >= 0).sum())


def test_a_profile_gets_a_list_of_its_own(world: MemoryWorld) -> None:
    """A user who has done nothing gets one that names its cause and follows the profile."""
    kinds = {"ada": "Horror", "bob": "Comedy", "carl": "Western", "dora": "Opera"}
    for user, category in kinds.items():
        world.send(told(user, category))
    world.run()
    found = world.lists()["ada"]
    assert (found["strategy"], found["shots"]) == ("cold", 0)
    assert found["caused_by"]["event_id"] == f"p-ada-Horror-{NOW}"
    assert found["state_version"] == found["caused_by"]["offset"] + 1
    assert len({tuple(world.ranked(user)) for user in ("ada", "bob", "carl")}) == 3
    assert world.ranked("carl") == world.ranked("dora")  # no film is of these


def test_a_profile_of_who_has_acted_publishes_nothing(world: MemoryWorld) -> None:
    """It is kept for the day on which the adapter is rebuilt."""
    world.click("ada", "h1")
    world.run()
    before = world.lists()["ada"]
    world.send(told("ada", "Comedy", at=world.clock))
    world.run()
    assert world.lists()["ada"] == before
    assert attributes(world, "ada") == 2


@pytest.mark.parametrize("together", [True, False])
def test_the_first_event_starts_from_the_profile(together: bool) -> None:
    """In one batch or in two, what was told before the first click moves the lists after it."""
    worlds = [MemoryWorld(FILMS) for _ in range(2)]
    for world, category in zip(worlds, ("Horror", "Comedy"), strict=True):
        world.run()
        world.send(told("ada", category))
        if not together:
            world.run()
        world.click("ada", "c3")
        world.run()
    lists = [world.lists()["ada"] for world in worlds]
    assert {found["shots"] for found in lists} == {1}
    assert lists[0]["items"] != lists[1]["items"]


def test_a_profile_after_the_first_event_of_a_batch_does_not_count_before(
    world: MemoryWorld,
) -> None:
    """What came later in the batch is no start: the list is that of a user without a profile."""
    world.click("ada", "h1")
    world.send(told("ada", "Comedy", at=world.clock))
    event = Interaction(
        id="b", timestamp=int(world.clock * 1000), user="bob", item="h1", type="click"
    )
    world.send(event)
    world.run()
    assert world.ranked("ada") == world.ranked("bob")
    assert attributes(world, "ada") == 2


def test_a_profile_outlives_a_restart_and_is_forgotten_with_its_user(world: MemoryWorld) -> None:
    """The record holds it without any event; an erasure leaves neither record nor list."""
    world.send(told("ada", "Horror"))
    world.run()
    first = world.ranked("ada")
    world.wipe()
    world.start()
    world.run()
    assert attributes(world, "ada") == 2
    world.send(told("ada", "Horror", at=NOW + 1))
    world.run()
    assert world.ranked("ada") == first
    world.forget("ada")
    world.run()
    assert stored(world, "ada") is None
    assert world.lists()["ada"] is None


def test_a_profile_expires_with_its_user() -> None:
    """Who never acted is forgotten `state.ttl_days` after the latest profile."""
    settings = Settings(state={"ttl_days": 1.0})  # type: ignore[arg-type]
    world = MemoryWorld(FILMS, settings=settings, partitions=1)
    world.send(told("ada", "Horror"))
    world.click("bob", "h1", after=0.7 * 86_400)
    world.run()
    assert stored(world, "ada") is not None
    world.click("bob", "h2", after=0.7 * 86_400)
    world.run()
    assert stored(world, "ada") is None
    assert world.lists()["ada"] is None


def test_control_users_get_the_list_for_unseen_users() -> None:
    """Without adaptation a profile moves nothing either."""
    settings = Settings(ranking={"control_share": 0.5})  # type: ignore[arg-type]
    world = MemoryWorld(FILMS, settings=settings)
    for n in range(20):
        world.send(told(f"user-{n}", "Horror"))
    world.run()
    lists: dict[str, set[tuple[str, ...]]] = {"control": set(), "cold": set()}
    for user in {*world.lists()} - {"_cold"}:
        lists[world.lists()[user]["strategy"]].add(tuple(world.ranked(user)))
    assert [len(found) for found in lists.values()] == [1, 1]
    assert lists["control"] != lists["cold"]
