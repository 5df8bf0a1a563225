"""A window of the topics `events` and `items`, as training and evaluation read it.

The window is one of event time: it ends with the newest interaction and reaches back by its
length, so that a log of last year that is replayed today has the window it would have had then.
The records' own time only finds where reading begins: an event is accepted when it lies at most
`messages.future_ms` after its record, so no record that is older by more than this can hold an
event of the window.

A window that was measured is a list of offsets, up to the ends of the topics at that moment; it
can be kept and read again. Records are read committed, from all partitions, without a group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from stream.columns import Columns, Gathering, LeftOut, Place
from stream.config import Settings
from stream.errors import DataError, OffsetOutOfRange
from stream.files import now_ms
from stream.kafka.admin import Admin
from stream.kafka.reader import LogReader
from stream.messages import DecodedBatch, Deletion, Interaction, Item, decode_events, decode_items
from stream.ports import LogReader as LogReaderPort
from stream.ports import Positions, Record, TimeReader, TopicPartition

OnProgress = Callable[[float], None]
"""Told which share of the events has been read, 0 to 1."""

_LATEST = 200
"""Last records of a partition that tell how new the log is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Records of a topic, by partition: the first, and the one behind the last."""

    topic: str
    starts: list[int]
    ends: list[int]

    @property
    def size(self) -> int:
        """Records at most: markers and aborted records count as well."""
        return sum(self.ends) - sum(self.starts)

    def positions(self, which: Sequence[int]) -> dict[TopicPartition, int]:
        """Offsets as the log knows them."""
        return {TopicPartition(self.topic, p): offset for p, offset in enumerate(which)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What is read, now and whenever it is read again."""

    events: Extent
    items: Extent
    length_s: float | None  # of event time; None = all that is in the log
    until: float | None  # unix seconds: later events are left out
    measured_at: int  # ms: the clock of records that have no time of their own

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Window:
        """The inverse of `to_dict`. Raises `ValueError`."""
        return msgspec.convert(values, cls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What was read and not taken, counted by the words of the metrics of workers."""

    interactions: LeftOut = field(default_factory=LeftOut)
    dead: Mapping[str, int] = field(default_factory=dict)  # by reason
    skipped: Mapping[str, int] = field(default_factory=dict)  # by reason
    misrouted: int = 0  # taken all the same
    bad_items: Mapping[str, int] = field(default_factory=dict)  # by reason

    def counts(self) -> dict[str, int]:
        """All of it under one name each."""
        return {
            **asdict(self.interactions),
            "dead_letters": sum(self.dead.values()),
            "skipped": sum(self.skipped.values()),
            "bad_items": sum(self.bad_items.values()),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A window that was read: items by id, and what was left out."""

    columns: Columns
    items: list[Item]
    left: Left


def measure(
    settings: Settings, length_s: float | None = None, until: float | None = None
) -> Window:
    """The window of the topics as they are now. Raises `TopicError` and `BrokerUnavailable`."""
    kafka = settings.kafka
    with Admin(kafka) as admin:
        events, items = (admin.partitions(kafka.topic(role)) for role in ("events", "items"))
    with closing(LogReader(kafka)) as reader:
        return measured(reader, events, items, settings, length_s, until)


def measured(
    reader: TimeReader,
    events: Sequence[TopicPartition],
    items: Sequence[TopicPartition],
    settings: Settings,
    length_s: float | None = None,
    until: float | None = None,
) -> Window:
    """`measure` over all partitions of two topics."""
    starts, ends = reader.start_offsets(events), reader.end_offsets(events)
    if length_s is not None:
        newest = _newest(reader, starts, ends, settings)
        newest = newest if until is None else min(newest, until * 1e3)
        first = newest - length_s * 1e3 - settings.messages.future_ms
        starts = reader.offsets_at(events, max(int(first), 0))
    return Window(
        events=_extent(starts, ends),
        items=_extent(reader.start_offsets(items), reader.end_offsets(items)),
        length_s=length_s,
        until=until,
        measured_at=now_ms(),
    )


def take(settings: Settings, window: Window, on_progress: OnProgress | None = None) -> Taken:
    """Everything of a window. Raises `DataError` where the log no longer holds it."""
    with closing(LogReader(settings.kafka)) as reader:
        return taken(reader, window, settings, on_progress)


def taken(
    reader: LogReaderPort,
    window: Window,
    settings: Settings,
    on_progress: OnProgress | None = None,
) -> Taken:
    """`take` by any reader; `on_progress` is told which share of the events has been read."""
    found = _Found()
    try:
        columns, left = _read_events(reader, window, settings, found, on_progress)
        items = _read_items(reader, window, settings, found)
    except OffsetOutOfRange as error:
        raise DataError(
            f"{error.topic}[{error.partition}] no longer holds the records of the window",
            remedy="Train anew, with a retention that is longer than a training takes.",
        ) from None
    return Taken(columns=columns, items=items, left=found.left(left))


# -- events -------------------------------------------------------------------------------------


class _Found:
    """Counts of what is not taken, while reading."""

    def __init__(self) -> None:
        self.dead: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.bad_items: Counter[str] = Counter()
        self.misrouted = 0

    def events(self, batch: DecodedBatch) -> None:
        """Count what a batch of `events` holds beside what was accepted."""
        self.dead.update(letter.reason.value for letter in batch.dead)
        self.skipped.update({reason.value: count for reason, count in batch.skipped.items()})
        self.misrouted += batch.misrouted

    def left(self, interactions: LeftOut) -> Left:
        """All counts."""
        return Left(
            interactions=interactions,
            dead=dict(self.dead),
            skipped=dict(self.skipped),
            misrouted=self.misrouted,
            bad_items=dict(self.bad_items),
        )


def _read_events(
    reader: LogReaderPort,
    window: Window,
    settings: Settings,
    found: _Found,
    on_progress: OnProgress | None,
) -> tuple[Columns, LeftOut]:
    gathering, total, seen = Gathering(settings.messages), max(window.events.size, 1), 0
    for records in _batches(reader, window.events):
        batch = _decoded(records, window, settings)
        found.events(batch)
        places = [Place(records[i].partition, records[i].offset) for i in batch.places]
        gathering.add(batch.accepted, places)
        seen += len(records)
        if on_progress is not None:
            on_progress(min(seen / total, 1.0))
    return gathering.columns(window.length_s, window.until)


def _decoded(records: list[Record], window: Window, settings: Settings) -> DecodedBatch:
    return decode_events(
        records,
        settings.messages,
        len(window.events.ends),
        settings.kafka.partitioner,
        clock_ms=window.measured_at,
    )


def _newest(reader: TimeReader, starts: Positions, ends: Positions, settings: Settings) -> float:
    """Ms of event time of the newest interaction among the latest records; 0 = there is none.

    It may be a little older than the newest one of all, which only makes reading begin earlier.
    """
    latest = {tp: max(starts[tp], end - _LATEST) for tp, end in ends.items()}
    newest = 0
    for records in reader.read(latest, ends):
        events = decode_events(records, settings.messages, len(ends), clock_ms=now_ms()).accepted
        times = (event.timestamp for event in events if isinstance(event, Interaction))
        newest = max(newest, *times, 0)
    return float(newest)


# -- items --------------------------------------------------------------------------------------


def _read_items(
    reader: LogReaderPort, window: Window, settings: Settings, found: _Found
) -> list[Item]:
    """The items as they were when the window was measured, in the order of their ids.

    That order is the same however the partitions took turns, and so are the rows of the model.
    """
    items: dict[str, Item] = {}
    for records in _batches(reader, window.items):
        batch = decode_items(records, settings.messages, clock_ms=window.measured_at)
        found.bad_items.update(letter.reason.value for letter in batch.dead)
        for message in batch.accepted:
            if isinstance(message, Deletion):
                items.pop(message.item, None)
            else:
                items[message.item] = message
    return [items[name] for name in sorted(items)]


# -- both ---------------------------------------------------------------------------------------


def _batches(reader: LogReaderPort, extent: Extent) -> Iterator[list[Record]]:
    batches = reader.read(extent.positions(extent.starts), extent.positions(extent.ends))
    return (records for records in batches if records)


def _extent(starts: Positions, ends: Positions) -> Extent:
    ordered = sorted(ends)
    return Extent(
        topic=ordered[0].topic,
        starts=[min(starts[tp], ends[tp]) for tp in ordered],
        ends=[ends[tp] for tp in ordered],
    )
