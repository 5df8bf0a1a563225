"""Files to topics: which messages, when, and where to. The producer is the caller's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from stream import config, movietweetings
from stream.errors import DataError
from stream.files import (
    Line,
    OnBad,
    OnProgress,
    bad_line,
    expand,
    now_ms,
    read_lines,
)
from stream.message_checks import Limits, Refused, Skipped
from stream.messages import encode, read_event, read_item

Role = Literal["events", "items"]
SHIPPED = "movietweetings"
"""Stands for the data that comes with Innerloop where a file is expected."""

_POLL_EVERY = 1_000  # messages
_NAP_S = 0.1


class Outgoing(NamedTuple):
    """A message ready to go: event time in ms, key and value."""

    time: int
    key: bytes
    value: bytes


class Producer(Protocol):
    """What loading needs of `stream.kafka.BulkProducer`."""

    failures: list[tuple[bytes | None, str]]

    def produce(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        """Queue one message; waits while the queue is full."""

    def poll(self) -> int:
        """Take in delivery reports; returns how many messages wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which messages of a file are sent, and how fast."""

    start: int | None = None  # ms of event time, included
    end: int | None = None  # ms of event time, excluded
    limit: int | None = None  # messages
    speed: float | None = None  # times as fast as event time; None = as fast as possible


def messages_of(
    source: str,
    role: Role,
    settings: config.Messages,
    on_bad: OnBad | None = None,
    on_progress: OnProgress | None = None,
) -> Iterator[Outgoing]:
    """The messages of a file, a folder or `SHIPPED`, checked as the worker would.

    Raises `DataError` that names the line, or tells `on_bad` and goes on.
    """
    if source == SHIPPED and not Path(source).exists():
        return _shipped(role)
    return _from_files(source, role, settings, on_bad, on_progress)


def select(messages: Iterable[Outgoing], selection: Selection) -> Iterator[Outgoing]:
    """Those within the selection's time and number."""
    sent = 0
    for message in messages:
        if selection.limit is not None and sent >= selection.limit:
            return
        if selection.start is not None and message.time < selection.start:
            continue
        if selection.end is not None and message.time >= selection.end:
            continue
        sent += 1
        yield message


def paced(
    messages: Iterable[Outgoing],
    speed: float,
    nap: Callable[[float], None],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Outgoing]:
    """Messages at `speed` times their event time; one out of order goes out at once.

    `nap` is called with at most 0.1 s until a message is due.
    """
    began, first = clock(), None
    for message in messages:
        first = message.time if first is None else first
        due = began + (message.time - first) / 1e3 / speed
        while (left := due - clock()) > 0:
            nap(min(left, _NAP_S))
        yield message


def send(
    messages: Iterable[Outgoing], topic: str, producer: Producer, on_sent: Callable[[int], None]
) -> int:
    """Queue messages until they end or one was not delivered; returns how many were queued.

    A `DataError` that comes out of `messages` says how many went before it.
    """
    sent = 0
    try:
        for message in messages:
            producer.produce(topic, message.key, message.value)
            sent += 1
            if sent % _POLL_EVERY == 0:
                producer.poll()
                on_sent(sent)
            if producer.failures:
                break
    except DataError as error:
        raise DataError(
            f"{error.detail} ({sent} messages before it were sent)", remedy=error.remedy
        ) from None
    on_sent(sent)
    return sent


def _shipped(role: Role) -> Iterator[Outgoing]:
    if role == "items":
        for item in movietweetings.items():
            yield Outgoing(item.timestamp, item.item.encode(), encode(item))
        return
    for event in movietweetings.events():
        yield Outgoing(event.timestamp, event.user.encode(), encode(event))


def _from_files(
    source: str,
    role: Role,
    settings: config.Messages,
    on_bad: OnBad | None,
    on_progress: OnProgress | None,
) -> Iterator[Outgoing]:
    limits = Limits.of(settings, now_ms())
    for path in expand([Path(source)]):
        for line in read_lines(path, on_progress):
            try:
                yield _checked(line, role, limits)
            except Skipped:
                continue
            except Refused as refused:
                if on_bad is None:
                    raise bad_line(line, refused) from None
                on_bad(bad_line(line, refused))


def _checked(line: Line, role: Role, limits: Limits) -> Outgoing:
    if role == "items":
        item = read_item(line.value, limits)
        return Outgoing(item.timestamp, item.item.encode(), line.value)
    event = read_event(line.value, limits)
    return Outgoing(event.timestamp, event.user.encode(), line.value)
