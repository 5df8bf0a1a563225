"""A run of chaos: a cluster, traffic, tormented workers, then peace, and the checker's word."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from stream import topics
from stream.config import Settings, load
from stream.demo.watch import lag
from stream.embedded_kafka import EmbeddedKafka
from stream.errors import InnerloopError
from tests.chaos.attack import POINTS, Guest, Rollout, Tormentor
from tests.chaos.checker import Verdict, check, read
from tests.chaos.process import WorkerProcess
from tests.chaos.tally import Goals, Tally
from tests.chaos.traffic import Traffic
from tests.integration.world import FILMS, Topics, environment, save_bundle

SESSION_MS = 3_000
TTL_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a run is made."""

    seed: int = 1
    seconds: float = 1_500.0  # at most, before peace
    at_least_s: float = 0.0  # go on when the goals are met
    goals: Goals = field(default_factory=Goals)
    workers: int = 3
    partitions: int = 6
    rate: float = 150.0  # events a second
    broker_pause_s: float = 45.0
    points: tuple[str, ...] = POINTS
    only_kills: bool = False  # no stops, no full or slow disks, nobody who joins and leaves
    rolling: bool = False  # nobody is killed: restarts in turn, and one who joins and leaves
    replay: bool = True  # hold stores and records against the log afterwards


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was done, and what came of it."""

    tally: Tally
    verdict: Verdict
    missing: dict[str, int]
    troubles: list[str]
    replayed: list[str]  # the last lines of `innerloop replay`
    replay_failed: bool

    @property
    def passed(self) -> bool:
        """Whether enough was done and nothing was found."""
        return self.verdict.clean and not (self.missing or self.troubles or self.replay_failed)

    def line(self) -> str:
        """The last line."""
        return f"{self.tally.line()}: {self.verdict.summary()}"


def settings_of(servers: str, plan: Plan, brokers: int) -> Settings:
    """Topics of a run of its own, with timeouts that let a run be short."""
    return load(
        None,
        {
            "kafka.bootstrap_servers": servers,
            "kafka.prefix": f"chaos-{time.time_ns():x}.",
            "kafka.partitions": plan.partitions,
            "kafka.replication": min(3, brokers),
            "kafka.min_insync_replicas": 2 if brokers > 1 else 1,
            "kafka.session_timeout_ms": SESSION_MS,
            "state.ttl_days": TTL_S / 86_400,
        },
    )


def on_a_cluster(plan: Plan, folder: Path, say: Callable[[str], None]) -> Result:
    """A run on three brokers of its own, which are killed too."""
    with EmbeddedKafka(brokers=3) as kafka:
        settings = settings_of(kafka.bootstrap_servers, plan, 3)
        return run(plan, settings, folder, say, kafka)


def run(
    plan: Plan,
    settings: Settings,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
    kafka: EmbeddedKafka | None = None,
) -> Result:
    """Attack until the goals are met or the time is over, then make peace and check."""
    if not (folder / "bundle").exists():
        save_bundle(folder, settings)
    topics.create(settings)
    own = Topics(settings)
    own.send(*FILMS)
    own.close()
    tally, halt = Tally(), threading.Event()
    names = [f"worker-{i}" for i in range(plan.workers)]
    with ExitStack() as stack:
        made = [WorkerProcess(settings, folder / "bundle", folder, n) for n in (*names, "guest")]
        workers = [stack.enter_context(worker) for worker in made]
        attackers = _attackers(plan, workers, tally, halt)
        traffic = Traffic(settings, [f.item for f in FILMS], rate=plan.rate, seed=plan.seed)
        stack.enter_context(traffic)
        threads = [threading.Thread(target=a.run, daemon=True) for a in attackers]
        for thread in threads:
            thread.start()
        _rage(plan, tally, kafka, say)
        halt.set()
        for thread in threads:
            thread.join()
        _peace(workers[:-1], traffic, settings, say)
        verdict = check(read(settings.kafka), ttl_days=settings.state.ttl_days)
        states = [worker.state for worker in workers if worker.state.exists()]
        replayed = _replay(settings, folder, states) if plan.replay else []
    return Result(
        tally=tally,
        verdict=verdict,
        missing=dict(tally.missing(plan.goals, plan.points)),
        troubles=[t for a in attackers if not isinstance(a, Guest) for t in a.troubles],
        replayed=[line for _, line in replayed],
        replay_failed=any(code for code, _ in replayed),
    )


def _attackers(
    plan: Plan, workers: Sequence[WorkerProcess], tally: Tally, halt: threading.Event
) -> list[Tormentor | Guest | Rollout]:
    session_s = SESSION_MS / 1000
    dice = [random.Random(1_000 * plan.seed + i) for i in range(len(workers))]
    guest = Guest(workers[-1], tally, dice[-1], session_s, halt)
    if plan.rolling:
        return [Rollout(workers[:-1], tally, halt), guest]
    return [
        *(
            Tormentor(w, tally, own, session_s, halt, plan.points, plan.only_kills)
            for w, own in zip(workers[:-1], dice[:-1], strict=True)
        ),
        *([] if plan.only_kills else [guest]),
    ]


def _rage(
    plan: Plan, tally: Tally, kafka: EmbeddedKafka | None, say: Callable[[str], None]
) -> None:
    """Until enough was done; brokers are killed and started again in turn."""
    began = time.monotonic()
    broker_due = said = began + plan.broker_pause_s
    while (spent := time.monotonic() - began) < plan.seconds:
        if spent > plan.at_least_s and not tally.missing(plan.goals, plan.points):
            return
        if kafka is not None and not plan.rolling and time.monotonic() > broker_due:
            _restart_a_broker(kafka, 1 + tally.counts["broker_restarts"] % 3)
            tally.add("broker_restarts")
            broker_due = time.monotonic() + plan.broker_pause_s
        if time.monotonic() > said + 15:
            said = time.monotonic()
            say(f"{spent:.0f} s: {tally.line()}")
        time.sleep(0.2)


def _restart_a_broker(kafka: EmbeddedKafka, node: int) -> None:
    kafka.kill(node)
    time.sleep(3.0)  # long enough that leaders move
    kafka.restart(node)


def _peace(
    workers: Sequence[WorkerProcess],
    traffic: Traffic,
    settings: Settings,
    say: Callable[[str], None],
) -> None:
    """No more attacks: start everything, wait until nothing is left to do, stop in order."""
    say("peace: waiting until everything is handled")
    for worker in workers:
        worker.start()
    traffic.stop()
    deadline = time.monotonic() + 120
    while _behind(settings) > 0:
        if time.monotonic() > deadline:
            raise TimeoutError("workers in peace do not catch up:\n" + workers[0].text()[-3000:])
        time.sleep(0.2)
    for worker in workers:
        worker.terminate()


def _behind(settings: Settings) -> int:
    """Events that no worker has committed; 1 where the brokers do not answer yet."""
    try:
        return lag(settings)
    except InnerloopError:
        return 1


def _replay(settings: Settings, folder: Path, states: Sequence[Path]) -> list[tuple[int, str]]:
    """Exit code and last line of both kinds of `innerloop replay`."""
    config = folder / "replay.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    command = [sys.executable, "-m", "stream", "replay", "--config", str(config)]
    dirs = [word for state in states for word in ("--state-dir", str(state))]
    bundle = ["--bundle", str(folder / "bundle")]
    return [
        _last_line([*command, "--verify", *dirs]),
        _last_line([*command, "--from-events", *bundle]),
    ]


def _last_line(command: Sequence[str]) -> tuple[int, str]:
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    return done.returncode, lines[-1] if lines else ""
