"""Producers: one in transactions for workers, one in bulk for files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import confluent_kafka as ck

from stream.config import Settings
from stream.errors import Aborted, BrokerUnavailable
from stream.kafka.client import (
    CONNECT_S,
    Call,
    Patience,
    Trouble,
    Waiting,
    connect,
    native_positions,
    retried,
)
from stream.kafka.errors import translate
from stream.kafka.properties import bulk_producer, transactional_producer
from stream.ports import Message, Positions, TopicPartition

ADD_S = 2.0
"""How long one attempt to add offsets may take."""

STUCK_S = 5.0
"""After so long such an attempt will not return."""

FLUSH_S = 0.5
"""After so long in a flush, it is looked whether to go on waiting; signals are heard there."""

_ADDING = "adding offsets to the transaction"


class TransactionalProducer:
    """`stream.ports.TransactionalProducer`; one stable id per worker."""

    def __init__(self, settings: Settings, transactional_id: str) -> None:
        self._trouble = Trouble()
        self._properties = transactional_producer(settings, transactional_id)
        self._producer = connect(ck.Producer, self._properties, self._trouble)
        self._patience = Patience(settings.kafka.patience_s)
        self._written: dict[TopicPartition, int] = {}
        self._refused: ck.KafkaError | None = None
        self._stuck = False  # in a call that does not return
        self._closing: Call[None] | None = None  # once it ends

    def init(self) -> None:
        """Fence older producers of the same id and abort what they left open."""
        with self._trouble.explained("starting the producer"):
            retried(lambda: self._producer.init_transactions(CONNECT_S), self._patience)
            self._producer.list_topics(timeout=CONNECT_S)  # or the first message waits a second

    def begin(self) -> None:
        """Open a transaction."""
        self._written, self._refused = {}, None
        with self._trouble.explained("opening a transaction"):
            self._producer.begin_transaction()

    def produce(self, messages: Iterable[Message]) -> None:
        """Queue messages to their explicit partitions.

        Raises `Aborted` that names the message when it is too large.
        """
        messages = list(messages)
        last = {message[:2]: i for i, message in enumerate(messages)}
        reported, send, report = set(last.values()), self._producer.produce, self._delivered
        for i, message in enumerate(messages):
            topic, partition, key, value, headers = message
            listener = report if i in reported else None
            try:
                if headers:
                    send(topic, value, key, partition, listener, headers=list(headers))
                else:
                    send(topic, value, key, partition, listener)
            except BufferError:
                self._queue_full(message, listener)
            except ck.KafkaException as raised:
                raise translate(raised.args[0], _named(message)) from None
        with self._trouble.explained("producing"):
            self._producer.poll(0)

    def send_offsets(self, positions: Positions, group_metadata: object) -> None:
        """Flush, then add the consumed positions to the transaction.

        In this order, whoever is given the partitions after this member finds all that was
        produced in the log when it reads how far to restore. The other way round, records of a
        member that was stopped in between could come after that and still be committed.

        Raises `Aborted` from a member that lost its partitions, `Fenced` from one whose instance
        id is used by another, `ProducerFenced` after a transaction that took too long.
        """
        self._flush()
        offsets = native_positions(positions)

        def send() -> None:
            self._producer.send_offsets_to_transaction(offsets, group_metadata, ADD_S)

        with self._trouble.explained(_ADDING):
            retried(lambda: self._answered(send), self._patience)

    def commit(self) -> dict[TopicPartition, int]:
        """Flush and commit; retried while retriable. Errors as in `stream.ports`.

        Returns the highest offset that this transaction wrote to each partition.
        """
        self._flush()
        with self._trouble.explained("committing the transaction"):
            retried(lambda: self._producer.commit_transaction(CONNECT_S), self._patience)
        return self._written

    def abort(self) -> None:
        """Throw the transaction away."""
        with self._trouble.explained("aborting the transaction"):
            retried(lambda: self._producer.abort_transaction(CONNECT_S), self._patience)
            self._producer.flush(CONNECT_S)  # reports on what was thrown away end here
        if self._refused is not None:  # sequence numbers are behind: it would abort again
            self.renew()

    def renew(self) -> None:
        """A new producer of the same id: the broker ends what the old one left open.

        Not before the old one has ended. While it aborts it may ask for its epoch anew, which the
        broker takes for a repeated request (KIP-360): it would get the epoch of the new one, and
        abort a transaction that the new one has open. Raises `BrokerUnavailable` until then.
        """
        self._end()
        self._stuck, self._closing = False, None
        self._trouble = Trouble()
        self._producer = connect(ck.Producer, self._properties, self._trouble)
        self.init()

    def close(self) -> None:
        """Stop; an open transaction is aborted, by the next `init` of this id at the latest.

        One that waits without end, for an answer or to abort, is left to itself.
        """
        with suppress(BrokerUnavailable):
            self._end()

    def _end(self) -> None:
        """Return when the producer is no more. Raises `BrokerUnavailable` where that takes long."""
        if self._stuck:
            return
        self._closing = self._closing or Call(self._close)
        self._closing.answer(STUCK_S, "closing the producer")

    def _close(self) -> None:
        quiet = warnings.catch_warnings(action="ignore", category=RuntimeWarning)
        with quiet, suppress(ck.KafkaException):  # of one that was fenced: it is over anyway
            self._producer.close()

    def hurry(self) -> None:
        """Do not wait long for brokers any more: the process is to stop."""
        self._patience.hurry()

    def _answered(self, send: Callable[[], None]) -> None:
        """librdkafka waits without end for a coordinator that has left the cluster's metadata."""
        try:
            Call(send).answer(STUCK_S, _ADDING)
        except BrokerUnavailable:
            self._stuck = True
            raise

    def _flush(self) -> None:
        """Return when everything is in the log.

        Raises `Aborted` for what the broker refused, `BrokerUnavailable` where none took it.
        """
        waiting = Waiting(self._patience)
        with self._trouble.explained("flushing the transaction"):
            while (left := self._producer.flush(FLUSH_S)) and not waiting.over():
                waiting.goes_on(f"{left} messages of a transaction are not taken yet")
        if self._refused is not None:
            raise _as_aborted(self._refused)
        if left:
            raise BrokerUnavailable(f"{left} messages of a transaction were not taken")

    def _delivered(self, error: ck.KafkaError | None, message: ck.Message) -> None:
        if error is not None:
            self._refused = self._refused or error
            return
        tp = TopicPartition(str(message.topic()), int(message.partition() or 0))
        self._written[tp] = max(self._written.get(tp, -1), int(message.offset() or 0))

    def _queue_full(self, message: Message, listener: Callable[..., None] | None) -> None:
        topic, partition, key, value, headers = message
        waiting = Waiting(self._patience)
        while not waiting.over():
            self._producer.poll(0.05)
            try:
                self._producer.produce(
                    topic, value, key, partition, listener, headers=list(headers) or None
                )
            except BufferError:
                continue
            return
        raise Aborted("the queue to the broker stays full", reason="queue_full")


class BulkProducer:
    """Writes files to topics: idempotent, partitioned by key, failures collected."""

    def __init__(self, settings: Settings) -> None:
        self._trouble = Trouble()
        self._producer = connect(ck.Producer, bulk_producer(settings), self._trouble)
        self.failures: list[tuple[bytes | None, str]] = []

    def produce(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Queue one message; waits while the queue is full. What fails goes to `failures`."""
        while True:
            try:
                self._producer.produce(
                    topic, value, key, on_delivery=self._delivered, headers=list(headers) or None
                )
            except BufferError:
                self._producer.poll(0.1)
                self._trouble.raise_denied("producing")
                continue
            except ck.KafkaException as raised:
                self.failures.append((key, str(raised.args[0].str())))
            return

    def poll(self) -> int:
        """Take in delivery reports; returns how many messages wait."""
        self._producer.poll(0)
        return len(self._producer)

    def flush(self, timeout: float = 60.0) -> None:
        """Wait until everything is delivered or failed. Raises `BrokerUnavailable`."""
        waiting = self._producer.flush(timeout)
        self._trouble.raise_denied("producing")
        if waiting:
            raise BrokerUnavailable(f"{waiting} messages undelivered after {timeout:.0f} s")

    def close(self) -> None:
        """Stop; what was not flushed is dropped."""
        self._producer.close()

    def _delivered(self, error: ck.KafkaError | None, message: ck.Message) -> None:
        if error is not None:
            key = message.key()
            self.failures.append((key if isinstance(key, bytes) else None, str(error.str())))


def _named(message: Message) -> str:
    size = len(message.value or b"") + len(message.key or b"")
    key = (message.key or b"").decode(errors="replace")
    return f"{size} bytes to {message.topic}[{message.partition}], key {key!r}"


def _as_aborted(error: ck.KafkaError) -> Aborted:
    found = translate(error, "producing")
    if isinstance(found, Aborted):
        return found
    return Aborted(found.detail, reason=error.name().strip("_").lower())
