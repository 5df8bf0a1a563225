"""Lag without workers, sampling, alarms, and what the monitor shows."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.exposition import generate_latest

from stream.config import Monitor
from stream.errors import ConfigError, StateError
from stream.log import Seldom
from stream.monitor import control
from stream.monitor.alarms import Alarm, Readings, alarms
from stream.monitor.lags import GroupLag, Lag
from stream.monitor.metrics import MonitorMetrics
from stream.monitor.page import page
from stream.monitor.report import Report
from stream.monitor.runs import Run
from stream.monitor.sampling import Sample
from stream.monitor.security import client_options
from stream.ports import TopicPartition
from stream.state_dir import lock_state_dir, worker_id
from stream.testing import MemoryReader
from stream.testing_log import MemoryLog
from tests.unit.monitoring import Scene, settings

TPS = [TopicPartition("events", partition) for partition in range(2)]
RUN = Run(
    run="20260301T030000Z",
    status="failed",
    monitor="monitor-1",
    command="innerloop train",
    started_at=1_772_334_000_000,
    ends_by=1_772_360_000_000,
    finished_at=1_772_334_060_000,
    exit_code=4,
    verdict="innerloop: <nothing> to train on",
    log="/runs/output.log",
)


# -- lag ------------------------------------------------------------------------------------------


class Workers:
    """A log of two partitions, and a group that nobody is in."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.committed: dict[TopicPartition, int] = {}
        self.log = MemoryLog(lambda: self.now)
        self.log.create("events", partitions=2)
        self.lag = GroupLag(MemoryReader(self.log), lambda: self.committed, TPS, lambda: self.now)

    def produce(self, count: int = 1) -> None:
        """So many records to the first partition, a second apart."""
        for _ in range(count):
            self.log.append("events", b"ada", b"{}", partition=0)
            self.now += 1


@pytest.fixture
def workers() -> Workers:
    """Nothing in the log yet."""
    return Workers()


def test_lag_is_the_age_of_the_record_at_the_committed_offset(workers: Workers) -> None:
    """It grows while no worker runs, and is 0 at the end however long nobody acted."""
    workers.produce(5)
    workers.committed = {TPS[0]: 2}
    workers.now += 100
    assert workers.lag.observe() == {0: Lag(messages=3, seconds=103), 1: Lag(messages=0, seconds=0)}
    workers.now += 60
    assert workers.lag.observe()[0].seconds == 163
    workers.committed = {TPS[0]: 5}
    assert workers.lag.observe()[0] == Lag(messages=0, seconds=0)


def test_a_group_that_has_never_been_there_starts_at_the_oldest_record(workers: Workers) -> None:
    """Without a commit, or with one that retention has passed, the first record counts."""
    workers.produce(5)
    assert workers.lag.observe()[0] == Lag(messages=5, seconds=5)
    workers.log.delete_before(TPS[0], 3)
    workers.committed = {TPS[0]: 1}
    assert workers.lag.observe()[0] == Lag(messages=2, seconds=2)


# -- sampling -------------------------------------------------------------------------------------


def fill(sample: Sample, now: float, count: int) -> int:
    """Offer so many events of as many users; returns how many were taken."""
    taken = sum(sample.takes(f"user-{i}".encode(), counts=True) for i in range(count))
    sample.adjust(now)
    return taken


def test_users_are_halved_until_the_traffic_fits() -> None:
    """At five times what is allowed an eighth is followed, and again all when it is quiet."""
    sample = Sample(2_000)
    sample.adjust(0)
    assert fill(sample, 1, 10_000) == 10_000
    assert sample.share == 0.125
    assert fill(sample, 2, 10_000) == pytest.approx(1_250, rel=0.1)
    fill(sample, 3, 100)
    assert sample.share == 1.0


def test_a_smaller_sample_is_part_of_a_larger_one() -> None:
    """Whoever is followed at a quarter is followed at a half."""
    sample, users = Sample(1), [f"user-{i}".encode() for i in range(1_000)]
    sample.share = 0.5
    half = {user for user in users if sample.takes(user, counts=False)}
    sample.share = 0.25
    quarter = {user for user in users if sample.takes(user, counts=False)}
    assert quarter < half
    assert sample.takes(b"_cold", counts=False)


def test_the_sample_does_not_swing() -> None:
    """Traffic just below what is allowed for the next larger sample leaves things as they are."""
    sample = Sample(1_000)
    sample.adjust(0)
    fill(sample, 1, 1_100)
    fill(sample, 2, 950)
    assert sample.share == 0.5


# -- alarms ---------------------------------------------------------------------------------------

FEW = control.compare([], [], share=0.1, fewest=10, least_gain=0.02)
CALM = Readings(
    drift={"items": 0.01, "categories": None},
    learning=FEW,
    lags={0: Lag(messages=5, seconds=2.0)},
    freshness=0.3,
    absent_s=0.0,
    run=None,
)


def test_all_is_well() -> None:
    """Ordinary figures, and those that are not known, raise no alarm."""
    assert alarms(CALM, Monitor()) == {}
    unknown = replace(CALM, drift={"items": None}, lags={}, freshness=None)
    assert alarms(unknown, Monitor()) == {}


@pytest.mark.parametrize(
    ("change", "alarm", "says"),
    [
        ({"drift": {"items": 0.05, "categories": 0.2}}, Alarm.DRIFT, "by categories"),
        ({"lags": {7: Lag(messages=9, seconds=90.0)}}, Alarm.LAG, "partition 7"),
        ({"freshness": 6.1}, Alarm.FRESHNESS, "6.1 s"),
        ({"absent_s": 61.0}, Alarm.WORKERS, "Start one"),
        ({"run": RUN}, Alarm.RETRAINING, "/runs/output.log"),
    ],
)
def test_each_alarm_says_why_and_what_to_do(
    change: dict[str, object], alarm: Alarm, says: str
) -> None:
    """A figure beyond its threshold is one alarm, with the figure and the remedy."""
    found = alarms(replace(CALM, **change), Monitor())  # type: ignore[arg-type]
    assert list(found) == [alarm]
    assert says in found[alarm]


# -- what is shown --------------------------------------------------------------------------------


def report() -> Report:
    """A report with something of everything in it."""
    scene = Scene(settings(monitor__control_users=2))
    for number in range(4):
        scene.publish(1, f"u{number}", ["a"], strategy=("adapted", "control")[number % 2])
        scene.click(2, f"u{number}", "ab"[number // 2])
    scene.settle(10)
    lags = {3: Lag(messages=9, seconds=4.5)}
    return scene.watch.report(scene.now, items=4, lags=lags, workers=2, run=RUN)


def test_prometheus_gets_every_figure() -> None:
    """Gauges carry what the report has, by label; figures that are not known have no series."""
    scene, metrics = Scene(), MonitorMetrics()
    metrics.show(report(), scene.watch, {"failed": 1})
    text = generate_latest(metrics.registry).decode()
    for line in (
        'innerloop_monitor_hit_rate{by="strategy",value="control"} 0.5',
        'innerloop_monitor_lag_seconds{partition="3"} 4.5',
        "innerloop_monitor_coverage 0.25",
        'innerloop_monitor_alarm{alarm="retraining_failed"} 1.0',
        'innerloop_monitor_alarm{alarm="lag"} 0.0',
        'innerloop_retrainings_total{outcome="failed"} 1.0',
        "innerloop_retraining_exit_code 4.0",
        "innerloop_retraining_seconds 60.0",
    ):
        assert f"\n{line}\n" in text
    assert "innerloop_monitor_drift_bits{" not in text


def test_series_of_what_is_gone_go_too() -> None:
    """A strategy without a list in the window has no gauge left."""
    scene, metrics = Scene(), MonitorMetrics()
    metrics.show(report(), scene.watch, {})
    metrics.show(scene.settle(10), scene.watch, {})
    text = generate_latest(metrics.registry).decode()
    assert "innerloop_monitor_hit_rate{" not in text
    assert "innerloop_monitor_lag_seconds{" not in text


def test_counters_are_those_of_the_groups() -> None:
    """Totals come by strategy, shots and model, so that rates over any time can be taken."""
    scene, metrics = Scene(), MonitorMetrics()
    scene.publish(1, "ann", ["a"])
    scene.click(2, "ann", "a")
    scene.click(3, "ann", "b", "dislike")
    metrics.show(scene.settle(10), scene.watch, {})
    text = generate_latest(metrics.registry).decode()
    labels = 'model="m1",shots="4-7",strategy="adapted"'
    assert f"innerloop_monitor_hits_total{{{labels}}} 1.0" in text
    assert 'innerloop_monitor_unjudged_total{reason="weak"} 1.0' in text


def test_the_page_shows_the_figures_and_trusts_nothing() -> None:
    """Everything is on one page; text from outside cannot become markup."""
    shown = page(report(), 60, 3)
    assert "By strategy" in shown
    assert "&lt;nothing&gt; to train on" in shown
    assert "<nothing>" not in shown


def test_the_json_says_what_it_is_about() -> None:
    """The window, whether it is complete, and every alarm are there."""
    found = report().to_json(60, 3)
    assert (found["window_complete"], found["k"]) == (False, 3)
    assert set(found["alarms"]) == {alarm.value for alarm in Alarm}
    assert found["retraining"]["exit_code"] == 4
    assert found["learning"]["interval"][0] < found["learning"]["interval"][1]
    assert found["at"].startswith("2026-03-01T12:00:10")


def test_the_same_trouble_is_told_once_a_minute() -> None:
    """Lines that differ in what they name alone are the same; other loggers are left alone."""
    now = [0.0]
    seldom = Seldom(["aiokafka"], 60.0, lambda: now[0])

    def told(name: str, line: str) -> bool:
        record = logging.LogRecord(name, logging.ERROR, "", 0, line, (now[0],), None)
        return seldom.filter(record)

    assert told("aiokafka.conn", "no broker %s")
    assert not told("aiokafka.conn", "no broker %s")
    assert told("aiokafka.conn", "no group %s")
    assert all(told("worker", "no broker %s") for _ in range(2))
    now[0] = 60.0
    assert told("aiokafka.conn", "no broker %s")


def test_a_folder_serves_one_monitor(tmp_path: Path) -> None:
    """A second one is refused with the option that names another folder; the id stays."""
    with closing(lock_state_dir(tmp_path, kind="monitor", flag="--dir")):
        with pytest.raises(StateError, match=r"another monitor.*--dir"):
            lock_state_dir(tmp_path, kind="monitor", flag="--dir")
        assert worker_id(tmp_path, kind="monitor") == worker_id(tmp_path, kind="monitor")
        assert worker_id(tmp_path, kind="monitor").startswith("monitor-")


# -- security -------------------------------------------------------------------------------------


def test_sasl_of_librdkafka_is_that_of_the_monitors_client() -> None:
    """User, password and mechanism are written once for both clients."""
    given = {
        "security.protocol": "sasl_plaintext",
        "sasl.mechanisms": "SCRAM-SHA-512",
        "sasl.username": "ann",
        "sasl.password": "secret",
        "linger.ms": "5",
    }
    assert client_options(given) == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "ann",
        "sasl_plain_password": "secret",
    }
    assert client_options({"security.protocol": "SSL"})["ssl_context"].check_hostname
    assert client_options({}) == {"security_protocol": "PLAINTEXT"}


@pytest.mark.parametrize(
    ("properties", "named"),
    [
        ({"security.protocol": "SASL_SSL", "sasl.mechanisms": "GSSAPI"}, "sasl.mechanisms"),
        ({"sasl.oauthbearer.config": "x"}, "sasl.oauthbearer.config"),
        ({"security.protocol": "SSL", "ssl.ca.location": "/nowhere"}, "ssl.*.location"),
    ],
)
def test_security_that_it_cannot_have_is_refused(properties: dict[str, str], named: str) -> None:
    """A property without a counterpart is named, and never silently ignored."""
    with pytest.raises(ConfigError, match="monitor") as raised:
        client_options(properties)
    assert named in str(raised.value)
