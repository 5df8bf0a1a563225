"""The monitor as a Faust application: the one module that knows Faust.

Faust is used where it is safe: agents, timers, crontab, web views. Its tables write inside of
`take()` and crash in a loop, its exactly-once repeats after kill -9, so there are none: what the
monitor knows is in memory, bounded, and a kill loses a window of it. Outside of its exactly-once
Faust reads lists of transactions that were aborted; the consumer below asks for committed ones.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from pathlib import Path
from typing import Any, cast

import aiokafka
import faust
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from faust.app.base import BootStrategy
from faust.transport.drivers import aiokafka as kafka_driver
from faust.utils import cron
from faust.web.drivers import aiohttp as web_driver
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from stream import log
from stream.config import Settings
from stream.errors import ConfigError, MonitorStopped
from stream.http import free_port
from stream.monitor.metrics import MonitorMetrics
from stream.monitor.outside import Outside
from stream.monitor.page import page
from stream.monitor.report import Report
from stream.monitor.retraining import Retraining
from stream.monitor.sampling import Sample
from stream.monitor.security import client_options
from stream.monitor.watch import Watch
from stream.ports import Record

_log = log.get("monitor")

TICK_S = 1.0

COMMIT_S = 1.0
"""Seconds between two commits of what was read: about so much is read again after a kill."""

HUNG_S = 60.0
"""After so long without a tick `/healthz` says that the monitor hangs."""


# -- Faust, as it is needed here ----------------------------------------------------------------


class _Thread(kafka_driver.AIOKafkaConsumerThread):
    """Faust's consumer thread with a client that reads committed records.

    Both topics are assigned by range, so that a user's events and lists come to one monitor. A
    static member takes its partitions over at once after kill -9.
    """

    def _create_worker_consumer(self, transport: Any) -> Any:
        own = cast("_App", self.app).monitoring
        kafka = own.settings.kafka
        self._assignor = RangePartitionAssignor
        return aiokafka.AIOKafkaConsumer(
            bootstrap_servers=kafka.bootstrap_servers.split(","),
            client_id="innerloop-monitor",
            group_id=self.app.conf.id,
            group_instance_id=own.identity,
            partition_assignment_strategy=[RangePartitionAssignor],
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="latest",
            session_timeout_ms=kafka.session_timeout_ms,
            heartbeat_interval_ms=max(100, min(3_000, kafka.session_timeout_ms // 3)),
            fetch_max_wait_ms=200,
            retry_backoff_ms=500,
            **client_options(kafka.properties),
        )


class _Consumer(kafka_driver.Consumer):
    """Drops the records of users who are not followed before anything else is done with them."""

    def _new_consumer_thread(self) -> Any:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def getmany(self, timeout: float) -> AsyncIterator[Any]:
        own = cast("_App", self.app).monitoring
        async for tp, message in super().getmany(timeout):
            if own.sample.takes(message.key, counts=tp.topic == own.events):
                yield tp, message


class _Transport(kafka_driver.Transport):
    Consumer = _Consumer


class _Pages(web_driver.Web):
    production_blueprints = ()  # or `/` would be Faust's


class _Boot(BootStrategy):
    enable_kafka_producer = False  # the monitor writes through `stream.kafka` alone


class _App(faust.App):
    BootStrategy = _Boot
    monitoring: Application

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self, loop=self.loop)

    def _new_web(self) -> Any:
        return _Pages(self)


# -- the application ----------------------------------------------------------------------------


class Application:
    """One monitor. What it knows is in `watch` and `outside`; this is what makes them go on."""

    def __init__(
        self, settings: Settings, identity: str, outside: Outside, retraining: Retraining
    ) -> None:
        """Raises `ConfigError` for a crontab that is none, and `PortInUse`."""
        self.settings, self.identity = settings, identity
        self.events = settings.kafka.topic("events")
        self.lists = settings.kafka.topic("recommendations")
        self.port = free_port(settings.monitor.host, settings.monitor.port, "--port")
        self.sample = Sample(settings.monitor.max_events_per_s)
        self._outside, self._retraining = outside, retraining
        self._watch = Watch(settings, time.time(), outside.kinds)
        self._metrics = MonitorMetrics()
        self._report = self._watch.report(time.time())
        self._ticked = time.monotonic()
        self._partitions: set[int] = set()
        self._blocking = ThreadPoolExecutor(1, thread_name_prefix="outside")
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._app = self._made()

    def run(self) -> None:
        """Watch until SIGINT or SIGTERM. Raises `MonitorStopped`."""
        try:
            self._loop.run_until_complete(self._run())
        finally:
            self._blocking.shutdown(wait=True, cancel_futures=True)
            self._loop.close()

    async def _run(self) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, stop.set)
        await self._blocked(self._outside.look)
        await self._app.start()
        _log.info("listening", port=self.port, id=self.identity)
        await self._app.wait(stop.wait())
        why = self._app.crash_reason
        await self._app.stop()
        if why is not None:
            raise MonitorStopped(f"{type(why).__name__}: {why}")

    async def _blocked(self, call: Callable[[], object]) -> None:
        """Wait for a call that asks a broker, made in a thread of its own, one at a time."""
        await self._loop.run_in_executor(self._blocking, call)

    # -- Faust's parts --------------------------------------------------------------------------

    def _made(self) -> _App:
        settings = self.settings
        app = _App(
            settings.kafka.prefix + settings.monitor.group,
            loop=self._loop,
            broker=[f"kafka://{server}" for server in settings.kafka.bootstrap_servers.split(",")],
            broker_commit_interval=COMMIT_S,
            datadir=str(Path(settings.monitor.dir) / "faust"),
            store="memory://",
            topic_allow_declare=False,
            topic_disable_leader=True,
            web_bind=settings.monitor.host,
            web_port=self.port,
            web_router_enabled=False,
            web_tables_enabled=False,
            web_stats_enabled=False,
            web_graph_enabled=False,
            web_metrics_enabled=False,
            worker_redirect_stdouts=False,
        )
        app.monitoring = self
        self._add_agent(app)
        self._add_timers(app)
        self._add_pages(app)
        return app

    def _add_agent(self, app: _App) -> None:
        followed = app.topic(
            self.events,
            self.lists,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
        )

        async def follow(stream: Any) -> None:
            async for event in stream.events():
                self._take(_record(event.message))

        app.agent(followed, name="follow")(follow)

    def _add_timers(self, app: _App) -> None:
        app.timer(TICK_S, name="tick")(self._tick)
        app.timer(TICK_S, name="check")(self._check)
        app.timer(self.settings.monitor.lag_s, name="look")(self._look)
        schedule = self.settings.monitor.retrain_cron
        if schedule is not None:
            check_cron(schedule)
            app.crontab(schedule, timezone=UTC)(self._retrain)

    def _add_pages(self, app: _App) -> None:
        limits = self.settings.monitor

        async def index(view: Any, request: Any) -> Any:
            return view.html(page(self._report, limits.window_minutes, limits.k))

        async def status(view: Any, request: Any) -> Any:
            return view.json(self._status())

        async def online(view: Any, request: Any) -> Any:
            return view.json(self._watch.rates())

        async def metrics(view: Any, request: Any) -> Any:
            found = generate_latest(self._metrics.registry)
            return view.bytes(found, headers={"Content-Type": CONTENT_TYPE_LATEST})

        async def healthz(view: Any, request: Any) -> Any:
            silent = time.monotonic() - self._ticked
            details = {"partitions": sorted(self._partitions), "silent_seconds": round(silent, 1)}
            return view.json(details, status=200 if silent < HUNG_S else 503)

        for path, view in (
            ("/", index),
            ("/status", status),
            ("/online", online),
            ("/metrics", metrics),
            ("/healthz", healthz),
        ):
            app.page(path, name=view.__name__)(view)

    # -- what happens ---------------------------------------------------------------------------

    def _take(self, record: Record) -> None:
        now = time.time()
        if record.topic == self.events:
            self._watch.event(record, now)
        else:
            self._watch.published(record, now)

    async def _tick(self) -> None:
        now = time.time()
        self._follow_assignment()
        self.sample.adjust(now)
        self._watch.tick(now)
        self._report = self._made_report(now)
        self._metrics.show(self._report, self._watch, self._retraining.outcomes)
        self._ticked = time.monotonic()

    async def _check(self) -> None:
        await self._blocked(self._check_run)

    async def _look(self) -> None:
        await self._blocked(self._outside.look)

    async def _retrain(self) -> None:
        await self._blocked(self._begin_run)

    def _made_report(self, now: float) -> Report:
        outside = self._outside
        return self._watch.report(
            now,
            items=len(outside.items),
            lags=outside.lags,
            workers=outside.workers,
            absent_s=outside.absent_s,
            looked_at=outside.looked_at,
            run=outside.run,
            share=self.sample.share,
        )

    def _status(self) -> dict[str, Any]:
        limits = self.settings.monitor
        return {
            "monitor": self.identity,
            "partitions": sorted(self._partitions),
            **self._report.to_json(limits.window_minutes, limits.k),
            "unjudged": dict(self._watch.unjudged),
            "trouble": self._outside.trouble,
        }

    def _follow_assignment(self) -> None:
        assigned = self._app.consumer.assignment()
        owned = {tp.partition for tp in assigned if tp.topic == self.events}
        for partition in self._partitions - owned:
            self._watch.left(partition)
        self._partitions = owned

    def _check_run(self) -> None:
        _spared(self._retraining.tick)

    def _begin_run(self) -> None:
        _spared(self._retraining.begin)


def _spared(call: Callable[[], object]) -> None:
    """Trouble with a run is told, and is none of the monitor's other work."""
    try:
        call()
    except Exception as error:
        _log.error("retraining", why=str(error))


def _record(message: Any) -> Record:
    headers = message.headers or ()
    return Record(
        message.topic,
        message.partition,
        message.offset,
        -1 if message.timestamp is None else round(1000 * message.timestamp),
        message.key,
        message.value,
        tuple(headers.items() if isinstance(headers, dict) else headers),
    )


def check_cron(schedule: str) -> None:
    """Raises `ConfigError` for what is no crontab of five fields."""
    try:
        if len(schedule.split()) != 5:
            raise ValueError("it has not five fields")
        cron.secs_for_next(schedule, UTC)
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"monitor.retrain_cron: {schedule!r} is no crontab: {error}",
            remedy="Write five fields, such as '0 3 * * *'.",
        ) from None
