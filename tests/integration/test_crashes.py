"""The crash table of docs/architecture.md, row by row: SIGKILL from inside, then a fresh start.

After every crash the lists, the changelogs, the stores and the offsets are held against the log of
events by a checker that knows nothing of the worker.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream import checkpoints
from stream.checkpoints import SWEEP
from stream.testing_worker import NOW, click
from tests.chaos.process import Plan, WorkerProcess
from tests.integration.faults import DAY, Site, site
from tests.integration.world import eventually


@pytest.fixture(scope="module")
def place(broker: str, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two partitions that all crashes of batches share; each test leaves them in order."""
    with site(broker, bundle, tmp_path_factory.mktemp("crashes")) as made:
        yield made


@pytest.fixture(scope="module")
def expiring(broker: str, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two partitions whose users are forgotten after a day without an event."""
    with site(broker, bundle, tmp_path_factory.mktemp("sweeps"), state__ttl_days=1.0) as made:
        yield made


def crash(place: Site, plan: Plan) -> WorkerProcess:
    """A worker that has died by its plan under traffic."""
    worker = place.worker()
    worker.start(plan)
    place.act_until(worker)
    assert worker.join() == -signal.SIGKILL, worker.text()
    assert worker.lines("sabotage")
    return worker


def recover(place: Site, worker: WorkerProcess) -> int:
    """Start it again, let it catch up, check everything; how many records it restored."""
    with worker:
        worker.start()
        place.act()
        place.settle(worker)
        restored = sum(line["records"] for line in worker.lines("restored"))
        assert worker.terminate() == 0, worker.text()
    place.check(owner=worker)
    return restored


# -- a batch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", [checkpoints.CONSUMED, checkpoints.COMPUTED])
def test_a_crash_before_the_transaction(place: Site, point: str) -> None:
    """Nothing was written: the batch is read again and learned once."""
    recover(place, crash(place, Plan(point=point)))


@pytest.mark.parametrize(
    "point", [checkpoints.BEGUN, checkpoints.PRODUCED, checkpoints.OFFSETS_SENT]
)
def test_a_crash_in_an_open_transaction(place: Site, point: str) -> None:
    """The next start ends the transaction; readers of committed records never see it."""
    recover(place, crash(place, Plan(point=point)))


@pytest.mark.parametrize("delay_ms", [0, 3])
def test_a_crash_while_the_commit_is_under_way(place: Site, delay_ms: int) -> None:
    """Committed or not, the offsets, the lists and the changelogs say the same."""
    recover(place, crash(place, Plan(point=checkpoints.COMMITTING, delay_s=delay_ms / 1000)))


def test_a_crash_between_commit_and_store(place: Site) -> None:
    """The changelog is ahead of the stores, which replay the difference."""
    assert recover(place, crash(place, Plan(point=checkpoints.COMMITTED))) > 0


@pytest.mark.parametrize("point", [checkpoints.APPLYING, checkpoints.APPLIED])
def test_a_crash_while_stores_are_written(place: Site, point: str) -> None:
    """Stores that have the batch keep it, the others replay it."""
    recover(place, crash(place, Plan(point=point)))


# -- partitions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "at"),
    [(checkpoints.ASSIGNED, 1), (checkpoints.RESTORING, 3), (checkpoints.RESTORED, 1)],
)
def test_a_crash_while_restoring(place: Site, point: str, at: int) -> None:
    """A restore that died half way goes on, and what is applied twice counts once."""
    shutil.rmtree(place.folder / "one", ignore_errors=True)
    recover(place, crash(place, Plan(point=point, at=at, commits=0)))


def test_a_crash_while_partitions_are_given_away(place: Site) -> None:
    """A worker that dies as another joins leaves both partitions to the other one."""
    old, new = place.worker("one"), place.worker("two")
    with old, new:
        old.start(Plan(point=checkpoints.REVOKED))
        place.act()
        place.settle(old)
        new.start()
        place.act_until(old)
        assert old.join() == -signal.SIGKILL, old.text()
        place.settle(new)
        assert new.terminate() == 0
    place.check(old, owner=new)


def test_a_lost_disk(place: Site) -> None:
    """A worker that died and has no folder any more restores everything from the changelogs."""
    worker = crash(place, Plan(point=checkpoints.COMMITTED))
    shutil.rmtree(worker.state)
    assert recover(place, worker) > 0


# -- sweeps -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point", [checkpoints.PRODUCED, checkpoints.OFFSETS_SENT, checkpoints.COMMITTED]
)
def test_a_crash_in_a_sweep(expiring: Site, point: str) -> None:
    """Users who expired get one null each, whatever the sweep died of; who comes back is new."""
    began = NOW + 10 * DAY * (1 + checkpoints.OF_TRANSACTIONS.index(point))
    gone, busy = (expiring.user(0, number) for number in range(2))
    with expiring.worker() as worker:
        worker.start(Plan(point=SWEEP + point))
        expiring.topics.send(click(gone, "h1", began), click(busy, "h2", began + 2 * DAY))
        assert worker.join() == -signal.SIGKILL, worker.text()
        worker.start()
        expiring.topics.send(click(busy, "h3", began + 2 * DAY + 60))
        eventually(lambda: expiring.topics.lists(gone) and is_gone(expiring, gone), worker.text)
        expiring.topics.send(click(gone, "h4", began + 2 * DAY + 120))
        expiring.settle(worker)
        assert worker.terminate() == 0, worker.text()
    assert expiring.topics.lists(gone)[-1]["shots"] == 1
    expiring.check(owner=worker)


def is_gone(expiring: Site, user: str) -> bool:
    """Whether the newest record that readers see of a user is a null."""
    found = [r for r in expiring.topics.records("recommendations") if r.key == user.encode()]
    return bool(found) and found[-1].value is None
