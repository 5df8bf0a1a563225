"""What users do, joined with the list they had: the right list, and only what counts."""

from __future__ import annotations

import pytest

from stream.monitor import joins
from stream.monitor.memory import ACTED, LISTS, Memory
from stream.ports import Record
from tests.unit.monitoring import Scene, row, settings


@pytest.fixture
def scene() -> Scene:
    """A monitor that looks at the first three places of lists."""
    return Scene()


def test_a_click_on_the_list_before_it_is_a_hit(scene: Scene) -> None:
    """An item of the first K of the list that stood when it was clicked hits, in its group."""
    scene.publish(1, "ann", ["a", "b", "c", "d"])
    scene.click(2, "ann", "c")
    scene.publish(1, "bob", ["a", "b", "c", "d"], strategy="control", shots=70, model="m0")
    scene.click(2, "bob", "d")
    report = scene.settle(10)
    assert (row(report, "strategy", "adapted").judged, row(report, "strategy", "adapted").hits) == (
        1,
        1,
    )
    assert (row(report, "strategy", "control").judged, row(report, "strategy", "control").hits) == (
        1,
        0,
    )
    assert row(report, "shots", "4-7").hit_rate == 1.0
    assert row(report, "shots", "64+").hit_rate == 0.0
    assert row(report, "model", "m0").judged == 1


def test_a_list_that_comes_after_the_click_does_not_count(scene: Scene) -> None:
    """The list that the click itself causes has no part in it, however soon it was read."""
    scene.publish(1, "ann", ["a"])
    scene.publish(2.01, "ann", ["b"])
    offset = scene.click(2, "ann", "b")
    assert offset == 0
    assert row(scene.settle(10), "strategy", "adapted").hits == 0


def test_an_event_waits_for_the_lists_of_its_partition(scene: Scene) -> None:
    """An event that was read first is judged by a list that was published before it, read later."""
    scene.click(5, "ann", "a")
    scene.settle(5.5)
    scene.publish(4, "ann", ["a"])
    scene.publish(5 + joins.SETTLE_S, "bob", ["z"])
    scene.now += 1
    assert row(scene.settle(6.5), "strategy", "adapted").hits == 1


def test_an_idle_partition_holds_nothing_up(scene: Scene) -> None:
    """Where no list comes any more, an event is judged after some seconds all the same."""
    scene.publish(1, "ann", ["a"])
    scene.click(2, "ann", "a")
    assert scene.settle(3).figures["strategy"][0].judged == 0
    assert scene.settle(2 + joins.SETTLE_S).figures["strategy"][0].judged == 1


@pytest.mark.parametrize(
    ("action", "value"), [("dislike", None), ("skip", None), ("view", None), ("rating", 2.0)]
)
def test_weak_and_negative_evidence_is_no_hit(
    scene: Scene, action: str, value: float | None
) -> None:
    """An interaction that says little or the opposite is not judged; weights are configuration."""
    scene.publish(1, "ann", ["a"])
    scene.click(2, "ann", "a", action, value)
    report = scene.settle(10)
    assert row(report, "strategy", "adapted").judged == 0
    assert scene.watch.unjudged == {"weak": 1}


def test_what_a_user_does_again_is_not_judged_where_lists_leave_it_out(scene: Scene) -> None:
    """With `ranking.exclude_seen` an item cannot be hit twice; without it, it can."""
    repeats = Scene(settings(ranking__exclude_seen=False))
    for each in (scene, repeats):
        each.publish(1, "ann", ["a"])
        each.click(2, "ann", "a")
        each.click(3, "ann", "a", "like")
    assert row(scene.settle(10), "strategy", "adapted").judged == 1
    assert row(repeats.settle(10), "strategy", "adapted").judged == 2


def test_a_new_user_is_judged_by_the_cold_list(scene: Scene) -> None:
    """Whose first list answers the click had `_cold`; whose list is only unknown had what?"""
    scene.publish(1, "_cold", ["a", "b"], strategy="cold", shots=0)
    new = scene.click(2, "ann", "b")
    scene.publish(2.1, "ann", ["c"], shots=1, cause=new)
    old = scene.click(2, "bob", "a")
    scene.publish(2.1, "bob", ["c"], shots=31, cause=old)
    report = scene.settle(10)
    assert (row(report, "strategy", "cold").judged, row(report, "strategy", "cold").hits) == (1, 1)
    assert row(report, "shots", "0").judged == 1
    assert scene.watch.unjudged == {"no_list": 1}


def test_an_expired_list_gives_way_to_the_cold_one(scene: Scene) -> None:
    """Rankers serve `_cold` where a list is past its time, and so is judged."""
    scene.publish(1, "_cold", ["a"], strategy="cold", shots=0)
    scene.publish(2, "ann", ["b"], lives=10)
    scene.click(13, "ann", "a")
    report = scene.settle(20)
    assert row(report, "strategy", "cold").hits == 1
    assert row(report, "strategy", "adapted").judged == 0


def test_rankings_say_what_was_shown_and_clicks_on_it_count_once(scene: Scene) -> None:
    """CTR is clicks over shown items of the list's first K; each shown item is clicked once."""
    scene.publish(1, "ann", ["a", "b", "c", "d"])
    scene.show(2, "ann", ["b", "d", "x", "a"])
    scene.click(3, "ann", "a")
    scene.click(4, "ann", "a", "like")
    scene.click(5, "ann", "x")
    found = row(scene.settle(10), "strategy", "adapted")
    assert (found.ctr, found.ctr_by) == (0.5, "rankings")


def test_a_click_after_the_feedback_window_is_none_on_what_was_shown(scene: Scene) -> None:
    """What was shown longer ago than `state.feedback_window_s` was not acted on."""
    window = scene.settings.state.feedback_window_s
    scene.publish(1, "ann", ["a", "b"], lives=10_000)
    scene.show(2, "ann", ["a", "b"])
    scene.click(2 + window, "ann", "a")
    scene.click(3 + window, "ann", "b")
    found = row(scene.settle(window + 60), "strategy", "adapted")
    assert found.ctr == 0.5
    assert found.hits == 2


def test_without_rankings_every_list_counts_as_shown(scene: Scene) -> None:
    """CTR is hits over the first K places of all lists, and says what it rests on."""
    for at in (1, 3):
        scene.publish(at, "ann", ["a", "b", "c"])
    scene.click(2, "ann", "a")
    found = row(scene.settle(10), "strategy", "adapted")
    assert (found.ctr, found.ctr_by) == (1 / 6, "lists")


def test_churn_is_what_is_new_against_the_users_list_before(scene: Scene) -> None:
    """One of three items is new; a user's first list has nothing to be compared with."""
    scene.publish(1, "ann", ["a", "b", "c"])
    assert row(scene.settle(2), "strategy", "adapted").churn is None
    scene.publish(3, "ann", ["c", "a", "d"])
    scene.publish(3, "bob", ["x", "y", "z"])
    assert row(scene.settle(4), "strategy", "adapted").churn == pytest.approx(1 / 3)


def test_freshness_is_from_the_events_record_to_its_lists(scene: Scene) -> None:
    """The list that names the event's offset tells how long it took, within a quarter."""
    for number in range(100):
        at = 1 + number / 10
        cause = scene.click(at, f"u{number}", "a")
        scene.publish(at + (2.0 if number == 98 else 0.1), f"u{number}", ["b"], cause=cause)
    found = scene.settle(30).freshness
    assert found["50"] == pytest.approx(0.1, rel=0.25)
    assert found["99"] == pytest.approx(0.1, rel=0.25)
    cause = scene.click(31, "late", "a")
    scene.publish(34, "late", ["b"], cause=cause)
    assert scene.settle(40).freshness["99"] == pytest.approx(2.0, rel=0.25)


def test_who_is_forgotten_leaves_nothing_behind(scene: Scene) -> None:
    """A null or a forget event drops lists, impressions and what waits to be judged."""
    for user in ("ann", "bob"):
        scene.publish(1, user, ["a"])
        scene.show(1.5, user, ["a"])
        scene.settle(9)
        scene.click(10, user, "a")
    scene.withdraw(10.2, "ann")
    scene.forget(10.2, "bob")
    report = scene.settle(20)
    assert row(report, "strategy", "adapted").judged == 0
    assert row(report, "strategy", "adapted").ctr == 0.0


def test_bad_records_are_counted_and_harm_nobody(scene: Scene) -> None:
    """What is no message is left alone; the next one is taken."""
    scene.watch.event(Record("events", 0, 0, 1, b"ann", b"\xff"), scene.now)
    scene.watch.published(Record("recommendations", 0, 0, 1, b"\xff", b"{"), scene.now)
    assert scene.watch.unreadable == 2
    scene.publish(1, "ann", ["a"])
    scene.click(2, "ann", "a")
    assert row(scene.settle(10), "strategy", "adapted").hits == 1


def test_memory_is_bounded_on_every_side() -> None:
    """Beyond so many users the longest unseen goes; of each a few lists and items are kept."""
    scene = Scene(settings(monitor__max_users=100))
    for number in range(1_000):
        scene.publish(number / 100, f"u{number}", ["a"])
        scene.publish(number / 100, "same", ["a"])
        scene.click(number / 100, "same", f"i{number}")
    scene.settle(60)
    join = scene.watch._join
    assert (join.users, join.held) == (100, 0)
    known = Memory.of(join._memory, joins.hashed("same"))
    assert (len(known.lists), len(known.acted)) == (LISTS, ACTED)


def test_events_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many the oldest are judged at once."""
    monkeypatch.setattr(joins, "MOST_HELD", 10)
    scene = Scene()
    scene.publish(1, "ann", ["a"])
    for number in range(15):
        scene.click(2, "ann", f"i{number}")
    report = scene.settle(2.1)
    assert row(report, "strategy", "adapted").judged == 5
    assert scene.watch._join.held == 10
