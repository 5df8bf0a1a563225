"""The demo from the first act to the last."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import msgspec
import numpy as np

from export.bundle import Bundle
from stream.config import Settings
from stream.demo import model, score, stage
from stream.demo.films import Films
from stream.demo.replica import Replica
from stream.demo.score import POPULAR, STEPS_OFF, TOP, Tally
from stream.demo.screen import Screen
from stream.demo.stage import WorkerProcess
from stream.demo.traffic import Exchange, Seen, paced
from stream.demo.visitors import EventTime, Visit
from stream.demo.watch import Reading, lag, read
from stream.message_types import Interaction
from stream.progress import reporter

RATE = 1_000.0
"""Events a second of the replay."""

GENTLE = 25.0
"""Events a second after the acts, on a terminal."""

_DRAIN_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the demo is run."""

    folder: Path  # models and the worker's log; kept
    budget_s: float = 30.0
    endless: bool = False  # go on until Ctrl-C
    began: float = 0.0  # monotonic seconds


@dataclass
class Show:
    """What the acts share."""

    plan: Plan
    screen: Screen
    films: Films
    missed: list[str] = field(default_factory=list)


def run(plan: Plan, screen: Screen, starting: Future[str]) -> list[str]:
    """Play all acts on the broker that is starting; returns what did not happen, as sentences."""
    show = Show(plan, screen, Films.shipped())
    plan.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="innerloop-demo-")))
        bundle_path = plan.folder / "models" / model.key(show.films.cut, plan.budget_s)
        settings = _act_broker(show, starting, bundle_path, scratch, stack)
        bundle = _act_model(show, settings, bundle_path)
        log = plan.folder / "worker.log"
        worker = stack.enter_context(stage.worker(settings, scratch, log))
        exchange = stack.enter_context(closing(Exchange(settings)))
        replica = stack.enter_context(closing(Replica(settings, bundle, show.films.items)))
        live = _act_traffic(show, settings, bundle, worker, exchange, replica)
        visit = _acts_visitors(show, worker, exchange, replica)
        _act_summary(show, worker, live, visit)
        if plan.endless:
            with suppress(KeyboardInterrupt):
                _go_on(show, worker, exchange, visit, live)
            screen.say()
            screen.say("Stopping.")
    return show.missed


# -- acts 1 and 2 ---------------------------------------------------------------------------------


def _act_broker(
    show: Show, starting: Future[str], bundle: Path, scratch: Path, stack: ExitStack
) -> Settings:
    """Start the broker, make topics of our own, load the films."""
    show.screen.heading("1  A broker")
    servers = starting.result()
    settings = stage.settings_for(servers, bundle, scratch / "state")
    stack.enter_context(stage.own_topics(settings))
    with closing(Exchange(settings)) as exchange:
        exchange.send_items(show.films.items)
    show.screen.say(
        f"Kafka at {servers}; topics {settings.kafka.prefix}* with {stage.PARTITIONS} partitions; "
        f"{len(show.films.items):,} films in {settings.kafka.topic('items')}."
    )
    return settings


def _act_model(show: Show, settings: Settings, path: Path) -> Bundle:
    """A model that knows the log up to the cut."""
    films, screen = show.films, show.screen
    screen.heading("2  A model")
    known = len(films.events) - len(films.tail)
    if (found := model.cached(path)) is not None:
        screen.say(f"Trained on the first {known:,} ratings in an earlier run: {path}")
        return found
    screen.say(
        f"Meta-training on the first {known:,} ratings of MovieTweetings (2013), "
        f"{show.plan.budget_s:.0f} s for the outer loop and the fit of the experts:"
    )
    with reporter() as progress:
        bundle = model.train(path, settings, films.cut, show.plan.budget_s, progress)
    model.forget_others(path)
    return bundle


# -- act 3 ----------------------------------------------------------------------------------------


@dataclass
class Live:
    """The replay: its events in order, and what the lists were worth so far."""

    events: list[Interaction]
    rows: dict[str, int]  # item id -> row
    tally: Tally
    rate: float = 0.0  # events a second
    sent: int = 0
    read: int = 0

    def __post_init__(self) -> None:
        self._place = {event.id: i for i, event in enumerate(self.events)}
        self._now: Reading | None = None
        self._looked = time.monotonic()

    def take(self, seen: list[Seen]) -> None:
        """Count lists that were read."""
        self.read += len(seen)
        for each in seen:
            cause = each.list.caused_by
            place = self._place.get(cause.event_id) if cause else None
            if place is not None:
                rows = [self.rows.get(entry.item, -2) for entry in each.list.items[:TOP]]
                self.tally.add(place, np.array(rows))

    def look(self, worker: WorkerProcess) -> None:
        """Ask the worker for its lag, once a second."""
        worker.check()
        if time.monotonic() - self._looked > 1.0:
            self._looked = time.monotonic()
            self._now = read(worker.get("/metrics"))

    def status(self, exchange: Exchange, *, compared: bool = True) -> str:
        """One line; `compared` with the other variants at the same positions."""
        p50, p99 = exchange.freshness()
        tally, now = self.tally, self._now
        rates = f"hit@{TOP} {tally.rate():.3f}"
        if compared:
            off, popular = tally.rate(STEPS_OFF), tally.rate(POPULAR)
            rates += f"   steps off {off:.3f}   popularity {popular:.3f}"
        behind = f"   lag {now.lag_messages:,.0f} events {now.lag_seconds:.1f} s" if now else ""
        return (
            f"{self.sent:>6,} events {self.rate:>5,.0f}/s   {rates}   "
            f"fresh {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms{behind}"
        )


def _act_traffic(
    show: Show,
    settings: Settings,
    bundle: Bundle,
    worker: WorkerProcess,
    exchange: Exchange,
    replica: Replica,
) -> Live:
    """Replay the live part of the log and count hits as the lists come in."""
    screen, events = show.screen, show.films.tail
    screen.heading("3  Live traffic")
    screen.say(f"innerloop worker is process {worker.pid}, its log is {worker.log}")
    live = _live(events, settings, bundle, replica)
    worker.wait_until_ready()
    screen.say(
        f"Replaying the {len(events):,} ratings after that, {RATE:,.0f} a second. A hit: the next "
        f"film that the user likes is in the top {TOP}. Users start without a past."
    )
    began = time.monotonic()
    for sent, seen in paced(exchange, events, RATE):
        live.sent, live.rate = sent, sent / (time.monotonic() - began)
        live.take(seen)
        live.look(worker)
        if live.tally.lists:
            screen.status(live.status(exchange))
    _drain(exchange, live, worker)
    screen.say(live.status(exchange))
    tally = live.tally
    screen.say(
        f"{live.read:,} lists read, {tally.lists:,} of them count. The same positions computed "
        f"here: {tally.rate(score.ADAPTED):.3f} with steps, {tally.rate(STEPS_OFF):.3f} with the "
        f"same weights and steps off, {tally.rate(POPULAR):.3f} by what was popular that day."
    )
    return live


def _live(events: list[Interaction], settings: Settings, bundle: Bundle, replica: Replica) -> Live:
    table = replica.serving.table
    rows = {item: row for row, item in enumerate(table.ids)}
    log = score.log_of(events, settings.messages, rows)
    positions = score.cached_positions(
        model.beside(Path(str(settings.model.bundle)), "positions", settings.ranking),
        replica.serving.meta,
        log,
        table.catalogue(),
        bundle.items.prior,
        settings.ranking,
    )
    return Live(events, rows, Tally(positions))


def _drain(exchange: Exchange, live: Live, worker: WorkerProcess) -> None:
    """Wait until the last event's list was read."""
    last = live.events[-1]
    deadline = time.monotonic() + _DRAIN_S
    while time.monotonic() < deadline:
        live.take(exchange.read(0.05))
        worker.check()
        found = exchange.latest.get(last.user)
        if found and found.list.caused_by and found.list.caused_by.event_id == last.id:
            break
    live.take(exchange.read(0.05))


# -- acts 4 to 6 ----------------------------------------------------------------------------------


def _acts_visitors(
    show: Show, worker: WorkerProcess, exchange: Exchange, replica: Replica
) -> Visit:
    clock = EventTime(show.films.tail[-1].timestamp)
    visit = Visit(show.screen, show.films, exchange, replica, clock)
    show.screen.heading("4  Two new users")
    visit.meet()
    show.screen.heading("5  A new film")
    visit.release(worker)
    show.missed += visit.missed
    return visit


def _act_summary(show: Show, worker: WorkerProcess, live: Live, visit: Visit) -> None:
    screen, tally = show.screen, live.tally
    screen.heading("6  Summary")
    p50, p99 = visit.exchange.freshness()
    now, behind = read(worker.get("/metrics")), lag(visit.exchange.settings)
    screen.table(
        [
            (f"hit@{TOP} of published lists", f"{tally.rate():.3f}  ({tally.lists:,} lists)"),
            ("same model, steps off", f"{tally.rate(STEPS_OFF):.3f}"),
            ("recency popularity", f"{tally.rate(POPULAR):.3f}"),
            ("freshness, event to list read", f"p50 {1e3 * p50:.0f} ms, p99 {1e3 * p99:.0f} ms"),
            (
                "freshness, as the worker says",
                f"p50 {1e3 * now.p50:.0f} ms, p99 {1e3 * now.p99:.0f} ms",
            ),
            ("lag at the end", f"{behind} events"),
            ("events, lists, dead letters", f"{now.events:,.0f}, {now.lists:,.0f}, {now.dead:.0f}"),
            ("checks", f"{len(visit.results) - len(visit.missed)} of {len(visit.results)} hold"),
            ("time", f"{time.monotonic() - show.plan.began:.0f} s"),
        ]
    )
    screen.say("All of it happened." if not show.missed else "This did not happen:")
    for line in show.missed:
        screen.say(f"  {line}")


# -- after the acts -------------------------------------------------------------------------------


def _go_on(show: Show, worker: WorkerProcess, exchange: Exchange, visit: Visit, live: Live) -> None:
    """Gentle traffic until Ctrl-C: new users who do what those of the live part did."""
    show.screen.say()
    show.screen.say(
        f"Traffic goes on at {GENTLE:.0f} events a second: new users who do what the users above "
        "did, so that hits come easier. Ctrl-C ends it all."
    )
    for lap in count(1):
        again = Live(_lap(live.events, lap, visit.clock), live.rows, Tally(live.tally.positions))
        exchange.ages.clear()
        began = time.monotonic()
        for sent, seen in paced(exchange, again.events, GENTLE):
            again.sent, again.rate = sent, sent / (time.monotonic() - began)
            again.take(seen)
            again.look(worker)
            if again.tally.lists:
                show.screen.status(again.status(exchange, compared=False))


def _lap(events: list[Interaction], lap: int, clock: EventTime) -> list[Interaction]:
    """The events once more, by new users, with event times that begin now and keep their gaps."""
    shift = clock.now() - events[0].timestamp
    return [
        msgspec.structs.replace(
            event,
            id=f"{event.id}~{lap}",
            user=f"{event.user}~{lap}",
            timestamp=event.timestamp + shift,
        )
        for event in events
    ]
