"""Lag in seconds: true for one record that waits, whatever came before it."""

from __future__ import annotations

import pytest

from stream.lag import STANDS_S, LagWatch
from stream.metrics import Metrics
from stream.ports import TopicPartition
from stream.testing import MemoryReader
from stream.testing_log import MemoryLog

TP = TopicPartition("events", 0)


class Scene:
    """A partition, its lag and a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.log = MemoryLog(lambda: self.now)
        self.log.create("events")
        self.metrics = Metrics()
        self.watch = LagWatch(MemoryReader(self.log), self.metrics, lambda: self.now)

    def produce(self) -> None:
        """One more record, now."""
        self.log.append("events", b"ada", b"{}")

    def handle(self, upto: int) -> None:
        """The worker has committed the records before this offset."""
        last = self.log.read(TP, upto - 1, upto, 1)[0][0]
        self.watch.handled({TP: upto}, {TP: last.timestamp})

    def lag(self) -> tuple[float, float]:
        """Messages and seconds, as they are told now."""
        self.watch.observe([TP])
        gauges = (self.metrics.lag_messages, self.metrics.lag_seconds)
        messages, seconds = (gauge.labels("0")._value.get() for gauge in gauges)
        return messages, seconds


@pytest.fixture
def scene() -> Scene:
    """A partition with one record, which is handled."""
    made = Scene()
    made.produce()
    made.handle(1)
    return made


def test_nothing_waits_and_nothing_is_late(scene: Scene) -> None:
    """At the end of the log both are zero, however long nobody acted."""
    scene.now += 3_600
    assert scene.lag() == (0, 0)


def test_a_record_after_a_quiet_hour_is_not_an_hour_old(scene: Scene) -> None:
    """Its age counts from when the log was last seen to be handled to its end."""
    for _ in range(1_800):
        scene.now += 2
        scene.lag()
    scene.produce()
    scene.now += 1
    messages, seconds = scene.lag()
    assert messages == 1
    assert 1 <= seconds <= 3


def test_lag_grows_with_the_time_that_a_record_waits(scene: Scene) -> None:
    """A worker that handles nothing reports the age of the oldest record that waits."""
    scene.lag()
    scene.produce()
    for waited in (10, 20, 30):
        scene.now += 10
        scene.produce()
        assert scene.lag()[1] == pytest.approx(waited, abs=0.1)


def test_lag_shrinks_as_the_backlog_is_handled(scene: Scene) -> None:
    """It is the age of the first record that is left, within the distance of two records."""
    for _ in range(60):
        scene.now += 1
        scene.produce()
    for upto in (20, 40, 60):
        scene.handle(upto)
        messages, seconds = scene.lag()
        assert messages == 61 - upto
        assert seconds == pytest.approx(61 - upto, abs=1.0)
    scene.handle(61)
    assert scene.lag() == (0, 0)


# -- partitions that stand still -----------------------------------------------------------------


def test_a_partition_that_does_not_move_is_told_once_in_a_while(scene: Scene) -> None:
    """More is there and nothing comes: it is told after `STANDS_S`, and again after as long."""
    scene.produce()
    told = []
    for _ in range(100):
        scene.now += 1
        told += [scene.now] * len(scene.watch.observe([TP]))
    assert len(told) == int(100 / (STANDS_S + 1))
    scene.handle(2)
    scene.now += 2 * STANDS_S
    assert scene.watch.observe([TP]) == []


def test_a_partition_that_moves_slowly_does_not_stand(scene: Scene) -> None:
    """However far it is behind."""
    for _ in range(50):
        scene.produce()
    for upto in range(2, 50):
        scene.now += STANDS_S - 1
        scene.handle(upto)
        assert scene.watch.observe([TP]) == []


def test_a_quiet_partition_does_not_stand(scene: Scene) -> None:
    """Nothing is left to read, and a record that comes after an hour has all its time."""
    for _ in range(3):
        scene.now += 3_600
        assert scene.watch.observe([TP]) == []
    scene.produce()
    scene.now += STANDS_S - 1
    assert scene.watch.observe([TP]) == []


def test_a_partition_of_which_nothing_ever_came_has_a_lag(scene: Scene) -> None:
    """Where its offset is looked up: until then it is unknown, and after that as any other."""
    scene.watch.forget(TP)
    scene.produce()
    assert not scene.watch.unknown([TP])
    scene.now += STANDS_S + 1
    assert scene.watch.unknown([TP])
    scene.watch.found({TP: 1})
    assert not scene.watch.unknown([TP])
    assert scene.lag() == (1, STANDS_S + 1)
    scene.now += STANDS_S + 1
    assert scene.watch.observe([TP]) == [TP]
