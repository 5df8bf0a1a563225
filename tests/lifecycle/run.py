"""The acts, in order: first model, retraining, a spoiled one, retraining, rollback, and the check.

Budgets are steps of the outer loop and windows hold what has been sent, so that what the gate has
to say does not depend on the machine. The first model is weak on purpose: a short training, and no
experts. The second has all of it and more than twice the events, so that it is better by more than
the gate's intervals are wide; the monitor trains and promotes it, by its crontab and its command.
The third is as good as the second, which may or may not be proof enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.freshness import Span, freshness
from stream import inspection, movietweetings, topics
from stream.config import Settings, load
from stream.datasets import messages_for
from stream.demo.watch import lag
from stream.loading import SHIPPED
from stream.releases import Release
from stream.tables import instant
from tests.chaos.checker import Readings, check, read
from tests.integration.world import Topics, eventually
from tests.lifecycle.commands import Shell, spoil
from tests.lifecycle.crew import Crew
from tests.lifecycle.reigns import Reign, strays
from tests.lifecycle.result import Change, Judged, Result
from tests.lifecycle.schedule import Schedule
from tests.lifecycle.traffic import Replay

DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Training:
    """How far the log has come, and how a model is made of it."""

    events: int  # at least so many were sent
    window: str  # of event time
    steps: int  # of the outer loop
    more: tuple[str, ...] = ()  # settings


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a run is made. The log has 100,000 events; the last of them have to last to the end."""

    first: Training = Training(
        events=40_000, window="80d", steps=60, more=("learning.experts=false",)
    )
    second: Training = Training(events=80_000, window="160d", steps=400)
    newest: int = 88_000  # events sent before that, for the gate alone: they come after its window
    third: Training = Training(events=92_000, window="190d", steps=300)
    workers: int = 2
    partitions: int = 4
    rate: float = 15.0  # events a second
    quiet_s: float = 20.0  # of freshness before and after a change
    positions: int = 3_000  # lists that the gate judges: three verdicts in a minute
    patience_s: float = 240.0  # for what workers have to do
    retrain_s: float = 900.0  # for what the monitor has begun


def settings_of(servers: str, plan: Plan, folder: Path) -> Settings:
    """Topics and a registry of a run of its own, the actions of the shipped log."""
    own = load(
        None,
        {
            "kafka.bootstrap_servers": servers,
            "kafka.prefix": f"life-{time.time_ns():x}.",
            "kafka.partitions": plan.partitions,
            "model.registry": str(folder / "registry"),
            "model.threads": 1,
            "log.level": "warning",
        },
    )
    return own.model_copy(update={"messages": messages_for([SHIPPED], own.messages)})


def run(plan: Plan, settings: Settings, folder: Path, say: Callable[[str], None]) -> Result:
    """The whole life.

    Raises `CommandFailed`, `AssertionError` where workers take too long, and Innerloop's errors.
    """
    topics.create(settings)
    with ExitStack() as stack:
        events = movietweetings.events()
        replay = stack.enter_context(Replay(settings, events, rate=plan.rate))
        life = _Life(plan, settings, folder, say, replay)
        life.begin()
        crew = stack.enter_context(Crew(settings, folder, plan.workers, life.bundle("first")))
        life.serve(crew)
        life.retrain_by_schedule("second", plan.second, plan.newest)
        life.spoiled()
        life.retrain("third", plan.third)
        life.roll_back()
        life.settle()
    return life.result()


@dataclass
class _Life:
    """What has happened so far."""

    plan: Plan
    settings: Settings
    folder: Path
    say: Callable[[str], None]
    replay: Replay
    crew: Crew = field(init=False)
    shell: Shell = field(init=False)
    releases: list[Release] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)  # reigns, unix seconds
    spans: list[list[Span]] = field(default_factory=list)  # before, during, after each change
    migrated: int = 0
    troubles: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shell = Shell.of(self.settings, self.folder, self.say)

    def bundle(self, name: str) -> Path:
        """Where a model of this run lies."""
        return self.folder / name

    # -- acts ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Items and the first part of the log; a model trained on it is the first champion."""
        self.say(f"== the first {self.plan.first.events:,} events and the first model")
        own = Topics(self.settings)
        own.send(*movietweetings.items())
        own.close()
        self._train("first", self.plan.first)
        why = "the first model, small on purpose; nothing serves yet"
        self._run("promote", str(self.bundle("first")), "--force", "--reason", why)
        self.releases.append(self._champion())

    def serve(self, crew: Crew) -> None:
        """Workers work off what is there; from now on traffic does not rest."""
        self.say(f"== {self.plan.workers} workers serve, {self.plan.rate:g} events a second come")
        self.crew = crew
        crew.start()
        self._until(lambda: crew.all_serve(self.releases[0].version))
        self._caught_up()
        self.replay.start()

    def retrain_by_schedule(self, name: str, training: Training, newest: int) -> None:
        """The monitor's crontab begins what trains and promotes; the gate has to let it pass.

        The log goes on up to `newest` events, those after the training's alone are judged.
        """
        self.say(f"== more of the log comes, then a retraining by the monitor's crontab: {name}")
        self.replay.hurry(training.events)
        options = self._split(training)
        self.replay.hurry(newest)
        self._caught_up()
        champion = self._champion()
        with Schedule(self.settings, self.folder / "monitor", training.steps, *options) as schedule:
            self.say(f"the crontab strikes at {schedule.strike:%H:%M} UTC")
            before = self._quiet("before")
            run = eventually(schedule.ended, schedule.log, self.plan.retrain_s)
            self.say(f"$ {run.command}\n{Path(run.log).read_text()}")
            eventually(lambda: schedule.counted(run), schedule.log)
        self.say(f"the monitor tells: {run.status}, {run.verdict}")
        release = self._champion()
        if run.status != "succeeded" or release == champion or release.version not in run.verdict:
            self.troubles.append(f"the scheduled retraining {run.status}: {run.verdict}")
            return
        self.judged.append(Judged.of(name, Path(release.bundle)))
        self._change(before)

    def retrain(self, name: str, training: Training) -> None:
        """A challenger goes on from the champion on a longer window, and is judged.

        A refused model is promoted by force, so that workers swap again.
        """
        self.say(f"== more of the log comes, then a retraining on {training.window}: {name}")
        self._train(name, training)
        self._caught_up()
        before = self._quiet("before")
        if not self._judge(name):
            self.say("refused; promoted by force, so that the workers change once more")
            why = "make lifecycle shows a second change of the model"
            self._run("promote", str(self.bundle(name)), "--force", "--reason", why)
        self._change(before)

    def spoiled(self) -> None:
        """A challenger whose weights were shuffled is refused, and nothing changes."""
        self.say("== a challenger with shuffled weights")
        champion = self._champion()
        spoil(champion.bundle, str(self.bundle("spoiled")))
        if self._judge("spoiled"):
            self.troubles.append("the gate promoted the spoiled model")
        if self._champion() != champion or not self.crew.all_serve(champion.version):
            self.troubles.append("the spoiled model changed what serves")

    def roll_back(self) -> None:
        """The model before serves again."""
        self.say("== a rollback")
        before = replace(self.spans[-1][-1], name="before")
        self._run("rollback", "--reason", "make lifecycle shows the way back")
        self._change(before)

    def settle(self) -> None:
        """Traffic ends, workers finish and stop."""
        self.say("== traffic ends")
        self._run("models")
        self.replay.stop()
        self._caught_up()
        self.ended.append(time.time())
        self.migrated = self.crew.refreshed()
        self.troubles += self.crew.stop()
        if self.replay.ran_out:
            self.troubles.append("the log ended before the run: use a lower --rate")

    def result(self) -> Result:
        """What readers of the topics see of all this."""
        self.say("== the checker reads the topics")
        readings = read(self.settings.kafka)
        reigns = [
            Reign(version=release.version, start=release.published_at / 1000, end=end)
            for release, end in zip(self.releases, self.ended, strict=True)
        ]
        return Result(
            releases=tuple(self.releases),
            judged=tuple(self.judged),
            changes=tuple(_change(readings, spans) for spans in self.spans),
            migrated=self.migrated,
            verdict=check(readings),
            strays=tuple(strays(readings.lists, reigns)),
            troubles=tuple(self.troubles),
        )

    # -- steps --------------------------------------------------------------------------------

    def _run(self, *words: str) -> None:
        self.shell.run(*words)

    def _train(self, name: str, training: Training) -> None:
        """On a log that has come at least so far; the champion goes before where there is one."""
        self.replay.hurry(training.events)
        parent = ("--parent", "champion") if self.releases else ()
        settings = (f"learning.steps={training.steps}", *training.more)
        self._run(
            *("train", "--from-kafka", "--window", training.window, *parent),
            *("--out", str(self.bundle(name)), "--name", name),
            *("--runs", str(self.folder / "runs")),
            *(word for setting in settings for word in ("--set", setting)),
        )

    def _judge(self, name: str) -> bool:
        where = ("--from-kafka", "--positions", str(self.plan.positions))
        passed = self.shell.passes("promote", str(self.bundle(name)), *where)
        self.judged.append(Judged.of(name, self.bundle(name)))
        return passed

    def _split(self, training: Training) -> tuple[str, str]:
        """Options of `train` and `promote`: learn from what was sent so far, judge by the rest."""
        now = instant(self.replay.newest)
        learn = f"--window {training.window} --until {now}"
        return learn, f"--from {now} --positions {self.plan.positions}"

    def _change(self, before: Span) -> None:
        """The champion is another: wait for workers and users, and note how long it took."""
        release = self._champion()
        self._until(lambda: self.crew.all_serve(release.version))
        self.ended.append(time.time())
        self._until(lambda: self.crew.moved(release.version))
        during = Span(name="during", start=release.published_at / 1000, end=time.time())
        self.releases.append(release)
        self.spans.append([before, during, self._quiet("after")])
        self.say(f"workers serve {release.version}, users moved {during.end - during.start:.1f} s")

    def _champion(self) -> Release:
        found = inspection.standing(self.settings).champion
        assert found is not None, "nothing was promoted"
        return found

    def _quiet(self, name: str) -> Span:
        """Some seconds in which nothing but traffic goes on; time itself is what is awaited."""
        began = time.time()
        time.sleep(self.plan.quiet_s)
        return Span(name=name, start=began, end=time.time())

    def _caught_up(self) -> None:
        """Workers are no more than the newest moments behind."""
        self._until(lambda: lag(self.settings) <= self.plan.rate)

    def _until(self, condition: Callable[[], bool]) -> None:
        eventually(condition, self.crew.text, self.plan.patience_s)


def _change(readings: Readings, spans: list[Span]) -> Change:
    before, during, after = freshness(readings.events, readings.lists, spans)
    return Change(before=before, during=during, after=after)
