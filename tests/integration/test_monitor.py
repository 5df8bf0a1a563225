"""The monitor on a real broker: committed lists alone, kill -9, lag without workers, retraining."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from stream import topics
from stream.config import Settings, load
from stream.embedded_kafka import EmbeddedKafka
from stream.kafka.admin import Admin
from stream.kafka.producer import TransactionalProducer
from stream.message_encoding import encode_recommendation
from stream.monitor.runs import Claims, Run, decode
from stream.murmur2 import partition_of
from stream.ports import Message
from stream.testing_worker import click
from tests.integration.world import (
    FILMS,
    PATIENCE,
    Monitor,
    Topics,
    Worker,
    eventually,
    innerloop,
)

ITEMS = [f"i{n}" for n in range(20)]


@dataclass
class Stage:
    """Topics of one test, and what workers and users do on them."""

    settings: Settings
    topics: Topics
    folder: Path
    retraining: Monitor | None = None  # one that runs for as long as the stage is there

    def monitor(self, name: str = "one", **changes: object) -> Monitor:
        """A monitor that has not been started; `changes` are settings of it."""
        return Monitor(self.settings, self.folder / name, **changes)

    def publish(
        self, *users: str, items: list[str] = ITEMS, strategy: str = "adapted", commit: bool = True
    ) -> None:
        """A list for each user in one transaction, which is committed, or aborted after all."""
        made = int(time.time() * 1000)
        topic, count = self.settings.kafka.topic("recommendations"), self.settings.kafka.partitions
        lists = [
            Message(
                topic,
                partition_of(user.encode(), count, self.settings.kafka.partitioner),
                user.encode(),
                encode_recommendation(
                    user, items, [1.0] * len(items), strategy, 5, 7, "m1", made, made + 10**7, None
                ),
            )
            for user in users
        ]
        producer = TransactionalProducer(self.settings, f"{self.settings.kafka.prefix}lists")
        with closing(producer):
            producer.init()
            producer.begin()
            before = self.written()
            producer.produce(lists)
            if commit:
                producer.commit()
            else:
                eventually(lambda: self.written() >= before + len(lists))
                producer.abort()

    def written(self) -> int:
        """Records of `recommendations` on the broker, committed or not."""
        kafka = self.settings.kafka
        with Admin(kafka) as admin:
            found = admin.end_offsets(admin.partitions(kafka.topic("recommendations")))
        return sum(found.values())

    def committed(self, monitor: Monitor) -> set[str]:
        """Topics of which the monitor has committed every partition that holds something."""
        kafka = self.settings.kafka
        with Admin(kafka) as admin:
            held = {
                role: admin.end_offsets(admin.partitions(kafka.topic(role)))
                for role in ("events", "recommendations")
            }
            every = [tp for ends in held.values() for tp in ends]
            done = admin.committed(kafka.prefix + monitor.settings.monitor.group, every)
        return {
            role
            for role, ends in held.items()
            if all(tp in done for tp, end in ends.items() if end)
        }

    def act(self, *users: str, item: str = "i1") -> None:
        """Each user clicks on an item, a moment after the lists."""
        self.topics.send(*(click(user, item, time.time()) for user in users))


@pytest.fixture
def stage(kafka_settings: Settings, tmp_path: Path) -> Iterator[Stage]:
    """Topics with four partitions and nothing in them."""
    topics.create(kafka_settings)
    made = Stage(kafka_settings, Topics(kafka_settings), tmp_path)
    yield made
    made.topics.close()


@pytest.fixture(scope="module", autouse=True)
def scheduled(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A stage whose monitor is to retrain every minute, begun before all tests: minutes pass."""
    prefix = f"t{uuid.uuid4().hex[:10]}."
    changes = {"kafka.bootstrap_servers": broker, "kafka.prefix": prefix, "kafka.partitions": 2}
    settings = load(None, changes)
    topics.create(settings)
    made = Stage(settings, Topics(settings), tmp_path_factory.mktemp("scheduled"))
    command = "echo 'innerloop: no events'; exit 4"
    with made.monitor(retrain_cron="* * * * *", retrain_command=command) as made.retraining:
        yield made
    made.topics.close()


def test_lists_of_aborted_transactions_are_not_seen(stage: Stage) -> None:
    """Faust reads them by itself; the monitor judges users by committed lists alone."""
    users = [f"u{n}" for n in range(20)]
    with stage.monitor() as monitor:
        monitor.wait_until_ready()
        stage.publish(*users, items=["other"], commit=True)
        stage.publish(*users, items=ITEMS, strategy="aborted", commit=False)
        stage.publish("marker", items=["z"], strategy="cold")
        stage.act(*users)
        eventually(lambda: monitor.figure("strategy", "adapted").get("judged") == 20, monitor.log)
        status = monitor.status()
        assert orjson.loads(monitor.get("/online")[1]) == {"m1": [0.0] * 20}
        assert "By strategy" in monitor.get("/")[1]
        assert monitor.get("/healthz")[0] == 200
    assert [row["name"] for row in status["figures"]["strategy"]] == ["adapted", "cold"]
    assert monitor_row(status, "adapted")["hits"] == 0
    assert monitor_row(status, "adapted")["lists"] == 20


def monitor_row(status: dict[str, Any], strategy: str) -> dict[str, Any]:
    """The figures of a strategy."""
    return next(row for row in status["figures"]["strategy"] if row["name"] == strategy)


def test_a_killed_monitor_goes_on_where_it_was(stage: Stage) -> None:
    """After kill -9 the window begins anew; what came meanwhile is read, and figures recover."""
    users = [f"u{n}" for n in range(12)]
    with stage.monitor() as monitor:
        monitor.wait_until_ready()
        stage.publish(*users)
        stage.act(*users)
        eventually(lambda: monitor.figure("strategy", "adapted").get("hits") == 12, monitor.log)
        eventually(lambda: stage.committed(monitor) >= {"events", "recommendations"}, monitor.log)
        monitor.kill()
        stage.publish(*users)
        stage.act(*users, item="i2")
        began = time.monotonic()
        monitor.start()
        monitor.wait_until_ready()
        taken_over = time.monotonic() - began
        eventually(lambda: monitor.figure("strategy", "adapted").get("hits", 0) >= 12, monitor.log)
        assert not monitor.status()["window_complete"]
        stage.publish(*users, items=["i5"])
        stage.act(*users, item="i5")
        seen = monitor.figure("strategy", "adapted")["hits"]
        eventually(lambda: monitor.figure("strategy", "adapted")["hits"] >= seen + 12, monitor.log)
        code, seconds = monitor.terminate()
    assert taken_over < PATIENCE / 2
    assert (code, seconds < 10.0) == (0, True)


def test_the_monitor_outlives_the_only_broker(prefix: str, tmp_path: Path) -> None:
    """While none answers its pages do, with the trouble, told seldom; then figures come again."""
    with EmbeddedKafka() as kafka:
        changes = {"kafka.bootstrap_servers": kafka.bootstrap_servers, "kafka.prefix": prefix}
        settings = load(None, {**changes, "kafka.partitions": 2})
        topics.create(settings)
        stage = Stage(settings, Topics(settings), tmp_path)
        users = [f"u{n}" for n in range(8)]
        with closing(stage.topics), stage.monitor() as monitor:
            monitor.wait_until_ready()
            kafka.kill(1)
            eventually(lambda: monitor.status()["trouble"], monitor.log)
            assert monitor.get("/healthz")[0] == 200
            kafka.restart(1)
            stage.publish(*users)
            stage.act(*users)
            eventually(lambda: hits(monitor) == 8, monitor.log)
            eventually(lambda: not monitor.status()["trouble"], monitor.log, 2 * PATIENCE)
            assert len(monitor.log().splitlines()) < 60


def test_lag_is_told_while_no_worker_runs(stage: Stage, bundle: Path) -> None:
    """It grows in messages and seconds after the last worker died, and ends when one is back."""
    stage.topics.send(*FILMS)
    with stage.monitor(absent_alarm_s=2.0, lag_alarm_s=1.0) as monitor:
        monitor.wait_until_ready()
        with Worker(stage.settings, bundle, stage.folder / "worker") as worker:
            worker.wait_until_ready()
            first = click("ann", "h1", time.time())
            stage.topics.send(first)
            stage.topics.list_after(first.id, "ann")
            eventually(lambda: monitor.status()["workers"] == 1, monitor.log)
            eventually(lambda: lag(monitor) == (0, 0), monitor.log)
            worker.kill()
            stage.topics.send(*(click("ann", f"h{n}", time.time()) for n in range(2, 7)))
            eventually(lambda: lag(monitor)[0] == 5 and lag(monitor)[1] > 1.5, monitor.log)
            eventually(lambda: monitor.status()["alarms"]["workers_absent"], monitor.log)
            assert monitor.status()["alarms"]["lag"]
            page = monitor.get("/metrics")[1]
            assert "innerloop_monitor_workers 0.0" in page
            worker.start()
            eventually(lambda: lag(monitor) == (0, 0), monitor.log)
            eventually(lambda: not monitor.status()["alarms"]["workers_absent"], monitor.log)
        eventually(lambda: monitor.figure("strategy", "adapted").get("lists", 0) > 0, monitor.log)
        assert monitor.status()["coverage"]["items"] == len(FILMS)
        assert monitor.status()["freshness_seconds"]["50"] is not None


def lag(monitor: Monitor) -> tuple[int, float]:
    """Messages of all partitions, and the seconds of the worst."""
    found = monitor.status()["lag"].values()
    return sum(x["messages"] for x in found), max(x["seconds"] for x in found)


def test_two_monitors_share_partitions_and_a_users_topics_stay_together(stage: Stage) -> None:
    """Each follows the same partitions of both topics; when one leaves the other takes over."""
    users = [f"u{n}" for n in range(40)]
    with stage.monitor("one") as one, stage.monitor("two") as two:
        eventually(lambda: sorted(shared(one) + shared(two)) == [0, 1, 2, 3], one.log)
        eventually(lambda: len(shared(one)) == len(shared(two)) == 2, two.log)
        stage.publish(*users)
        stage.act(*users)
        eventually(lambda: hits(one) + hits(two) == 40, one.log)
        assert min(hits(one), hits(two)) > 0
        two.terminate()
        one.wait_until_ready()


def shared(monitor: Monitor) -> list[int]:
    """The partitions that a monitor follows."""
    return list(monitor.status().get("partitions", []))


def hits(monitor: Monitor) -> int:
    """Hits of adapted lists that a monitor has seen."""
    return int(monitor.figure("strategy", "adapted").get("hits", 0))


def test_claims_of_two_monitors_exclude_each_other(stage: Stage) -> None:
    """On the real topic one of many that try at once begins; the end of its run frees the way."""
    now = int(time.time() * 1000)
    runs = [
        Run(
            run=f"run-{n}",
            status="running",
            monitor=f"monitor-{n}",
            command="true",
            started_at=now,
            ends_by=now + 3_600_000,
            log="x",
        )
        for n in range(4)
    ]
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda run: Claims(stage.settings).claim(run, going=False), runs))
    assert sum(won) == 1
    begun = runs[won.index(True)]
    claims = Claims(stage.settings)
    assert claims.newest() == begun
    later = msgspec.structs.replace(begun, run="later", monitor="x", started_at=now + 60_000)
    assert not claims.claim(later, going=False)
    claims.tell(msgspec.structs.replace(begun, run="another", status="failed"))
    assert claims.newest() == begun
    claims.tell(msgspec.structs.replace(begun, status="succeeded", finished_at=now + 1))
    assert claims.claim(later, going=False)


def test_the_schedule_retrains_and_tells_how_it_ended(scheduled: Stage) -> None:
    """Every minute by crontab: a run begins once, its outcome is metric, message and alarm."""
    monitor = scheduled.retraining
    assert monitor is not None
    eventually(lambda: ended_runs(scheduled), monitor.log, 90)
    eventually(lambda: (monitor.status()["retraining"] or {}).get("exit_code") == 4, monitor.log)
    status, page = monitor.status(), monitor.get("/metrics")[1]
    assert "innerloop: no events" in status["alarms"]["retraining_failed"]
    assert 'innerloop_retrainings_total{outcome="failed"}' in page
    told = [run for run in map(decode, scheduled.topics.records("retraining")) if run]
    for begun, ended in zip(told[::2], told[1::2], strict=False):
        assert (begun.status, ended.status) == ("running", "failed")
        assert begun.run == ended.run


def ended_runs(stage: Stage) -> list[Run]:
    """Retrainings of which an outcome was told."""
    found = map(decode, stage.topics.records("retraining"))
    return [run for run in found if run and run.status != "running"]


def test_mistakes_are_one_line(stage: Stage) -> None:
    """A crontab that is none, a port that is taken and topics that are missing are named."""
    where = ["-b", stage.settings.kafka.bootstrap_servers]
    own = ["--prefix", stage.settings.kafka.prefix, "--dir", str(stage.folder / "m"), "--port", "0"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, code, said in (
            ([*own, "--set", "monitor.retrain_cron=daily"], 2, "monitor.retrain_cron"),
            ([*own[:-1], port], 8, "--port"),
            (["--prefix", "none.", *own[2:]], 3, "innerloop topics create"),
        ):
            result = innerloop("monitor", *where, *arguments)
            assert (result.returncode, said in result.stderr) == (code, True), result.stderr
            assert len(result.stderr.splitlines()) == 1
