"""What the tests of faults share: topics, traffic, workers to attack, and what must hold."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from stream import assembly, topics
from stream.config import Settings, load
from stream.demo.watch import lag
from stream.errors import BrokerUnavailable
from stream.kafka.reader import LogReader
from stream.murmur2 import partition_of
from stream.partitions import CHANGELOGS
from stream.ports import PartitionStore, Record, TopicPartition
from stream.restore import STATE
from stream.testing_worker import NOW, click
from stream.user_state import USER
from tests.chaos.checker import Verdict, check, read
from tests.chaos.process import WorkerProcess
from tests.integration.world import FILMS, Topics, eventually

DAY = 86_400.0
USERS = 8


class Site:
    """Topics with FILMS in them, users who act, workers that may be attacked."""

    def __init__(self, settings: Settings, bundle: Path, folder: Path) -> None:
        self.settings = settings
        self.topics = Topics(settings)
        self.folder = folder
        self._bundle = bundle
        self._sent = 0

    def worker(self, name: str = "one", place: str = "") -> WorkerProcess:
        """A worker that has not been started; `place` tells twins with one name apart."""
        folder = self.folder / place
        folder.mkdir(exist_ok=True)
        return WorkerProcess(self.settings, self._bundle, folder, name)

    def user(self, partition: int, number: int = 0) -> str:
        """A user whose events go to this partition."""
        count = self.settings.kafka.partitions
        names = (f"resident-{i}" for i in range(10_000))
        mine = [n for n in names if partition_of(n.encode(), count) == partition]
        return mine[number]

    # -- traffic ------------------------------------------------------------------------------

    def act(self, events: int = USERS) -> None:
        """Users of all partitions click; every event has an id of its own, one is sent twice."""
        sent = [self._click(self._sent + i) for i in range(events)]
        self.topics.send(*sent, sent[0])
        self._sent += events

    def act_until(self, worker: WorkerProcess) -> None:
        """Go on acting until this worker is dead or stopped."""

        def over() -> bool:
            self.act()
            return worker.stopped or not worker.alive

        eventually(over, worker.text)

    def _click(self, number: int) -> object:
        film = FILMS[number * 5 % len(FILMS)].item
        return click(f"user-{number % USERS}", film, NOW + number)

    # -- what must hold -----------------------------------------------------------------------

    def behind(self) -> int:
        """Events that no committed offset covers; 1 while no broker answers."""
        try:
            return lag(self.settings)
        except BrokerUnavailable:
            return 1

    def settle(self, *workers: WorkerProcess) -> None:
        """Return when every event is handled; `workers` are whose logs explain why not."""
        eventually(lambda: not self.behind(), lambda: "".join(w.text()[-4_000:] for w in workers))

    def verdict(self) -> Verdict:
        """The checker's word on everything that is in the topics."""
        return check(read(self.settings.kafka), ttl_days=self.settings.state.ttl_days)

    def check(self, *workers: WorkerProcess, owner: WorkerProcess | None = None) -> None:
        """Nothing is lost or repeated, and the stores of stopped workers are right.

        `owner` is the one that served every partition last.
        """
        verdict = self.verdict()
        found = [*verdict.lost, *verdict.repeated, *verdict.regressions]
        for worker in workers:
            found += disagreements(worker)
        if owner is not None:
            found += disagreements(owner, range(self.settings.kafka.partitions))
        assert not found, "\n".join(found[:20])


@contextmanager
def site(servers: str, bundle: Path, folder: Path, **changes: object) -> Iterator[Site]:
    """New topics with two partitions; `changes` are settings, dots written as two underscores."""
    settings = load(
        None,
        {
            "kafka.bootstrap_servers": servers,
            "kafka.prefix": f"{folder.name}-{time.time_ns():x}.",
            "kafka.partitions": 2,
            "kafka.session_timeout_ms": 3_000,
            **{name.replace("__", "."): value for name, value in changes.items()},
        },
    )
    topics.create(settings)
    made = Site(settings, bundle, folder)
    made.topics.send(*FILMS)
    yield made
    made.topics.close()


# -- stores against their changelogs ------------------------------------------------------------


def disagreements(worker: WorkerProcess, owned: Collection[int] = ()) -> list[str]:
    """Where stores of a stopped worker differ from what the changelogs held at their offsets.

    Those of `owned` partitions must hold all that is in the log.
    """
    numbers = [int(path.name) for path in (worker.state / "partitions").glob("[0-9]*")]
    assert set(owned) <= set(numbers)
    logs = {(p, role): committed(worker.settings, role, p) for p in numbers for role in CHANGELOGS}
    found = list[str]()
    with assembly.open_stores(worker.settings) as stores:
        for number in numbers:
            store = stores.open(number)
            changelogs = {role: logs[number, role] for role in CHANGELOGS}
            found += [f"store {number}: {key!r}" for key in _wrong_keys(store, changelogs)]
            if number in owned:
                late = (
                    r for r, log in changelogs.items() if log and log[-1].offset > store.offset(r)
                )
                found += [f"store {number} lacks the end of {role}" for role in late]
    return found


def committed(settings: Settings, role: str, partition: int) -> list[Record]:
    """Committed records of a partition that are in the log now."""
    tp, reader = TopicPartition(settings.kafka.topic(role), partition), LogReader(settings.kafka)
    try:
        batches = reader.read(reader.start_offsets([tp]), reader.end_offsets([tp]))
        return [record for batch in batches for record in batch]
    finally:
        reader.close()


def _wrong_keys(store: PartitionStore, changelogs: dict[str, list[Record]]) -> list[bytes]:
    newest: dict[bytes, bytes | None] = {}
    for role, records in changelogs.items():
        prefix = USER if role == STATE else b""
        upto = store.offset(role)
        newest |= {prefix + r.key: r.value for r in records if r.key and r.offset <= upto}
    wanted = {key: value for key, value in newest.items() if value is not None}
    held = dict(store.scan(b""))
    return sorted(k for k in wanted.keys() | held.keys() if wanted.get(k) != held.get(k))
