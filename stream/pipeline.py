"""The steps of one batch, from records to messages. Read `Pipeline.process` from top to bottom.

Nothing here writes to Kafka or to a store: a batch becomes an `Outcome`, and the worker commits it
or throws it away.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from adapters import own_weights
from adapters.signals import NeighbourDelta, Pairs
from stream import log
from stream import outcome as outcomes
from stream.config import Settings
from stream.erasing import ROUNDS
from stream.learning import Users
from stream.message_checks import COLD_KEY, Reason, Skip
from stream.message_encoding import Cause, bare_letter, dead_letter
from stream.messages import DeadLetter, DecodedBatch, Deletion, Item, decode_events, decode_items
from stream.metrics import Metrics
from stream.outcome import Outcome
from stream.ports import Message, PartitionStore, Put, Record
from stream.roles import Roles, ServedModel
from stream.serving import MILLISECONDS
from stream.signal_log import SignalLog
from stream.sweeps import Sweeps
from stream.user_layout import picked
from stream.user_state import user_key

_log = log.get("worker")
Ints = NDArray[np.int64]

COLD_INTERVAL = 60.0
"""Seconds after which the list for unseen users is published again, at the latest."""


@dataclass(frozen=True)
class Part:
    """The users of a batch whom one model serves."""

    model: ServedModel
    batch: DecodedBatch
    users: Users
    owner: Ints  # [a] place in `users` of each accepted event


class Pipeline:
    """One batch at a time; holds the models being served and what is due."""

    def __init__(
        self,
        settings: Settings,
        roles: Roles,
        metrics: Metrics,
        *,
        partitions: int,
        dead_letter_partitions: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`partitions` is the number of those of `events`."""
        self._settings = settings
        self._roles = roles
        self._signals = roles.champion.serving.signals
        self._metrics = metrics
        self._partitions = partitions
        self._dead_letter_partitions = dead_letter_partitions
        self._clock = clock
        self._signal_log = SignalLog(self._signals)
        within = settings.state.forget_within_s / ROUNDS
        self._cold_interval = min(COLD_INTERVAL, within)  # rolls segments too
        self._sweeps = Sweeps(settings, roles, metrics, clock)
        self._stores: dict[int, PartitionStore] = {}
        self._cold_due: dict[int, float] = {}
        self._queues: dict[int, list[Pairs]] = {}
        self._spent: Counter[str] = Counter()

    # -- a batch ------------------------------------------------------------------------------

    @torch.inference_mode()
    def process(
        self,
        records: Sequence[Record],
        stores: dict[int, PartitionStore],
        *,
        condemned: bool,
        bare: bool = False,
    ) -> Outcome:
        """What this batch does.

        `condemned` sends its one event to dead letters unread, `bare` without its bytes.
        """
        self._begin()
        outcome = outcomes.positions_of(records)
        with self.stage("decode"):
            batch = self._decode(records, condemned)
            self._bury(batch, outcome, bare)
        with self.stage("load"):
            parts = [
                Part(model, some, *model.learner.load(some, stores))
                for model, some in self._roles.parts(batch)
            ]
        with self.stage("step"):
            self._open(batch, outcome)
            for part in parts:
                part.model.learner.learn(part.batch, part.users, part.owner)
        with self.stage("signals"):
            self._share(parts, outcome)
        with self.stage("rank"):
            for part in parts:
                self._publish(part, outcome)
        with self.stage("encode"):
            for part in parts:
                self._save(part, outcome)
            self._publish_cold(outcome)
        return outcome

    def sweep(
        self, stores: dict[int, PartitionStore], *, busy: bool = False, settled: bool = True
    ) -> Outcome:
        """What follows from no record, see `stream.sweeps`.

        `busy` says that batches are full, `settled` that no other model is wanted.
        """
        outcome = self._sweeps.next(stores, busy=busy, settled=settled)
        if outcome.messages:
            self._begin()
        return outcome

    def _begin(self) -> None:
        self._spent = Counter()
        self._queues = {p: list(self._signals.of(p).queue) for p in self._stores}

    def _decode(self, records: Sequence[Record], condemned: bool) -> DecodedBatch:
        batch = decode_events(
            [] if condemned else records,
            self._settings.messages,
            self._partitions,
            self._settings.kafka.partitioner,
            clock_ms=int(self._clock() * 1000),
        )
        if not condemned:
            return batch
        why = "Its transaction was aborted again and again although the brokers were well."
        dead = [DeadLetter(i, r, Reason.UNPROCESSABLE, why) for i, r in enumerate(records)]
        return replace(batch, records=records, dead=dead)

    def _bury(self, batch: DecodedBatch, outcome: Outcome, bare: bool) -> None:
        """What cannot be used goes to dead letters, so that the offsets move on."""
        topic = self._settings.kafka.topic("dead_letters")
        write = bare_letter if bare else dead_letter
        for letter in batch.dead:
            key, value, headers = write(letter.record, letter.reason, letter.detail)
            partition = letter.record.partition % self._dead_letter_partitions
            outcome.messages.append(Message(topic, partition, key, value, headers))
            outcome.dead[letter.reason] += 1
        outcome.skipped.update(batch.skipped)
        outcome.misrouted = batch.misrouted
        outcome.kinds.update(type(event).__name__.lower() for event in batch.accepted)
        for place, event in zip(batch.places, batch.accepted, strict=True):
            partition = batch.records[place].partition
            outcome.newest[partition] = max(outcome.newest.get(partition, 0), event.timestamp)

    def _open(self, batch: DecodedBatch, outcome: Outcome) -> None:
        """Where own weights step: open the bucket of the oldest event, in whose light they do."""
        if not any(own_weights.active(model.serving.meta) for model in self._roles.models()):
            return
        oldest = min((event.timestamp for event in batch.accepted), default=0) / MILLISECONDS
        folded = self._signals.advance(oldest, list(self._stores))
        for partition, delta in folded.items():
            self._write(partition, np.zeros(0, np.int64), delta, outcome)

    def _share(self, parts: Sequence[Part], outcome: Outcome) -> None:
        """Move event time on; write counters, and neighbours where a bucket closed."""
        newest = max(outcome.newest.values(), default=0) / MILLISECONDS
        folded = self._signals.advance(newest, list(self._stores))
        touched: dict[int, list[Ints]] = defaultdict(list)
        for users in (part.users for part in parts):
            outcome.steps += users.steps
            outcome.refused += users.refused
            outcome.damaged += users.damaged
            outcome.skipped[Skip.DUPLICATE] += users.duplicates
            outcome.skipped[Skip.TOO_MANY] += users.too_many
            for partition, rows in users.touched.items():
                touched[partition] += rows
        for partition in touched.keys() | folded.keys():
            counted = np.concatenate([np.zeros(0, np.int64), *touched.get(partition, [])])
            self._write(partition, np.unique(counted), folded.get(partition), outcome)

    def _write(
        self, partition: int, rows: Ints, folded: NeighbourDelta | None, outcome: Outcome
    ) -> None:
        """The counters of `rows` [r] and the neighbours of a fold, to the changelog and store."""
        topic = self._settings.kafka.topic("signals")
        puts = self._signal_log.puts(self._signals.of(partition), rows, folded)
        outcome.puts[partition] += puts
        outcome.messages += [Message(topic, partition, put.key, put.value) for put in puts]

    def _publish(self, part: Part, outcome: Outcome) -> None:
        """One list for each user with an event that was learned from; nulls for the forgotten."""
        topic, batch, users = self._settings.kafka.topic("recommendations"), part.batch, part.users
        for i in np.flatnonzero(users.forgotten).tolist():
            key = users.names[i].encode()
            outcome.messages.append(Message(topic, int(users.partitions[i]), key, None))
        due = np.flatnonzero(users.cause >= 0)
        if not len(due):
            return
        causes = self._causes(batch, users.cause[due])
        names = [users.names[i] for i in due.tolist()]
        records = picked(users.records, due)
        lists, strategies = part.model.recommender.lists(names, records, causes)
        partitions = users.partitions[due].tolist()
        outcome.messages += [
            Message(topic, partition, name.encode(), value)
            for partition, name, value in zip(partitions, names, lists, strict=True)
        ]
        outcome.strategies.update(strategies)
        produced = np.array([batch.records[i].timestamp for i in users.cause[due]])
        outcome.produced = np.concatenate([outcome.produced, produced])

    def _causes(self, batch: DecodedBatch, places: Ints) -> list[Cause]:
        events = dict(zip(batch.places, batch.accepted, strict=True))
        return [
            Cause(event.id, event.timestamp, record.topic, record.partition, record.offset)
            for event, record in ((events[i], batch.records[i]) for i in places.tolist())
        ]

    def _save(self, part: Part, outcome: Outcome) -> None:
        """Changed records go to the changelog and to the store; erased users leave a null."""
        topic, users = self._settings.kafka.topic("state"), part.users
        for i, kept in part.model.learner.changed(users):
            user, partition = users.names[i].encode(), int(users.partitions[i])
            outcome.messages.append(Message(topic, partition, user, kept))
            outcome.puts[partition].append(Put(user_key(user), kept))

    def _publish_cold(self, outcome: Outcome) -> None:
        """The list for unseen users, and a null of the same key to `state`.

        Segments roll when something is appended to them. So what was erased in a partition is
        compacted away even where nobody acts any more.
        """
        kafka, now = self._settings.kafka, self._clock()
        outcome.cold = [p for p, due in self._cold_due.items() if due <= now]
        if not outcome.cold:
            return
        value = self._roles.champion.recommender.cold(version=int(now * 1000))
        key, lists, state = COLD_KEY.encode(), kafka.topic("recommendations"), kafka.topic("state")
        for partition in outcome.cold:
            outcome.messages.append(Message(lists, partition, key, value))
            outcome.messages.append(Message(state, partition, key, None))
            outcome.puts[partition] += []  # the store stands at the end of its changelog

    # -- after the commit ---------------------------------------------------------------------

    def committed(self, outcome: Outcome, seconds: float) -> None:
        """Count what was done and say it in one line."""
        now = self._clock()
        for partition in outcome.cold:
            self._cold_due[partition] = now + self._cold_interval
        self._sweeps.committed(outcome)
        ages = np.maximum(now - outcome.produced / MILLISECONDS, 0.0)
        outcomes.count(self._metrics, outcome, ages, seconds, self._spent)
        if outcome.damaged:
            _log.error("damaged records", users=outcome.damaged, why="their users begin anew")
        if outcome.expired:
            _log.info("expired", users=outcome.expired, ms=round(1000 * seconds, 1))
        if outcome.positions:
            _log.info("batch", **outcomes.line(outcome, ages, seconds, self._spent))

    def aborted(self) -> None:
        """Go back to what is committed: the stores have it, and the pairs that waited before."""
        for partition, store in self._stores.items():
            self._signal_log.recall(partition, store)
            self._signals.of(partition).queue = self._queues.get(partition, [])
        self._sweeps.aborted()

    # -- partitions and items -----------------------------------------------------------------

    def serve(self, partition: int, store: PartitionStore) -> None:
        """A restored partition is served from now on; its list for unseen users is due.

        The signals in its store are exact; those heard from its owner before may lag.
        """
        self._stores[partition] = store
        self._signal_log.recall(partition, store)
        self._cold_due[partition] = 0.0
        self._sweeps.serve(partition, store)

    def closed(self, partition: int) -> None:
        """The partition went away."""
        self._stores.pop(partition, None)
        self._cold_due.pop(partition, None)
        self._sweeps.closed(partition)

    def cold_due(self) -> bool:
        """Whether a list for unseen users waits to be published."""
        return bool(self._cold_due) and min(self._cold_due.values()) <= self._clock()

    def take_items(self, records: Sequence[Record]) -> list[Item | Deletion]:
        """Bring the catalogue up to date; what cannot be read is counted and left out.

        Returns what could be read, in its order.
        """
        if not records:
            return []
        batch = decode_items(records, self._settings.messages, clock_ms=int(self._clock() * 1000))
        for model in self._roles.models():
            model.serving.table.upsert(batch.accepted)
        for letter in batch.dead:
            self._metrics.bad_items.labels(letter.reason).inc()
            _log.warning("item left out", offset=letter.record.offset, reason=letter.detail)
        produced = np.array([records[i].timestamp for i in batch.places], np.float64)
        self._metrics.item_seconds.observe(np.maximum(self._clock() - produced / MILLISECONDS, 0))
        self._metrics.items.set(self.items())
        if any(value is None for value in (r.value for r in records)):
            self._cold_due = dict.fromkeys(self._cold_due, 0.0)
        return batch.accepted

    def serve_with(self, roles: Roles) -> None:
        """Other models from the next batch on; the list for unseen users is due."""
        self._roles = roles
        self._sweeps.serve_with(roles)
        self._cold_due = dict.fromkeys(self._cold_due, 0.0)
        self._metrics.items.set(self.items())

    def take_signals(self, records: Sequence[Record]) -> None:
        """Hear what the users of other workers did."""
        self._signal_log.take(records)

    @property
    def roles(self) -> Roles:
        """The models that serve."""
        return self._roles

    def items(self) -> int:
        """Number of items that can be ranked."""
        return self._roles.champion.serving.table.alive()

    # -- watching -----------------------------------------------------------------------------

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of the batch in hand."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._spent[name] += time.perf_counter() - started  # type: ignore[assignment]

    def stages(self) -> dict[str, float]:
        """Seconds of the last batch by stage."""
        return dict(self._spent)
