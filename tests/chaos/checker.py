"""What must hold on the topics, whatever happened to the workers. Reads the topics, nothing else.

From `events` it works out, for each user and offset, how many events count up to there: those
since the last `forget` or expiry, each id once. Then it walks over what readers of
`recommendations` saw, list by list, and over the newest records of `state`.

lost         an event that no list followed, or that the count of a later list lacks
repeated     a list that came twice, or a count that is higher than the events
regressions  a version that did not rise, or a null that nothing asked for
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from stream.config import Kafka
from stream.kafka.admin import Admin
from stream.kafka.reader import LogReader
from stream.ports import Record
from stream.user_layout import HEADER

COLD = b"_cold"
DAY_MS = 86_400_000

WAIT_S = 1.0
"""An event that is answered later than this has waited."""


@dataclass(frozen=True, kw_only=True)
class Readings:
    """All records of the topics, in the order of partitions and offsets."""

    events: Sequence[Record]
    lists: Sequence[Record]
    state: Sequence[Record]
    dead: Sequence[Record]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found; each finding is a sentence."""

    events: int
    users: int
    lists: int
    lost: tuple[str, ...]
    repeated: tuple[str, ...]
    regressions: tuple[str, ...]
    longest_wait: float  # seconds from an event to the list that has it in
    waiting_share: float  # of the time, in which a partition had an event that waited

    @property
    def clean(self) -> bool:
        """Whether the promise was kept."""
        return not (self.lost or self.repeated or self.regressions)

    def summary(self) -> str:
        """The end of the last line."""
        return (
            f"lost {len(self.lost)}, repeated {len(self.repeated)}, "
            f"regressions {len(self.regressions)}"
        )


def read(kafka: Kafka) -> Readings:
    """Everything that readers of committed records see now."""
    reader = LogReader(kafka)
    try:
        return Readings(
            events=_all(reader, kafka, "events"),
            lists=_all(reader, kafka, "recommendations"),
            state=_all(reader, kafka, "state"),
            dead=_all(reader, kafka, "dead_letters"),
        )
    finally:
        reader.close()


def check(readings: Readings, ttl_days: float | None = None) -> Verdict:
    """Hold what was read against the promise. The workers must have caught up with `events`."""
    log = _Log(readings.events)
    findings = _Findings()
    lists = _by_user(readings.lists)
    for user in log.histories.keys() | lists.keys():
        history, seen = log.histories.get(user, _History()), lists.get(user, [])
        _UserCheck(user, history, log, ttl_days, findings).walk(seen)
    _check_state(lists, readings.state, findings)
    _check_dead_letters(log, readings.dead, findings)
    waits = _waits(log, lists)
    return Verdict(
        events=sum(len(h.accepted) for h in log.histories.values()),
        users=len(log.histories),
        lists=sum(r.value is not None for found in lists.values() for r in found),
        lost=tuple(findings.lost),
        repeated=tuple(findings.repeated),
        regressions=tuple(findings.regressions),
        longest_wait=max((end - start for _, start, end in waits), default=0.0),
        waiting_share=_share(waits, log),
    )


# -- what was sent ------------------------------------------------------------------------------


@dataclass
class _History:
    """The events of a user by offset."""

    accepted: list[int] = field(default_factory=list)  # offsets of interactions that count
    times: list[int] = field(default_factory=list)  # their event times, ms
    stamps: list[int] = field(default_factory=list)  # their records' timestamps, ms
    forgets: list[int] = field(default_factory=list)  # offsets
    partition: int = -1
    ids: set[str] = field(default_factory=set)

    def take(self, record: Record, event: dict[str, Any]) -> None:
        self.partition = record.partition
        if event["event"] == "forget":
            self.forgets.append(record.offset)
            self.ids.clear()
        elif event["event"] == "interaction" and event["id"] not in self.ids:
            self.ids.add(event["id"])
            self.accepted.append(record.offset)
            self.times.append(event["timestamp"])
            self.stamps.append(record.timestamp)

    def count(self, after: int, until: int) -> int:
        """Events that count with offsets above `after` up to `until`."""
        low, high = np.searchsorted(self.accepted, [after, until], "right")
        return int(high - low)


class _Log:
    """The topic `events` as users' histories, and what cannot be read."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.histories: dict[bytes, _History] = defaultdict(_History)
        self.garbage: set[tuple[int, int]] = set()
        self._moments: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for record in records:
            self._take(record)
        self._newest = {p: self._running(moments) for p, moments in self._moments.items()}

    def _take(self, record: Record) -> None:
        event = _parsed(record.value or b"")
        if event is None:
            self.garbage.add((record.partition, record.offset))
            return
        self.histories[record.key or b""].take(record, event)
        self._moments[record.partition].append((record.timestamp, int(event["timestamp"])))

    @staticmethod
    def _running(moments: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        stamps, times = np.array(moments).T
        return np.maximum.accumulate(stamps), np.maximum.accumulate(times)

    def newest_time(self, partition: int, stamp: int) -> int:
        """The newest event time that a worker can have known at this moment, ms."""
        stamps, times = self._newest[partition]
        place = int(np.searchsorted(stamps, stamp, "right"))
        return int(times[place - 1]) if place else 0


def _parsed(value: bytes) -> dict[str, Any] | None:
    """The event, None for what is none."""
    try:
        event = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    return event if isinstance(event, dict) and "id" in event else None


# -- what was published -------------------------------------------------------------------------


@dataclass
class _Findings:
    lost: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    regressions: list[str] = field(default_factory=list)


@dataclass
class _UserCheck:
    """Walks over what a reader saw of one user."""

    user: bytes
    history: _History
    log: _Log
    ttl_days: float | None
    findings: _Findings
    handled: int = -1  # offset of the newest cause
    since: int = -1  # events up to this offset no longer count
    version: int = -1

    def walk(self, seen: Sequence[Record]) -> None:
        for record in seen:
            self._null(record) if record.value is None else self._list(record)
        self._end(seen)

    def _list(self, record: Record) -> None:
        found = orjson.loads(record.value or b"")
        if found["caused_by"] is None:
            self._refreshed(found, self._where(record))
            return
        cause, where = found["caused_by"]["offset"], self._where(record)
        if cause == self.handled:
            self.findings.repeated.append(f"{where}: a second list caused by offset {cause}")
        elif cause < self.handled:
            self.findings.regressions.append(f"{where}: caused by {cause} after {self.handled}")
        if found["state_version"] <= self.version:
            went = f"version {found['state_version']} after {self.version}"
            self.findings.regressions.append(f"{where}: {went}")
        self.handled, self.version = max(cause, self.handled), found["state_version"]
        forgets = [f for f in self.history.forgets if f <= cause]
        self.since = max([self.since, *forgets])
        self._count(where, found["shots"], self.history.count(self.since, cause))

    def _refreshed(self, found: dict[str, Any], where: str) -> None:
        """A list without an event, after a change of the model: the next version, nothing new."""
        if self.version < 0:
            self.findings.regressions.append(f"{where}: a list of a user nobody has seen")
        if found["state_version"] != self.version + 1:
            went = f"version {found['state_version']} after {self.version}, without an event"
            self.findings.regressions.append(f"{where}: {went}")
        self.version = found["state_version"]
        self._count(where, found["shots"], self.history.count(self.since, self.handled))

    def _count(self, where: str, shots: int, wanted: int) -> None:
        if shots < wanted:
            self.findings.lost.append(f"{where}: {shots} shots of {wanted}")
        elif shots > wanted:
            self.findings.repeated.append(f"{where}: {shots} shots, but {wanted} events")

    def _null(self, record: Record) -> None:
        if not (self._asked_for() or self._expired(record)):
            self.findings.regressions.append(f"{self._where(record)}: a null nobody asked for")
        self.since = max(self.since, self.handled)

    def _asked_for(self) -> bool:
        return any(offset > self.since for offset in self.history.forgets)

    def _expired(self, record: Record) -> bool:
        if self.ttl_days is None:
            return False
        known = self.history.count(-1, self.handled)
        last = max(self.history.times[:known], default=0)
        newest = self.log.newest_time(record.partition, record.timestamp)
        return newest - last > self.ttl_days * DAY_MS

    def _end(self, seen: Sequence[Record]) -> None:
        """Everything is in by now: the last event has its list, the last forget its null."""
        last = max(self.history.accepted, default=-1)
        forgotten = max(self.history.forgets, default=-1)
        name = self.user.decode(errors="replace")
        if last > forgotten and self.handled < last:
            missing = self.history.count(max(self.handled, forgotten), last)
            self.findings.lost.append(f"{name}: no list after the last {missing} events")
        if forgotten > last and seen and seen[-1].value is not None:
            self.findings.lost.append(f"{name}: forgotten at {forgotten}, the list is there")

    def _where(self, record: Record) -> str:
        user = self.user.decode(errors="replace")
        return f"{user} at recommendations[{record.partition}]:{record.offset}"


def _check_state(
    lists: dict[bytes, list[Record]], state: Iterable[Record], findings: _Findings
) -> None:
    """The newest record of a user says what the newest list says."""
    newest = {record.key: record.value for record in state}
    for user, found in lists.items():
        shown, value = found[-1].value, newest.get(user)
        if shown is None:
            continue
        wanted, name = orjson.loads(shown)["shots"], user.decode(errors="replace")
        shots = 0 if value is None else int(np.frombuffer(value, HEADER, count=1)["shots"][0])
        if shots < wanted:
            findings.lost.append(f"{name}: {shots} shots in state, {wanted} in the list")
        elif shots > wanted:
            findings.repeated.append(f"{name}: {shots} shots in state, {wanted} in the list")


def _check_dead_letters(log: _Log, dead: Iterable[Record], findings: _Findings) -> None:
    """What cannot be read has one dead letter, and nothing else has one."""
    places = Counter(_origin(record) for record in dead)
    for place in log.garbage | places.keys():
        count, wanted = places[place], int(place in log.garbage)
        if count < wanted:
            findings.lost.append(f"no dead letter of events[{place[0]}]:{place[1]}")
        elif count > wanted:
            findings.repeated.append(f"{count} dead letters of events[{place[0]}]:{place[1]}")


def _origin(record: Record) -> tuple[int, int]:
    headers = dict(record.headers)
    return int(headers["partition"] or b"-1"), int(headers["offset"] or b"-1")


# -- how long it took ---------------------------------------------------------------------------


def _waits(log: _Log, lists: dict[bytes, list[Record]]) -> list[tuple[int, float, float]]:
    """Partition, and from when to when, of every event that waited longer than `WAIT_S`."""
    found = []
    for user, history in log.histories.items():
        answers = list(_answers(lists.get(user, [])))
        causes = [cause for cause, _ in answers]
        for offset, stamp in zip(history.accepted, history.stamps, strict=True):
            place = int(np.searchsorted(causes, offset))
            if place < len(answers) and answers[place][1] - stamp > 1000 * WAIT_S:
                found.append((history.partition, stamp / 1000, answers[place][1] / 1000))
    return found


def _answers(records: Iterable[Record]) -> Iterator[tuple[int, int]]:
    """Cause and timestamp of lists, causes rising."""
    newest = -1
    for record in records:
        if record.value is not None:
            caused_by = orjson.loads(record.value)["caused_by"]
            if caused_by is not None and (cause := caused_by["offset"]) > newest:
                newest = cause
                yield cause, record.timestamp


def _share(waits: Iterable[tuple[int, float, float]], log: _Log) -> float:
    """The share of all partitions' time in which an event of theirs waited."""
    busy: float = 0.0
    reached: dict[int, float] = {}
    for partition, start, end in sorted(waits):
        begin = max(start, reached.get(partition, start))
        busy += max(0.0, end - begin)
        reached[partition] = max(end, begin)
    stamps = [stamp / 1000 for history in log.histories.values() for stamp in history.stamps]
    span = max([*stamps, *reached.values()]) - min(stamps) if stamps else 0.0
    partitions = len({history.partition for history in log.histories.values()})
    return busy / (partitions * span) if span else 0.0


def _by_user(records: Iterable[Record]) -> dict[bytes, list[Record]]:
    found: dict[bytes, list[Record]] = defaultdict(list)
    for record in records:
        if record.key and record.key != COLD:
            found[record.key].append(record)
    return found


def _all(reader: LogReader, kafka: Kafka, role: str) -> list[Record]:
    with Admin(kafka) as admin:
        starts = admin.start_offsets(admin.partitions(kafka.topic(role)))
    ends = reader.end_offsets(list(starts))
    found = [record for batch in reader.read(starts, ends) for record in batch]
    return sorted(found, key=lambda record: (record.partition, record.offset))
