"""Seeded faults: what a worker must not do. Each changes the code of the process that calls it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from stream import checkpoints, learning
from stream.outcome import Outcome
from stream.ports import TopicPartition
from stream.user_state import Records, copied
from stream.worker import Worker

Written = dict[TopicPartition, int]


def offsets_first() -> None:
    """Commits the offsets in a transaction of their own, before what follows from the events."""
    commit = Worker._commit

    def faulty(self: Worker, outcome: Outcome) -> Written:
        if outcome.positions:
            producer = self._ports.producer
            producer.begin()
            producer.send_offsets(outcome.positions, self._ports.consumer.group_metadata())
            producer.commit()
        return commit(self, outcome)

    Worker._commit = faulty  # type: ignore[method-assign]


def store_first() -> None:
    """Writes the store before the transaction is committed."""
    commit = Worker._commit

    def faulty(self: Worker, outcome: Outcome) -> Written:
        stores = self._partitions.stores()
        for partition, puts in outcome.puts.items():
            stores[partition].apply(puts, {})
        return commit(self, outcome)

    Worker._commit = faulty  # type: ignore[method-assign]


def sweep_without_offsets() -> None:
    """Leaves the offsets, and with them the fence, out of transactions that read nothing."""
    commit = Worker._commit

    def faulty(self: Worker, outcome: Outcome) -> Written:
        if outcome.positions:
            return commit(self, outcome)
        producer = self._ports.producer
        producer.begin()
        producer.produce(outcome.messages)
        self._ports.checkpoint(checkpoints.SWEEP + checkpoints.PRODUCED)
        return producer.commit()

    Worker._commit = faulty  # type: ignore[method-assign]


def version_not_checked() -> None:
    """Counts versions in memory instead of going on from the record and the offset."""
    numbers = itertools.count(1)

    def faulty(records: Records, offsets: np.ndarray, model: int) -> Records:
        new = copied(records)
        new["state_version"] = [next(numbers) for _ in range(len(new))]
        new["model"] = model
        return new

    learning.user_state.stamp = faulty  # type: ignore[assignment]


def refresh_keeps_version() -> None:
    """Gives the list after a change of the model the version that the user has already."""
    refreshed = learning.Learner.refreshed

    def faulty(self: learning.Learner, stored: Sequence[bytes]) -> Records:
        new = refreshed(self, stored)
        new["state_version"] -= np.uint64(1)
        return new

    learning.Learner.refreshed = faulty  # type: ignore[method-assign]
