"""How fast stores come back from the changelog, and where the time goes."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.feeding import settings_on
from benchmarks.measure import MICRO
from benchmarks.user_records import user_records
from stream.config import Settings
from stream.kafka.producer import BulkProducer
from stream.kafka.reader import LogReader
from stream.ports import Positions, Put, Record, TopicPartition
from stream.restore import Restore
from stream.store import Identity, Store, Stores

_DIFFERENT = 5_000  # records, which are repeated under other keys far apart
_ROLES = ("state", "signals")


@dataclass(frozen=True, kw_only=True)
class RestoreSpeed:
    """One restore of all partitions by one process, the broker on the same machine."""

    users: int
    partitions: int
    record_bytes: float  # mean
    seconds: float
    cpu: float  # us a user, this process with all its threads
    broker_cpu: float  # us a user; 0 for a broker that was not started here
    stages: dict[str, float]  # us a user, wall time of the thread that restores
    median_step: float  # ms
    longest_step: float  # ms

    @property
    def users_a_second(self) -> float:
        """The rate."""
        return self.users / self.seconds

    @property
    def megabytes_a_second(self) -> float:
        """The rate in bytes of values."""
        return self.users_a_second * self.record_bytes / 1e6

    @property
    def bound(self) -> float:
        """Users a second if all cores did nothing else."""
        return (os.cpu_count() or 1) * MICRO / (self.cpu + self.broker_cpu)


class Spent:
    """Wall seconds by stage."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        """Time what is done inside."""
        started = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - started


class TimedReader:
    """`stream.ports.LogReader` that says how long reading took."""

    def __init__(self, reader: LogReader, spent: Spent) -> None:
        self._reader = reader
        self.spent = spent

    def start_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """As the reader below."""
        return self._reader.start_offsets(partitions)

    def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """As the reader below."""
        return self._reader.end_offsets(partitions)

    def read(
        self, positions: Positions, targets: Positions, limit: int = 10_000
    ) -> Iterator[list[Record]]:
        """As the reader below, timed batch by batch."""
        batches = self._reader.read(positions, targets, limit)
        while True:
            with self.spent.on("read"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


class TimedStore:
    """`stream.ports.PartitionStore` that says how long writing took."""

    def __init__(self, store: Store, spent: Spent) -> None:
        self._store = store
        self._spent = spent
        self.get_many, self.scan, self.offset = store.get_many, store.scan, store.offset
        self.erase, self.clear, self.close = store.erase, store.clear, store.close

    def apply(self, puts: Iterable[Put], offsets: Mapping[str, int]) -> None:
        """As the store below."""
        with self._spent.on("write"):
            self._store.apply(puts, offsets)

    def restored(self) -> None:
        """As the store below: what is in memory goes to disk."""
        with self._spent.on("flush"):
            self._store.restored()


def measure(servers: str, folder: Path, users: int, partitions: int, runs: int) -> RestoreSpeed:
    """The run of median length of several, each into stores that are new."""
    settings = settings_on(servers, folder, partitions, largest_batch=1_000)
    mean = _fill(settings, users)
    found = [_run(settings, folder / f"restore-{i}", mean) for i in range(runs)]
    return sorted(found, key=lambda one: one.seconds)[len(found) // 2]


def _fill(settings: Settings, users: int) -> float:
    """Write a record for every user; their mean size."""
    records, topic = user_records(min(users, _DIFFERENT)), settings.kafka.topic("state")
    with closing(BulkProducer(settings)) as producer:
        for user in range(users):
            producer.produce(topic, b"user-%07d" % user, records[user % len(records)])
        producer.flush()
    return sum(map(len, records)) / len(records)


def _run(settings: Settings, folder: Path, mean: float) -> RestoreSpeed:
    identity = Identity(cluster="c", state_topic="s", signals_topic="g")
    spent, partitions = Spent(), range(settings.kafka.partitions)
    steps: list[float] = []
    with Stores(folder, identity) as stores, closing(LogReader(settings.kafka)) as reader:
        cpu, broker_cpu, started = time.process_time(), _broker_cpu(), time.perf_counter()
        restores = [_restore(settings, TimedReader(reader, spent), stores, p) for p in partitions]
        waiting = list(restores)
        while waiting:
            for restore in list(waiting):
                began = time.perf_counter()
                if not restore.step():
                    waiting.remove(restore)
                steps.append(time.perf_counter() - began)
        seconds = time.perf_counter() - started
        cpu, broker_cpu = time.process_time() - cpu, _broker_cpu() - broker_cpu
    users = sum(restore.records for restore in restores)
    stages = {name: one / users * MICRO for name, one in spent.seconds.items()}
    stages["rest"] = seconds / users * MICRO - sum(stages.values())
    return RestoreSpeed(
        users=users,
        partitions=len(partitions),
        record_bytes=mean,
        seconds=seconds,
        cpu=cpu / users * MICRO,
        broker_cpu=broker_cpu / users * MICRO,
        stages=stages,
        median_step=1000 * sorted(steps)[len(steps) // 2],
        longest_step=1000 * max(steps),
    )


def _restore(settings: Settings, reader: TimedReader, stores: Stores, partition: int) -> Restore:
    changelogs = {role: TopicPartition(settings.kafka.topic(role), partition) for role in _ROLES}
    return Restore(reader, TimedStore(stores.open(partition), reader.spent), changelogs)


def _broker_cpu() -> float:
    """Seconds that the processes which this one started have used; the broker is one of them."""
    seconds = 0.0
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        seconds += times.user + times.system
    return seconds
