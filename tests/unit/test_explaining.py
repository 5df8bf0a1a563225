"""Why an item stands where it does: experts add up, events are worth what they change."""

from __future__ import annotations

import pytest

from stream.errors import UnknownItem
from stream.explaining import WORDS, Explainer
from stream.message_types import Ranking
from stream.testing_worker import MemoryWorld, item

FILMS = [
    *(item(f"h{i}", f"Night of the Haunted House {i}", category=["Horror"]) for i in range(12)),
    *(item(f"c{i}", f"Merry Wedding Party {i}", category=["Comedy"]) for i in range(12)),
]


@pytest.fixture
def world() -> MemoryWorld:
    """Two partitions; ada clicked two horror films and disliked a comedy."""
    made = MemoryWorld(FILMS)
    made.click("ada", "h1")
    made.click("ada", "c1", action="dislike")
    made.click("ada", "h2")
    made.run()
    return made


def record(world: MemoryWorld, user: str) -> bytes:
    """The user's record in the stores."""
    found = (store.records.get(b"u" + user.encode()) for store in world.stores.values())
    return next(value for value in found if value is not None)


def test_contributions_add_up_to_the_published_score(world: MemoryWorld) -> None:
    """Place and score are those that the worker published, apart from what diversity moved."""
    explainer = Explainer(world.settings, world.serving)
    best = world.lists()["ada"]["items"][0]
    found = explainer.explain("ada", record(world, "ada"), [best["item"]])[0]
    assert found.score == pytest.approx(best["score"], abs=2e-5)
    assert sum(part.adds for part in found.parts) == pytest.approx(found.score, abs=1e-5)
    assert (found.place, found.of) == (1, len(FILMS) - 3)
    assert found.why in WORDS.values()


def test_the_only_event_explains_the_whole_move(world: MemoryWorld) -> None:
    """Without it the user is a new one, so its effect is the sum over the experts."""
    world.click("bob", "h1")
    world.run()
    explainer = Explainer(world.settings, world.serving)
    for found in explainer.explain("bob", record(world, "bob"), ["h3", "c3"]):
        (event,) = found.events
        assert (event.item, event.action, event.value) == ("h1", "click", 1.0)
        assert event.moved == pytest.approx(sum(part.moved for part in found.parts), abs=1e-3)


def test_what_is_like_an_item_speaks_for_it(world: MemoryWorld) -> None:
    """A horror click does more for a horror film than for a comedy; the strongest comes first."""
    explainer = Explainer(world.settings, world.serving)
    horror, comedy = explainer.explain("ada", record(world, "ada"), ["h5", "c5"])
    effect = {(e.item, one.item): e.moved for one in (horror, comedy) for e in one.events}
    assert effect["h2", "h5"] > effect["h2", "c5"]
    sizes = [abs(event.moved) for event in horror.events]
    assert sizes == sorted(sizes, reverse=True)


def test_an_item_that_is_not_ranked_says_why(world: MemoryWorld) -> None:
    """Seen and deleted items keep their score but have no place; unknown ones are an error."""
    world.delete_item("h7")
    world.run()
    explainer, value = Explainer(world.settings, world.serving), record(world, "ada")
    seen, gone = explainer.explain("ada", value, ["h1", "h7"])
    assert (seen.place, gone.place) == (None, None)
    assert "acted on it" in str(seen.not_ranked)
    assert "deleted" in str(gone.not_ranked)
    with pytest.raises(UnknownItem, match="h99"):
        explainer.explain("ada", value, ["h1", "h99"])


def test_a_record_of_another_model_is_rebuilt_first(world: MemoryWorld) -> None:
    """The adapter that another model wrote says nothing; the support set does."""
    value = record(world, "ada")
    before = Explainer(world.settings, world.serving).explain("ada", value, ["h5"])[0]
    world.serving.version = "test-2"
    after = Explainer(world.settings, world.serving).explain("ada", value, ["h5"])[0]
    assert after.score == pytest.approx(before.score, abs=2e-3)
    assert len(after.events) == 3


def test_a_user_who_was_only_shown_things_has_no_events(world: MemoryWorld) -> None:
    """Everything is as for a new user, apart from the rounding of a stored adapter."""
    world.send(Ranking(id="r", timestamp=int(1000 * world.clock), user="idle", items=["h1"]))
    world.run()
    explainer = Explainer(world.settings, world.serving)
    (found,) = explainer.explain("idle", record(world, "idle"), ["h5"])
    assert found.events == ()
    assert all(part.adds == pytest.approx(part.new_user, abs=1e-3) for part in found.parts)
