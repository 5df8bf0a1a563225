"""Runs of scheduled retraining: what happened, and who may begin one.

The newest run is the one record of the topic `retraining`. It is the claim on running, too: a
monitor that wants to begin takes over the transactional id of all monitors, which ends or fences
what another one has open (KIP-98), reads the newest committed record, and writes its own in a
transaction. Of two that try at once the second fences the first, whose commit then fails; so a run
that was written is one that both have seen.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any, Literal

import msgspec

from stream.config import Settings
from stream.errors import Aborted, Fenced
from stream.kafka.producer import TransactionalProducer
from stream.kafka.reader import LogReader
from stream.ports import Message, Record, TopicPartition

SCHEMA_VERSION = 1

KEY = b"newest"
"""Of the one record that the topic keeps."""

Status = Literal["running", "succeeded", "refused", "failed", "timed_out"]
"""`refused`: the gate has kept the champion, which is what it is for."""

SAME_MINUTE_MS = 55_000

FAILED: tuple[Status, ...] = ("failed", "timed_out")


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A record of `retraining`; times in ms since the epoch."""

    schema_version: int = SCHEMA_VERSION
    run: str
    status: Status
    monitor: str  # id of the one that began it
    command: str
    started_at: int
    ends_by: int  # when it is ended at the latest
    finished_at: int | None = None
    exit_code: int | None = None
    verdict: str = ""  # the last line that it printed
    log: str  # file of its output, on the monitor's disk

    @property
    def seconds(self) -> float | None:
        """How long it took; None while it runs."""
        return None if self.finished_at is None else (self.finished_at - self.started_at) / 1000


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Run)


def encode(run: Run) -> bytes:
    """The record's value."""
    return _encoder.encode(run)


def decode(record: Record) -> Run | None:
    """The run of a record; None for what is no run, which is nobody's claim."""
    if record.value is None or record.key != KEY:
        return None
    try:
        return _decoder.decode(record.value)
    except msgspec.MsgspecError:
        return None


def in_the_way(newest: Run | None, monitor: str, *, going: bool, now_ms: int) -> bool:
    """Whether a run is under way. `going` = processes of this monitor's last run are alive.

    Of its own run a monitor knows; another's counts until the moment when it is ended at the
    latest, since a monitor that was killed says nothing any more. One that has begun within a
    minute was begun for the same minute of the crontab, even if it has ended: clocks differ.
    """
    if going or newest is None or newest.monitor == monitor:
        return going
    if abs(now_ms - newest.started_at) < SAME_MINUTE_MS:
        return True
    return newest.status == "running" and now_ms < newest.ends_by


class Claims:
    """The topic `retraining` on a real broker; every call has connections of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        topic = settings.kafka.topic("retraining")
        self._place = TopicPartition(topic, 0)
        self._id = f"{settings.kafka.prefix}{settings.monitor.group}-retraining"

    def newest(self) -> Run | None:
        """The newest committed run. Raises `BrokerUnavailable`."""
        found = None
        with closing(LogReader(self._settings.kafka)) as reader:
            starts, ends = (
                ask([self._place]) for ask in (reader.start_offsets, reader.end_offsets)
            )
            for batch in reader.read(starts, ends):
                for record in batch:
                    found = decode(record) or found
        return found

    def claim(self, run: Run, *, going: bool) -> bool:
        """Write a run that begins, unless another is under way. Raises `BrokerUnavailable`."""
        producer = TransactionalProducer(self._settings, self._id)
        try:
            producer.init()
            if in_the_way(self.newest(), run.monitor, going=going, now_ms=run.started_at):
                return False
            self._write(producer, run)
        except (Fenced, Aborted):
            return False  # another monitor has begun to ask since
        finally:
            producer.close()
        return True

    def tell(self, run: Run) -> None:
        """Write how a run has ended, unless another has begun since. Twice is as good as once."""
        producer = TransactionalProducer(self._settings, self._id)
        try:
            producer.init()
            newest = self.newest()
            if newest is None or newest.run == run.run:
                self._write(producer, run)
        finally:
            producer.close()

    def _write(self, producer: Any, run: Run) -> None:
        producer.begin()
        producer.produce([Message(*self._place, KEY, encode(run))])
        producer.commit()
