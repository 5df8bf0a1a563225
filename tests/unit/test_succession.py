"""What promotion, canary, withdrawal and rollback make of the roles, and how it is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stream import succession
from stream.errors import Aborted, Overtaken, ReleaseError
from stream.releases import ModelRef, Release
from stream.succession import Asked, Change, Gate, Standing, read_standing
from stream.testing import MemoryProducer
from stream.testing_log import MemoryLog

TOPIC = "models"
PASSED: Gate = {"promoted": True, "reasons": []}
REFUSED: Gate = {"promoted": False, "reasons": ["at 8-15 shots"]}
NOW = Asked(at=1_772_366_400_000)


def model(name: str) -> ModelRef:
    """A bundle in the registry."""
    return ModelRef(version=name, bundle=f"s3://models/{name}")


class Topic:
    """`models` in memory."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.log.create(TOPIC)

    def roles(self) -> Standing:
        """As they are now."""
        return read_standing(self.log.records(TOPIC))

    def publish(self, change: Change, seen: Standing | None = None) -> Standing:
        """Write a change; the roles afterwards."""
        producer = MemoryProducer(self.log, "innerloop-models")
        now = self.roles() if seen is None else seen
        succession.publish(producer, TOPIC, change, now, self.roles)
        return self.roles()

    def promote(self, name: str, gate: Gate = PASSED, asked: Asked = NOW) -> Standing:
        """Make a model the champion."""
        return self.publish(succession.promotion(self.roles(), model(name), gate, asked))

    def canary(self, name: str, share: float = 0.05) -> Standing:
        """Make a model the challenger."""
        return self.publish(succession.canary(self.roles(), model(name), share, PASSED, NOW))


@pytest.fixture
def topic() -> Topic:
    """Nothing has been promoted yet."""
    return Topic()


def champion(now: Standing) -> Release:
    """The champion, of which there is one."""
    assert now.champion is not None
    return now.champion


def test_the_first_model_has_no_parent(topic: Topic) -> None:
    """It says `first`, and serves everybody."""
    first = champion(topic.promote("a"))
    assert (first.version, first.parent, first.reason, first.share) == ("a", None, "first", 1.0)


def test_a_promotion_names_the_champion_before(topic: Topic) -> None:
    """The next one says `gate`, has the first as its parent and the verdict on its record."""
    topic.promote("a")
    now = topic.promote("b")
    second = champion(now)
    assert (second.version, second.parent, second.reason) == ("b", model("a"), "gate")
    assert second.gate == PASSED
    assert [release.version for release in now.before] == ["a"]


@pytest.mark.parametrize("first", [True, False])
def test_what_the_gate_refused_is_forced_and_says_so(topic: Topic, first: bool) -> None:
    """The reason is `forced`, the words are on the record and the verdict stays visible."""
    if not first:
        topic.promote("a")
    found = champion(topic.promote("b", REFUSED, Asked(at=1, force=True, note="an outage")))
    assert (found.reason, found.note, found.gate) == ("forced", "an outage", REFUSED)


def test_a_canary_leaves_the_champion_and_takes_over_later(topic: Topic) -> None:
    """It serves its share, names the champion as parent, and is then promoted with its verdict."""
    topic.promote("a")
    now = topic.canary("b", 0.2)
    assert now.challenger is not None
    assert (now.challenger.share, now.challenger.parent) == (0.2, model("a"))
    assert (champion(now).version, now.challenger.reason) == ("a", "canary")
    after = topic.publish(succession.takeover(now, NOW))
    assert (champion(after).version, champion(after).reason) == ("b", "gate")
    assert (after.challenger, champion(after).parent) == (None, model("a"))


def test_a_canary_that_the_gate_refused_stays_forced(topic: Topic) -> None:
    """When it takes over, the reason and the words are those with which it was let in."""
    topic.promote("a")
    asked = Asked(at=1, force=True, note="new shop")
    topic.publish(succession.canary(topic.roles(), model("b"), 0.1, REFUSED, asked))
    after = topic.publish(succession.takeover(topic.roles(), NOW))
    assert (champion(after).reason, champion(after).note) == ("forced", "new shop")


def test_promoting_the_challengers_bundle_frees_the_role(topic: Topic) -> None:
    """The same version as champion ends its canary; another one leaves the canary alone."""
    topic.promote("a")
    topic.canary("b")
    assert topic.promote("c").challenger is not None
    topic.canary("d")
    assert topic.promote("d").challenger is None


def test_a_withdrawal_ends_the_canary(topic: Topic) -> None:
    """A null under `challenger`, and nothing about the champion."""
    topic.promote("a")
    topic.canary("b")
    now = topic.publish(succession.withdrawal(topic.roles()))
    assert (champion(now).version, now.challenger) == ("a", None)


def test_a_rollback_and_a_rollback_of_it(topic: Topic) -> None:
    """The parent serves again with its own verdict; once more, and the younger one is back."""
    topic.promote("a")
    topic.promote("b")
    one = topic.publish(succession.rollback(topic.roles(), PASSED, NOW))
    assert (champion(one).version, champion(one).reason) == ("a", "rollback")
    assert (champion(one).parent, champion(one).gate) == (model("b"), PASSED)
    two = topic.publish(succession.rollback(one, None, NOW))
    assert (champion(two).version, champion(two).parent) == ("b", model("a"))
    assert [release.version for release in two.before] == ["a", "b", "a"]


def test_the_same_model_may_come_back_after_a_rollback(topic: Topic) -> None:
    """What was rolled back can be promoted again, which undoes it as well."""
    topic.promote("a")
    topic.promote("b")
    topic.publish(succession.rollback(topic.roles(), None, NOW))
    assert champion(topic.promote("b")).parent == model("a")


@pytest.mark.parametrize(
    ("prepare", "change", "named"),
    [
        ("", lambda now: succession.rollback(now, None, NOW), "no model has been promoted"),
        ("a", lambda now: succession.rollback(now, None, NOW), "a is the first one"),
        ("a", lambda now: succession.promotion(now, model("a"), PASSED, NOW), "champion already"),
        ("a", lambda now: succession.canary(now, model("a"), 0.1, PASSED, NOW), "champion already"),
        ("", lambda now: succession.canary(now, model("a"), 0.1, PASSED, NOW), "no model has been"),
        ("a", lambda now: succession.takeover(now, NOW), "no challenger"),
        ("a", lambda now: succession.withdrawal(now), "no challenger"),
    ],
)
def test_what_makes_no_sense_is_refused(
    topic: Topic, prepare: str, change: Callable[[Standing], Change], named: str
) -> None:
    """One line says what is missing and what to do."""
    for name in prepare:
        topic.promote(name)
    with pytest.raises(ReleaseError, match=named) as caught:
        change(topic.roles())
    assert len(str(caught.value).splitlines()) == 1


def test_a_challenger_of_another_champion_has_to_be_judged_anew(topic: Topic) -> None:
    """After the champion changed, the canary's verdict is about the past; force passes it on."""
    topic.promote("a")
    topic.canary("b")
    topic.promote("c")
    with pytest.raises(ReleaseError, match="judged against a, but the champion is c"):
        succession.takeover(topic.roles(), NOW)
    forced = succession.takeover(topic.roles(), Asked(at=1, force=True, note="known"))
    assert champion(topic.publish(forced)).version == "b"


# -- writing ------------------------------------------------------------------------------------


def test_a_decision_on_roles_that_have_changed_is_not_written(topic: Topic) -> None:
    """Two were judged against one champion: the later one is told, and writes nothing."""
    topic.promote("a")
    seen = topic.roles()
    topic.publish(succession.promotion(seen, model("b"), PASSED, NOW), seen)
    with pytest.raises(Overtaken, match="champion was a and is b now"):
        topic.publish(succession.promotion(seen, model("c"), PASSED, NOW), seen)
    assert champion(topic.roles()).version == "b"


def test_a_canary_that_began_meanwhile_counts_as_a_change(topic: Topic) -> None:
    """It would have been replaced unnoticed."""
    topic.promote("a")
    seen = topic.roles()
    topic.canary("b")
    with pytest.raises(Overtaken, match="challenger was none and is b now"):
        topic.publish(succession.canary(seen, model("c"), 0.1, PASSED, NOW), seen)


def test_of_two_at_the_same_time_the_older_one_is_fenced(topic: Topic) -> None:
    """Between reading and writing another change begins: nothing of the older one is seen."""
    topic.promote("a")
    seen, older = topic.roles(), MemoryProducer(topic.log, "innerloop-models")

    def read_and_be_overtaken() -> Standing:
        found = topic.roles()
        topic.publish(succession.promotion(seen, model("c"), PASSED, NOW), seen)
        return found

    change = succession.promotion(seen, model("b"), PASSED, NOW)
    with pytest.raises(Overtaken, match="another promotion has begun"):
        succession.publish(older, TOPIC, change, seen, read_and_be_overtaken)
    assert champion(topic.roles()).version == "c"


def test_both_records_of_a_takeover_are_seen_at_once_or_not_at_all(topic: Topic) -> None:
    """An aborted transaction leaves champion and challenger as they were."""
    topic.promote("a")
    topic.canary("b")
    before = topic.roles()
    topic.log.failing_commits = 1
    with pytest.raises(Aborted):
        topic.publish(succession.takeover(before, NOW))
    assert topic.roles() == before


def test_strange_records_change_nothing(topic: Topic) -> None:
    """What no worker would follow is passed over here as well."""
    now = topic.promote("a")
    topic.log.append(TOPIC, b"champion", b"{", partition=0)
    topic.log.append(TOPIC, b"chief", b"{}", partition=0)
    topic.log.append(TOPIC, b"champion", None, partition=0)
    assert topic.roles() == now
