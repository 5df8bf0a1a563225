"""The checker is checked: it finds what seeded faults do on a real broker, and nothing else."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from stream import checkpoints, topics
from stream.config import Settings, load
from stream.demo.watch import lag
from stream.message_types import Interaction
from stream.murmur2 import partition_of
from tests.chaos import faults
from tests.chaos.checker import Verdict, check, read
from tests.chaos.process import Plan, Sabotage, WorkerProcess
from tests.integration.world import FILMS, Topics, eventually, save_bundle

PARTITIONS = 2
TTL_S = 5.0


class Scene:
    """Topics of one test, users who act in real time, and workers."""

    def __init__(self, broker: str, bundle: Path, folder: Path, *, ttl_s: float | None) -> None:
        changes = {
            "kafka.bootstrap_servers": broker,
            "kafka.prefix": f"faulty-{time.time_ns():x}.",
            "kafka.partitions": PARTITIONS,
            "kafka.session_timeout_ms": 3_000,
            "state.ttl_days": None if ttl_s is None else ttl_s / 86_400,
        }
        self.settings: Settings = load(None, changes)
        topics.create(self.settings)
        self.topics = Topics(self.settings)
        self.topics.send(*FILMS)
        self._bundle, self._folder = bundle, folder
        self._count = 0

    def worker(self, name: str = "one") -> WorkerProcess:
        """A worker that has not been started."""
        return WorkerProcess(self.settings, self._bundle, self._folder, name)

    def act(self, *users: str) -> None:
        """Each of these users clicks once, now."""
        now = time.time_ns() // 1_000_000
        events = []
        for user in users:
            self._count += 1
            id_, film = f"e{self._count}", FILMS[self._count % len(FILMS)].item
            events.append(Interaction(id=id_, timestamp=now, user=user, item=film, type="click"))
        self.topics.send(*events)

    def crowd(self, number: int) -> None:
        """Users who act once and never again, and one who always does."""
        self._count += 1
        self.act("always", *(f"once-{self._count}-{i}" for i in range(number)))

    def caught_up(self) -> bool:
        """Whether every event is committed."""
        return lag(self.settings) == 0

    def verdict(self) -> Verdict:
        """What the checker says once everything is handled."""
        eventually(self.caught_up)
        return check(read(self.settings.kafka), ttl_days=self.settings.state.ttl_days)


@pytest.fixture
def scene(broker: str, bundle: Path, tmp_path: Path) -> Iterator[Scene]:
    """A scene in which nobody expires."""
    made = Scene(broker, bundle, tmp_path, ttl_s=None)
    yield made
    made.topics.close()


def killed_at(scene: Scene, point: str, sabotage: Sabotage | None, lives: int = 3) -> Verdict:
    """A worker is killed at `point` in the second batch of each of its lives."""
    with scene.worker() as worker:
        for _ in range(lives):
            worker.start(Plan(point=point), sabotage)
            scene.crowd(10)
            eventually(lambda: worker.lines("batch") or not worker.alive, worker.text)
            scene.crowd(10)
            eventually(lambda: not worker.alive, worker.text)
        worker.start(None, sabotage)
        return scene.verdict()


CHECKS: list[tuple[Sabotage, str, Callable[[Verdict], object]]] = [
    (faults.offsets_first, checkpoints.PRODUCED, lambda v: v.lost),
    (faults.store_first, checkpoints.PRODUCED, lambda v: v.lost),
]


@pytest.mark.parametrize(
    ("fault", "point", "found"), CHECKS, ids=[fault.__name__ for fault, _, _ in CHECKS]
)
def test_a_seeded_fault_is_found(
    scene: Scene, fault: Sabotage, point: str, found: Callable[[Verdict], object]
) -> None:
    """What a crash does to a worker that breaks the protocol is in the verdict."""
    assert found(killed_at(scene, point, fault))


def test_versions_that_begin_anew_are_found(scene: Scene) -> None:
    """A worker that counts versions by itself begins at 1 again after a crash."""
    with scene.worker() as worker:
        worker.start(None, faults.version_not_checked)
        for _ in range(2):
            scene.crowd(10)
            eventually(scene.caught_up, worker.text)
        worker.kill()
        worker.start(None, faults.version_not_checked)
        scene.act("always")
        assert scene.verdict().regressions


@pytest.mark.parametrize("point", [checkpoints.PRODUCED, checkpoints.COMMITTED])
def test_the_same_crashes_of_a_sound_worker_leave_nothing(scene: Scene, point: str) -> None:
    """Without a fault the verdict is clean, and it has looked at every event."""
    verdict = killed_at(scene, point, None)
    assert verdict.clean, verdict
    assert (verdict.events, verdict.users) == (66, 61)


@pytest.mark.parametrize("fault", [faults.refresh_keeps_version, None])
def test_a_version_given_twice_by_a_change_of_the_model_is_found(
    scene: Scene, tmp_path: Path, fault: Sabotage | None
) -> None:
    """Lists that no event caused are looked at, too, and are no fault by themselves."""
    save_bundle(tmp_path, Settings(), seed=9)
    with scene.worker() as worker:
        worker.start(None, fault)
        scene.crowd(10)
        eventually(scene.caught_up, worker.text)
        version = scene.topics.release(tmp_path / "bundle")

        def moved() -> bool:
            return scene.topics.lists("always")[-1]["model_version"] == version

        eventually(moved, worker.text)
        verdict = scene.verdict()
    assert bool(verdict.regressions) == (fault is not None), verdict


@pytest.mark.parametrize("fault", [faults.sweep_without_offsets, None])
def test_a_zombie_that_sweeps_is_found_where_the_fence_is_missing(
    broker: str, bundle: Path, tmp_path: Path, fault: Sabotage | None
) -> None:
    """A worker stopped in a sweep forgets a user who has come back meanwhile, unless fenced."""
    scene = Scene(broker, bundle, tmp_path, ttl_s=TTL_S)
    users = [u for u in map(str, range(60)) if partition_of(u.encode(), PARTITIONS) == 0]
    sleeper, others = users[0], iter(users[1:])
    with ExitStack() as stack:
        zombie, heir = (stack.enter_context(scene.worker(name)) for name in ("one", "two"))
        zombie.start(Plan(action="stop", point="sweep_computed"), fault)
        scene.act(sleeper)
        eventually(lambda: scene.topics.lists(sleeper), zombie.text)
        slept = time.monotonic()
        eventually(lambda: time.monotonic() - slept > TTL_S or zombie.stopped)
        scene.act(next(others))
        eventually(lambda: zombie.stopped, zombie.text)
        heir.start()
        scene.act(sleeper)
        eventually(lambda: len(scene.topics.lists(sleeper)) > 1, heir.text)
        zombie.signal(signal.SIGCONT)
        eventually(lambda: _is_back(zombie), zombie.text)
        verdict = scene.verdict()
    scene.topics.close()
    assert bool(verdict.regressions) == (fault is not None), verdict


def _is_back(zombie: WorkerProcess) -> bool:
    """Whether the worker has noticed that its partitions were taken, or given up."""
    return not zombie.alive or bool(zombie.lines("revoked"))
