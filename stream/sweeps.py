"""What follows from no event: users who no longer act, and users whom an older model served last.

A few records at a time between two batches. What is found becomes a transaction of its own with
the fence of every other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from stream import log
from stream.config import Settings
from stream.expiry import Expiry
from stream.metrics import Metrics
from stream.outcome import Outcome
from stream.ports import Message, PartitionStore, Put
from stream.refreshing import Due, Refresher
from stream.roles import Roles
from stream.user_state import user_key

_log = log.get("worker")


class Sweeps:
    """Walks over the stores of the partitions that are served."""

    def __init__(
        self, settings: Settings, roles: Roles, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._kafka = settings.kafka
        self._metrics = metrics
        self._roles = roles
        self._stores: dict[int, PartitionStore] = {}
        self._expiry = Expiry(settings.state.ttl_days, roles.champion.layout, clock)
        self._refresher = Refresher(settings.model.refresh_within_days, roles)
        self._open = False  # users were handed out whose transaction has not ended

    # -- what is served -----------------------------------------------------------------------

    def serve(self, partition: int, store: PartitionStore) -> None:
        """A restored partition is served from now on."""
        self._stores[partition] = store
        self._refresher.serve(partition, store)

    def closed(self, partition: int) -> None:
        """The partition went away."""
        self._stores.pop(partition, None)
        self._expiry.closed(partition)
        self._refresher.closed(partition)

    def serve_with(self, roles: Roles) -> None:
        """Other models serve from now on."""
        self._roles = roles
        self._expiry.layout = roles.champion.layout
        self._refresher.serve_with(roles, self._stores)

    # -- a turn -------------------------------------------------------------------------------

    def next(
        self, stores: Mapping[int, PartitionStore], *, busy: bool, settled: bool = True
    ) -> Outcome:
        """What is due now, often nothing.

        `busy` says that batches are full, `settled` that no other model is wanted.
        """
        outcome = Outcome()
        self._expire(stores, outcome)
        if settled and not outcome.messages:  # or else a user might be in both
            due = self._refresher.next(busy=busy)
            if due is not None and due.names:
                self._refresh(due, outcome)
        self._open = outcome.refreshed > 0
        self._metrics.refresh_left.set(self._refresher.left)
        return outcome

    def committed(self, outcome: Outcome) -> None:
        """Take note of what was done."""
        for partition, time_ms in outcome.newest.items():
            self._expiry.acted(partition, time_ms)
        self._metrics.expired.inc(outcome.expired)
        self._metrics.refreshed.inc(outcome.refreshed)
        if outcome.refreshed:
            self._open = False
            self._refresher.written(outcome.refreshed)

    def aborted(self) -> None:
        """Nothing of the last outcome counts; users that it refreshed are found again."""
        if self._open:
            self._open = False
            self._refresher.again(self._stores)

    def _expire(self, stores: Mapping[int, PartitionStore], outcome: Outcome) -> None:
        """Users who no longer act leave nulls behind."""
        for partition, store in stores.items():
            users = self._expiry.next_expired(partition, store)
            for user in users:
                for role in ("state", "recommendations"):
                    topic = self._kafka.topic(role)
                    outcome.messages.append(Message(topic, partition, user, None))
                outcome.puts[partition].append(Put(user_key(user), None))
            outcome.expired += len(users)

    @torch.inference_mode()
    def _refresh(self, due: Due, outcome: Outcome) -> None:
        """A rebuilt adapter and a list without a cause for each user."""
        began = time.perf_counter()
        for model, places in self._roles.split(due.names):
            names = [due.names[i] for i in places.tolist()]
            records = model.learner.refreshed([due.records[i] for i in places.tolist()])
            lists, strategies = model.recommender.lists(names, records, [None] * len(names))
            values = model.layout.encode(records)
            for name, record, value in zip(names, values, lists, strict=True):
                self._write(due.partition, name.encode(), record, value, outcome)
            outcome.strategies.update(strategies)
        outcome.refreshed += len(due.names)
        self._refresher.took(time.perf_counter() - began)

    def _write(
        self, partition: int, user: bytes, record: bytes, value: bytes, outcome: Outcome
    ) -> None:
        for role, written in (("state", record), ("recommendations", value)):
            outcome.messages.append(Message(self._kafka.topic(role), partition, user, written))
        outcome.puts[partition].append(Put(user_key(user), record))
