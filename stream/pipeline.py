"""The steps of one batch, from records to messages. Read `Pipeline.process` from top to bottom.

Nothing here writes to Kafka or to a store: a batch becomes an `Outcome`, and the worker commits it
or throws it away.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from adapters import own_weights
from adapters.signals import NeighbourDelta, Pairs
from stream import log
from stream.config import Settings
from stream.erasing import ROUNDS
from stream.expiry import Expiry
from stream.learning import Learner, Users
from stream.message_checks import COLD_KEY, Reason, Skip
from stream.message_encoding import Cause, bare_letter, dead_letter
from stream.messages import DeadLetter, DecodedBatch, decode_events, decode_items
from stream.metrics import Metrics
from stream.ports import Message, PartitionStore, Put, Record, TopicPartition
from stream.recommend import Recommender
from stream.serving import MILLISECONDS, Serving
from stream.signal_log import SignalLog
from stream.user_layout import picked
from stream.user_state import Layout, user_key

_log = log.get("worker")
Ints = NDArray[np.int64]

COLD_INTERVAL = 60.0
"""Seconds after which the list for unseen users is published again, at the latest."""


@dataclass
class Outcome:
    """What a batch does, if it is committed."""

    messages: list[Message] = field(default_factory=list)
    puts: dict[int, list[Put]] = field(default_factory=lambda: defaultdict(list))
    positions: dict[TopicPartition, int] = field(default_factory=dict)
    timestamps: dict[TopicPartition, int] = field(default_factory=dict)  # ms, of the last record
    produced: Ints = field(
        default_factory=lambda: np.zeros(0, np.int64)
    )  # ms, of each list's cause
    kinds: Counter[str] = field(default_factory=Counter)
    strategies: Counter[str] = field(default_factory=Counter)
    dead: Counter[Reason] = field(default_factory=Counter)
    skipped: Counter[Skip] = field(default_factory=Counter)
    newest: dict[int, int] = field(default_factory=dict)  # ms of event time, by partition
    cold: list[int] = field(default_factory=list)  # partitions whose `_cold` list is in
    expired: int = 0  # users
    misrouted: int = 0
    steps: int = 0
    refused: int = 0
    damaged: int = 0  # user records that nobody can read


class Pipeline:
    """One batch at a time; holds the model being served and what is due."""

    def __init__(
        self,
        settings: Settings,
        serving: Serving,
        metrics: Metrics,
        *,
        partitions: int,
        dead_letter_partitions: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`partitions` is the number of those of `events`."""
        self._settings = settings
        self._serving = serving
        self._metrics = metrics
        self._partitions = partitions
        self._dead_letter_partitions = dead_letter_partitions
        self._clock = clock
        self._layout = Layout.of(serving.meta.config)
        self._learner = Learner(settings, serving)
        self._signal_log = SignalLog(serving.signals)
        self._recommender = Recommender(settings, serving, clock)
        within = settings.state.forget_within_s / ROUNDS
        self._cold_interval = min(COLD_INTERVAL, within)  # rolls segments too
        self._expiry = Expiry(settings.state.ttl_days, self._layout, clock)
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
        outcome = _positions(records)
        with self.stage("decode"):
            batch = self._decode(records, condemned)
            self._bury(batch, outcome, bare)
        with self.stage("load"):
            users, owner = self._learner.load(batch, stores)
        with self.stage("step"):
            self._open(batch, outcome)
            self._learner.learn(batch, users, owner)
        with self.stage("signals"):
            self._share(batch, users, outcome)
        with self.stage("rank"):
            self._publish(batch, users, outcome)
        with self.stage("encode"):
            self._save(users, outcome)
            self._publish_cold(outcome)
        return outcome

    def sweep(self, stores: dict[int, PartitionStore]) -> Outcome:
        """What follows from no record: users who no longer act leave nulls behind."""
        found = {p: self._expiry.next_expired(p, store) for p, store in stores.items()}
        outcome, kafka = Outcome(), self._settings.kafka
        if any(found.values()):
            self._begin()
        for partition, users in found.items():
            for user in users:
                for role in ("state", "recommendations"):
                    outcome.messages.append(Message(kafka.topic(role), partition, user, None))
                outcome.puts[partition].append(Put(user_key(user), None))
            outcome.expired += len(users)
        return outcome

    def _begin(self) -> None:
        self._spent = Counter()
        self._queues = {p: list(self._serving.signals.of(p).queue) for p in self._stores}

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
        topic, write = (
            self._settings.kafka.topic("dead_letters"),
            bare_letter if bare else dead_letter,
        )
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
        if not own_weights.active(self._serving.meta):
            return
        oldest = min((event.timestamp for event in batch.accepted), default=0) / MILLISECONDS
        folded = self._serving.signals.advance(oldest, list(self._stores))
        for partition, delta in folded.items():
            self._write(partition, np.zeros(0, np.int64), delta, outcome)

    def _share(self, batch: DecodedBatch, users: Users, outcome: Outcome) -> None:
        """Move event time on; write counters, and neighbours where a bucket closed."""
        newest = max(outcome.newest.values(), default=0) / MILLISECONDS
        folded = self._serving.signals.advance(newest, list(self._stores))
        outcome.steps, outcome.refused = users.steps, users.refused
        outcome.damaged = users.damaged
        outcome.skipped[Skip.DUPLICATE] += users.duplicates
        outcome.skipped[Skip.TOO_MANY] += users.too_many
        for partition in users.touched.keys() | folded.keys():
            rows = [np.zeros(0, np.int64), *users.touched.get(partition, [])]
            touched = np.unique(np.concatenate(rows))
            self._write(partition, touched, folded.get(partition), outcome)

    def _write(
        self, partition: int, rows: Ints, folded: NeighbourDelta | None, outcome: Outcome
    ) -> None:
        """The counters of `rows` [r] and the neighbours of a fold, to the changelog and store."""
        topic = self._settings.kafka.topic("signals")
        puts = self._signal_log.puts(self._serving.signals.of(partition), rows, folded)
        outcome.puts[partition] += puts
        outcome.messages += [Message(topic, partition, put.key, put.value) for put in puts]

    def _publish(self, batch: DecodedBatch, users: Users, outcome: Outcome) -> None:
        """One list for each user with an event that was learned from; nulls for the forgotten."""
        topic = self._settings.kafka.topic("recommendations")
        for i in np.flatnonzero(users.forgotten).tolist():
            key = users.names[i].encode()
            outcome.messages.append(Message(topic, int(users.partitions[i]), key, None))
        due = np.flatnonzero(users.cause >= 0)
        if not len(due):
            return
        causes = self._causes(batch, users.cause[due])
        names = [users.names[i] for i in due.tolist()]
        lists, strategies = self._recommender.lists(names, picked(users.records, due), causes)
        partitions = users.partitions[due].tolist()
        outcome.messages += [
            Message(topic, partition, name.encode(), value)
            for partition, name, value in zip(partitions, names, lists, strict=True)
        ]
        outcome.strategies.update(strategies)
        outcome.produced = np.array([batch.records[i].timestamp for i in users.cause[due]])

    def _causes(self, batch: DecodedBatch, places: Ints) -> list[Cause]:
        events = dict(zip(batch.places, batch.accepted, strict=True))
        return [
            Cause(event.id, event.timestamp, record.topic, record.partition, record.offset)
            for event, record in ((events[i], batch.records[i]) for i in places.tolist())
        ]

    def _save(self, users: Users, outcome: Outcome) -> None:
        """Changed records go to the changelog and to the store; erased users leave a null."""
        topic = self._settings.kafka.topic("state")
        for i, kept in self._learner.changed(users):
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
        value = self._recommender.cold(version=int(now * 1000))
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
        for partition, time_ms in outcome.newest.items():
            self._expiry.acted(partition, time_ms)
        ages = np.maximum(now - outcome.produced / MILLISECONDS, 0.0)
        self._count(outcome, ages, seconds)
        if outcome.damaged:
            _log.error("damaged records", users=outcome.damaged, why="their users begin anew")
        if outcome.expired:
            _log.info("expired", users=outcome.expired, ms=round(1000 * seconds, 1))
        if outcome.positions:
            _log.info("batch", **self._line(outcome, ages, seconds))

    def aborted(self) -> None:
        """Go back to what is committed: the stores have it, and the pairs that waited before."""
        for partition, store in self._stores.items():
            self._signal_log.recall(partition, store)
            self._serving.signals.of(partition).queue = self._queues.get(partition, [])

    # -- partitions and items -----------------------------------------------------------------

    def serve(self, partition: int, store: PartitionStore) -> None:
        """A restored partition is served from now on; its list for unseen users is due.

        The signals in its store are exact; those heard from its owner before may lag.
        """
        self._stores[partition] = store
        self._signal_log.recall(partition, store)
        self._cold_due[partition] = 0.0

    def closed(self, partition: int) -> None:
        """The partition went away."""
        self._stores.pop(partition, None)
        self._cold_due.pop(partition, None)
        self._expiry.closed(partition)

    def cold_due(self) -> bool:
        """Whether a list for unseen users waits to be published."""
        return bool(self._cold_due) and min(self._cold_due.values()) <= self._clock()

    def take_items(self, records: Sequence[Record]) -> None:
        """Bring the catalogue up to date; what cannot be read is counted and left out."""
        if not records:
            return
        batch = decode_items(records, self._settings.messages, clock_ms=int(self._clock() * 1000))
        self._serving.table.upsert(batch.accepted)
        for letter in batch.dead:
            self._metrics.bad_items.labels(letter.reason).inc()
            _log.warning("item left out", offset=letter.record.offset, reason=letter.detail)
        produced = np.array([records[i].timestamp for i in batch.places], np.float64)
        self._metrics.item_seconds.observe(np.maximum(self._clock() - produced / MILLISECONDS, 0))
        self._metrics.items.set(self._serving.table.alive())
        if any(value is None for value in (r.value for r in records)):
            self._cold_due = dict.fromkeys(self._cold_due, 0.0)

    def take_signals(self, records: Sequence[Record]) -> None:
        """Hear what the users of other workers did."""
        self._signal_log.take(records)

    def items(self) -> int:
        """Number of items that can be ranked."""
        return self._serving.table.alive()

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

    def _count(self, outcome: Outcome, ages: NDArray[np.float64], seconds: float) -> None:
        m = self._metrics
        m.commits.inc()
        m.freshness.observe(ages)
        m.waiting.observe(np.maximum(ages - seconds, 0.0))
        m.steps.inc(outcome.steps)
        m.refused.inc(outcome.refused)
        m.damaged.inc(outcome.damaged)
        m.misrouted.inc(outcome.misrouted)
        m.expired.inc(outcome.expired)
        for stage, spent in self._spent.items():
            m.stage.labels(stage).observe(spent)
        if outcome.positions:
            m.batch_events.observe(sum(outcome.kinds.values()) + outcome.dead.total())
        for counter, found in (
            (m.events, outcome.kinds),
            (m.lists, outcome.strategies),
            (m.dead_letters, outcome.dead),
            (m.skipped, outcome.skipped),
        ):
            for label, count in found.items():
                counter.labels(label).inc(count)

    def _line(
        self, outcome: Outcome, ages: NDArray[np.float64], seconds: float
    ) -> dict[str, object]:
        """Everything about a batch, for one log line; times in milliseconds."""
        line: dict[str, object] = {
            "events": sum(outcome.kinds.values()),
            "lists": len(ages),
            "steps": outcome.steps,
            "dead": outcome.dead.total(),
            "skipped": outcome.skipped.total(),
            "partitions": len(outcome.positions),
            "ms": round(1000 * seconds, 1),
        }
        if len(ages):
            p50, worst = np.quantile(ages, [0.5, 1.0]).tolist()
            line |= {"fresh_ms_p50": round(1000 * p50), "fresh_ms_max": round(1000 * worst)}
        return line | {f"{k}_ms": round(1000 * v, 1) for k, v in self._spent.items()}


def _positions(records: Sequence[Record]) -> Outcome:
    """An outcome that says where the batch ends."""
    outcome = Outcome()
    for record in records:
        tp = TopicPartition(record.topic, record.partition)
        outcome.positions[tp] = record.offset + 1
        outcome.timestamps[tp] = record.timestamp
    return outcome
