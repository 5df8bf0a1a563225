"""What all clients share: making one, explaining its errors, converting its values.

Every error that leaves this package is an `InnerloopError`; the library's own log lines go to the
Python logger `librdkafka`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import confluent_kafka as ck

from stream import log as log_of_stream
from stream.errors import AccessDenied, BrokerUnavailable, InnerloopError
from stream.kafka.errors import RETRY, is_denied, translate
from stream.kafka.properties import Properties
from stream.ports import Positions, Record, TopicPartition

log = logging.getLogger("librdkafka")
_worker_log = log_of_stream.get("worker")

CONNECT_S = 5.0
"""How long one attempt may take."""

TELL_S = 3.0
"""After so long a wait is told of."""

HURRY_S = 5.0
"""How long a client that is to stop still waits for a broker."""

T = TypeVar("T")


class Patience:
    """How long brokers that are away are waited for; less once the process is asked to stop."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def hurry(self) -> None:
        """Wait for `HURRY_S` at most from now on; may be called from a signal handler."""
        self.seconds = min(self.seconds, HURRY_S)


class Waiting:
    """One wait, which is told of in the log once it is no blink of an eye."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._began = time.monotonic()
        self._told = False

    def over(self) -> bool:
        """Whether patience is over."""
        return time.monotonic() - self._began > self._patience.seconds

    def goes_on(self, why: str) -> None:
        """Say once, after `TELL_S`, what is waited for."""
        if not self._told and time.monotonic() - self._began > TELL_S:
            self._told = True
            _worker_log.warning("waiting for the broker", why=why)


class Trouble:
    """Remembers what librdkafka reports on the side, to say why a call timed out."""

    def __init__(self) -> None:
        self._denied = ""
        self.serve: Callable[[], object] = lambda: None  # lets librdkafka call what it owes

    def __call__(self, error: ck.KafkaError) -> None:
        """Called by librdkafka."""
        if is_denied(error.name()) or "SSL handshake failed" in error.str():
            self._denied = error.str()
        log.debug("%s: %s", error.name(), error.str())

    @contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """Turn a `KafkaException` into the error for the user."""
        try:
            yield
        except (ck.KafkaException, SystemError) as raised:
            error = _error_of(raised)
            self.serve()
            if error.name() in RETRY:
                self.raise_denied(doing)
            raise translate(error, doing) from None

    def raise_denied(self, doing: str) -> None:
        """Raise `AccessDenied` when the broker refused this client, which no retry heals."""
        if self._denied:
            raise AccessDenied(f"{doing}: {self._denied}") from None


class Late:
    """Errors that came among records: each is raised once the records have been handed out."""

    def __init__(self) -> None:
        self._errors: deque[InnerloopError] = deque()

    def add(self, error: InnerloopError) -> None:
        """Keep an error for later."""
        self._errors.append(error)

    def raise_first(self) -> None:
        """Raise the oldest one, if there is any."""
        if self._errors:
            raise self._errors.popleft()


class _Attempts(logging.Filter):
    """Attempts that are made again are for level debug: the error that follows tells it once."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        return log.isEnabledFor(logging.DEBUG) or not record.getMessage().startswith(_RETRIED)


_RETRIED = ("FAIL ", "GETPID ")  # connecting, asking for a producer id
_ATTEMPTS = _Attempts()


def connect(make: Callable[..., T], properties: Properties, trouble: Trouble) -> T:
    """A librdkafka client whose log lines and errors go where they belong."""
    log.addFilter(_ATTEMPTS)
    with trouble.explained(f"client of {properties['bootstrap.servers']}"):
        return make({**properties, "error_cb": trouble}, logger=log)


def _error_of(raised: BaseException) -> ck.KafkaError:
    """The error inside; a fatal one comes as the cause of a SystemError out of callbacks.

    Now and then the cause is lost on the way. What the client did is not known then, as after a
    fence, and the remedy is the same: a new one.
    """
    cause = raised.__cause__ if isinstance(raised, SystemError) else raised
    if cause is None:
        return ck.KafkaError(ck.KafkaError._FENCED, f"a fatal error without words ({raised})")
    if not isinstance(cause, ck.KafkaException):
        raise raised
    error: ck.KafkaError = cause.args[0]
    return error


def plain(partitions: Iterable[ck.TopicPartition]) -> list[TopicPartition]:
    """The library's partitions as ours."""
    return [TopicPartition(tp.topic, tp.partition) for tp in partitions]


def native(partitions: Iterable[TopicPartition]) -> list[ck.TopicPartition]:
    """Our partitions as the library's."""
    return [ck.TopicPartition(topic, partition) for topic, partition in partitions]


def native_positions(positions: Positions) -> list[ck.TopicPartition]:
    """Our positions as the library's."""
    return [ck.TopicPartition(tp.topic, tp.partition, at) for tp, at in positions.items()]


def checked(partitions: list[ck.TopicPartition]) -> list[ck.TopicPartition]:
    """Raise the first partition's own error, which librdkafka does not."""
    for tp in partitions:
        if tp.error is not None:
            raise ck.KafkaException(tp.error)
    return partitions


def to_records(messages: list[Any]) -> tuple[list[Record], list[Any]]:
    """The records among what was consumed, and the rest: messages that carry an error.

    This runs for every record that is read; a comprehension over `tuple.__new__` halves its cost.
    """
    new = tuple.__new__
    records = [
        new(
            Record,
            (
                m.topic(),
                m.partition(),
                m.offset(),
                m.timestamp()[1],
                m.key(),
                m.value(),
                tuple(headers) if (headers := m.headers()) else (),
            ),
        )
        for m in messages
        if m.error() is None
    ]
    if len(records) == len(messages):
        return records, []
    return records, [m for m in messages if m.error() is not None]


class Call(Generic[T]):
    """A call from which librdkafka may never return, made in a thread of its own."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._answer: Future[T] = Future()
        threading.Thread(target=self._ask, args=(call,), daemon=True).start()

    def answer(self, patience: float, doing: str) -> T:
        """The result; may be asked for again.

        Raises `BrokerUnavailable` after `patience` seconds; the client must not be used then.
        """
        try:
            return self._answer.result(patience)
        except TimeoutError:
            raise BrokerUnavailable(f"{doing}: no answer in {patience:.0f} s") from None

    def _ask(self, call: Callable[[], T]) -> None:
        try:
            self._answer.set_result(call())
        except Exception as error:
            self._answer.set_exception(error)


def retried(call: Callable[[], T], patience: Patience) -> T:
    """Call until it works, fails for good, or patience is over."""
    waiting = Waiting(patience)
    while True:
        try:
            return call()
        except ck.KafkaException as raised:
            error = raised.args[0]
            again = error.retriable() or error.name() in RETRY
            if not again or error.txn_requires_abort() or waiting.over():
                raise
            waiting.goes_on(error.str())
            time.sleep(0.02)
