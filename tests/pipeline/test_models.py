"""The model changes under a worker: what serves, what stays, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adapters.types import Meta
from export.bundle_tensors import Items
from stream import roles
from stream.config import Settings
from stream.errors import BundleError, BundleUnreachable
from stream.models import RETRY_S
from stream.murmur2 import partition_of
from stream.roles import ServedModel
from stream.testing_worker import NOW, MemoryWorld, item, untrained_model

FILMS = [
    *(item(f"h{i}", f"Night of the Haunted House {i}", category=["Horror"]) for i in range(12)),
    *(item(f"c{i}", f"Merry Wedding Party {i}", category=["Comedy"]) for i in range(12)),
    *(item(f"s{i}", f"Starship Galaxy Wars {i}", category=["Sci-Fi"]) for i in range(12)),
]
ELSEWHERE = [item(f"x{i}", f"Lost Reel {i}", category=["Drama"]) for i in range(3)]
"""Items that a bundle knows and that are not on `items`."""


def other_model(**changes: Any) -> tuple[Meta, Items]:
    """Other weights; a bundle that knows the items in another order, some not, and others."""
    known = [*ELSEWHERE, *reversed(FILMS[6:])]
    return untrained_model(known, Settings(), seed=5, **changes)


@pytest.fixture
def world() -> MemoryWorld:
    """A worker that serves `test-1`; `test-2` is there to be released."""
    made = MemoryWorld(FILMS)
    made.offer("test-2", other_model())
    return made


def version(world: MemoryWorld, user: str) -> str:
    """The model that made a user's newest list."""
    return str(world.lists()[user]["model_version"])


def act(world: MemoryWorld, users: int = 6) -> None:
    """Every user clicks two items, in a batch of its own."""
    for n in range(users):
        world.click(f"user-{n}", f"h{n}")
        world.run(1)
        world.click(f"user-{n}", f"s{n + 1}", after=3_600.0)
    world.run()


# -- the swap -----------------------------------------------------------------------------------


def test_a_champion_that_is_named_serves_from_the_next_batch_on(world: MemoryWorld) -> None:
    """Lists name the new model, and no user's version goes back."""
    world.click("ada", "h1")
    world.run()
    before = world.lists()["ada"]
    world.release("test-2")
    world.run()
    world.click("ada", "h2")
    world.run()
    after = world.lists()["ada"]
    assert (before["model_version"], after["model_version"]) == ("test-1", "test-2")
    assert after["state_version"] > before["state_version"]
    assert after["shots"] == 2


def test_the_old_model_serves_while_the_new_one_is_prepared(world: MemoryWorld) -> None:
    """Nothing waits for the other thread."""
    world.run()
    world.executor.held = True
    world.release("test-2")
    world.click("ada", "h1")
    world.run()
    assert version(world, "ada") == "test-1"
    assert world.worker.ready()[1]["models"]["preparing"] == "test-2"
    world.executor.held = False
    world.executor.let_go()
    world.run()
    world.click("ada", "h2")
    world.run()
    assert version(world, "ada") == "test-2"


def test_a_swapped_model_ranks_as_one_that_was_there_from_the_start() -> None:
    """Rows, signals and priors mean the same, whatever order the bundles have the items in."""
    swapped, fresh = MemoryWorld(FILMS), MemoryWorld(FILMS)
    for one in (swapped, fresh):
        act(one)
        one.offer("test-2", other_model())
    swapped.release("test-2")
    swapped.run()
    fresh.start("test-2")
    for one in (swapped, fresh):
        one.click("ada", "c3")
        one.click("user-1", "c4")
        one.run()
    for user in ("ada", "user-1", "_cold"):
        assert swapped.lists()[user]["model_version"] == "test-2"
        assert swapped.ranked(user) == fresh.ranked(user)
        a, b = (one.lists()[user]["items"] for one in (swapped, fresh))
        assert [x["score"] for x in a] == pytest.approx([x["score"] for x in b], abs=1e-4)


def test_signals_stay_as_they_were(world: MemoryWorld) -> None:
    """A swap changes no counter, and what is written afterwards goes on from there."""
    act(world)
    before = {p: s.counts.sum() for p, s in world.serving.signals.parts.items()}
    written = len(world.records("signals"))
    world.release("test-2")
    world.run()
    assert {p: s.counts.sum() for p, s in world.serving.signals.parts.items()} == before
    assert len(world.records("signals")) == written
    world.click("ada", "h0")
    world.run()
    assert sum(s.counts.sum() for s in world.serving.signals.parts.values()) > sum(before.values())


def test_items_that_come_while_a_model_is_prepared_are_ranked_by_it(world: MemoryWorld) -> None:
    """What came and what went between the reading of `items` and the swap is taken in."""
    world.run()
    world.executor.held = True
    world.release("test-2")
    world.run()
    world.executor.let_go()  # has read the items
    world.send_item(item("new", "Night of the Haunted House again", category=["Horror"]))
    world.delete_item("h2")
    world.run(1)
    world.executor.held = False
    world.executor.let_go()
    world.run()
    world.clock += 7_200
    world.click("ada", "h1")
    world.run()
    world.click("ada", "h3", after=7_200)
    world.run()
    assert version(world, "ada") == "test-2"
    assert "h2" not in world.ranked("ada")
    assert world.pipeline.items() == len(FILMS)


def test_items_go_on_changing_after_a_swap(world: MemoryWorld) -> None:
    """New, changed and deleted items reach the model that was swapped in."""
    world.release("test-2")
    world.run()
    world.send_item(item("new", "Night of the Haunted House again", category=["Horror"]))
    world.send_item(item("c1", "Merry Wedding Party once more", category=["Comedy"]))
    world.delete_item("h2")
    world.run()
    world.click("ada", "h1", after=7_200)
    world.run()
    table = world.pipeline.roles.champion.serving.table
    assert world.pipeline.items() == len(FILMS)
    assert table.titles[table.row("c1")] == "Merry Wedding Party once more"
    assert "h2" not in world.ranked("ada")


def test_a_rollback_to_a_model_that_knows_fewer_actions(world: MemoryWorld) -> None:
    """Records with actions that were added meanwhile can still be rebuilt."""
    fewer = tuple(world.settings.messages.actions)[:2]
    world.offer("older", other_model(actions=fewer))
    world.click("ada", "h1", action="purchase")
    world.run()
    world.release("older")
    world.run()
    world.click("ada", "h2")
    world.run()
    assert (version(world, "ada"), world.lists()["ada"]["shots"]) == ("older", 2)


def test_users_of_a_model_of_other_dimensions_are_rebuilt(world: MemoryWorld) -> None:
    """Counts and what was seen go on; the adapter is made anew from the support set."""
    world.click("ada", "h1")
    world.run()
    world.offer("wide", other_model(dim=24, heads=3))
    world.release("wide")
    world.run()
    world.click("ada", "h2")
    world.run()
    assert (version(world, "ada"), world.lists()["ada"]["shots"]) == ("wide", 2)
    assert not {"h1", "h2"} & set(world.ranked("ada"))


def test_a_rollback_is_a_swap_to_the_model_before(world: MemoryWorld) -> None:
    """Naming the parent again undoes a release."""
    for name in ("test-2", "test-1"):
        world.release(name)
        world.run()
        world.click("ada", f"h{len(world.records('events'))}")
        world.run()
    assert version(world, "ada") == "test-1"
    assert world.lists()["ada"]["shots"] == 2


def test_metrics_say_which_model_serves(world: MemoryWorld) -> None:
    """`innerloop_model` has the version that serves, and no other."""
    world.release("test-2")
    world.run()
    values = world.metrics.registry.get_sample_value
    assert values("innerloop_model", {"version": "test-2"}) == 1
    assert values("innerloop_model", {"version": "test-1"}) is None
    assert values("innerloop_model_swaps_total") == 1


# -- refusals -----------------------------------------------------------------------------------


def refused(world: MemoryWorld, name: str) -> str:
    """Why the worker does not serve this version; the old model must have gone on."""
    world.release(name)
    world.run()
    world.click("ada", f"h{len(world.records('events'))}")
    world.run()
    assert version(world, "ada") == "test-1"
    assert world.metrics.registry.get_sample_value("innerloop_models_refused_total") == 1
    return str(world.worker.ready()[1]["models"]["refused"][name])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"half_lives": (3_600.0, 7_200.0)}, "half_lives"),
        ({"bucket": 60.0}, "bucket"),
        ({"neighbours": 16}, "neighbours"),
        ({"actions": ("purchase", "click")}, "actions"),
    ],
)
def test_a_model_of_other_terms_is_refused(
    world: MemoryWorld, changes: dict[str, Any], why: str
) -> None:
    """Signals or records would mean something else: the reason names the setting."""
    world.offer("odd", other_model(**changes))
    assert why in refused(world, "odd")


def test_a_model_whose_prior_ends_elsewhere_is_refused(world: MemoryWorld) -> None:
    """Events between the two ends would count twice or never."""
    meta, items = other_model()
    later = replace(items, prior=replace(items.prior, time=NOW - 60.0))
    world.offer("later", (meta, later))
    assert "count twice or never" in refused(world, "later")


def test_a_refused_bundle_is_tried_again_when_its_record_changes(world: MemoryWorld) -> None:
    """A new record of the same version is another chance; time alone is none."""
    world.offer("bad", BundleError("encoder.onnx is cut short"))
    assert refused(world, "bad") == "encoder.onnx is cut short"
    world.offer("bad", other_model())
    world.clock += 10 * RETRY_S[1]
    world.run()
    assert world.worker.ready()[1]["models"]["champion"] == "test-1"
    world.release("bad")
    world.run()
    assert world.worker.ready()[1]["models"] == {
        "champion": "bad",
        "challenger": None,
        "share": 0.0,
        "preparing": None,
        "refused": {},
    }


def test_an_address_that_does_not_answer_is_tried_in_growing_intervals(world: MemoryWorld) -> None:
    """The first further attempt comes after ten seconds, the next one after twice as long."""
    world.offer("away", BundleUnreachable("s3://models: no route"))
    assert "no route" in refused(world, "away")
    attempts = world.metrics.registry.get_sample_value
    for wait, count in ((8.0, 1), (2.0, 2), (19.0, 2), (2.0, 3)):
        world.clock += wait
        world.run()
        assert attempts("innerloop_models_refused_total") == count
    world.offer("away", other_model())
    world.clock += RETRY_S[1]
    world.run()
    assert world.worker.ready()[1]["models"]["champion"] == "away"


def test_whatever_a_bundle_does_the_old_model_goes_on(world: MemoryWorld) -> None:
    """An error that nobody foresaw is a refusal, too."""
    world.offer("broken", ZeroDivisionError("division by zero"))
    assert "ZeroDivisionError" in refused(world, "broken")


def test_records_that_nobody_can_follow_are_left_out(world: MemoryWorld) -> None:
    """Bytes that are no release are counted, and the next record counts."""
    world.log.append(world.settings.kafka.topic("models"), b"champion", b"{")
    world.log.append(world.settings.kafka.topic("models"), b"champion", None)
    world.run()
    assert world.metrics.registry.get_sample_value("innerloop_models_refused_total") == 2
    world.release("test-2")
    world.run()
    assert world.worker.ready()[1]["models"]["champion"] == "test-2"


# -- a challenger -------------------------------------------------------------------------------


USERS = [f"user-{n}" for n in range(40)]


def everybody_acts(world: MemoryWorld) -> dict[str, str]:
    """All users click in one batch; the model that made each list."""
    clicks = len(world.records("events")) // len(USERS)
    for user in USERS:
        world.click(user, f"h{clicks}", after=0.01)
    world.run()
    return {user: version(world, user) for user in USERS}


def test_a_challenger_serves_its_share_of_the_users_always_the_same(world: MemoryWorld) -> None:
    """In one batch some lists are the challenger's; a larger share keeps who was in the smaller."""
    world.release("test-2", role="challenger", share=0.3)
    world.run()
    some = {u for u, v in everybody_acts(world).items() if v == "test-2"}
    assert 4 <= len(some) <= 20
    assert {u for u, v in everybody_acts(world).items() if v == "test-2"} == some
    world.release("test-2", role="challenger", share=0.7)
    world.run()
    more = {u for u, v in everybody_acts(world).items() if v == "test-2"}
    assert some < more


def test_signals_are_shared_between_champion_and_challenger(world: MemoryWorld) -> None:
    """Every event is counted once, whichever model serves its user."""
    world.release("test-2", role="challenger", share=0.5)
    world.run()
    everybody_acts(world)
    parts = world.serving.signals.parts.values()
    assert sum(s.counts[:, -1].sum() for s in parts) == pytest.approx(len(USERS))


def test_users_of_a_challenger_that_is_withdrawn_go_back(world: MemoryWorld) -> None:
    """The next list of everybody is the champion's, and no version went back."""
    world.release("test-2", role="challenger", share=0.5)
    world.run()
    everybody_acts(world)
    before = {user: world.lists()[user]["state_version"] for user in USERS}
    world.withdraw()
    world.run()
    assert set(everybody_acts(world).values()) == {"test-1"}
    assert all(world.lists()[user]["state_version"] > before[user] for user in USERS)


def test_a_challenger_that_is_promoted_is_not_prepared_again(world: MemoryWorld) -> None:
    """It serves everybody at once, even if its bundle cannot be read any more."""
    world.release("test-2", role="challenger", share=0.5)
    world.run()
    world.offer("test-2", BundleError("gone"))
    world.release("test-2")
    world.withdraw()
    world.run()
    assert set(everybody_acts(world).values()) == {"test-2"}


def test_a_challenger_is_drawn_independently_of_the_control_group_and_of_partitions() -> None:
    """Among the users of one, the share of the other is what it is among all."""
    names = [f"u{n}" for n in range(20_000)]
    tried = roles.challenged(names, 0.2)
    settings = Settings(ranking={"control_share": 0.3})  # type: ignore[arg-type]
    world = MemoryWorld(FILMS[:2], settings=settings)
    serving = ServedModel(settings, world.serving, lambda: NOW)
    control = serving.recommender.control(names)
    partitions = np.array([partition_of(name.encode(), 4) for name in names])
    assert abs(tried.mean() - 0.2) < 0.01
    for some in (control, ~control, *(partitions == p for p in range(4))):
        assert abs(tried[some].mean() - 0.2) < 0.02
