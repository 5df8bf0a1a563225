"""Restore: a store catches up with its changelogs, a batch at a time (step 3 of the commit).

For each changelog the target is the end offset, open transactions included; committed records
from the store's offset + 1 on are applied, every batch together with its offset. A record is a
full value, so that applying it twice is applying it once. A store whose offset is no longer in the
log, or beyond its end, is cleared and restored from the beginning.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from stream import log
from stream.errors import OffsetOutOfRange
from stream.ports import LogReader, PartitionStore, Put, Record, TopicPartition
from stream.user_state import USER

_log = log.get("restore")

STATE = "state"
"""The changelog whose keys are bare user ids; those of the others are keys of the store."""

BATCH = 2_000
"""Records of a step at most: about 50 ms of work."""


class Restore:
    """The restore of one partition; `step` until it returns False."""

    def __init__(
        self,
        reader: LogReader,
        store: PartitionStore,
        changelogs: Mapping[str, TopicPartition],
    ) -> None:
        """`changelogs` maps roles (`state`, `signals`) to the partition that holds each."""
        self._reader = reader
        self._store = store
        self._changelogs = dict(changelogs)
        self._began = time.monotonic()
        self._done_after: float | None = None
        self._cleared = False
        self.records = 0
        self._targets = reader.end_offsets(list(self._changelogs.values()))
        self._at = self._positions()
        self._left = self._missing()
        self._batches = self._read()

    def step(self) -> bool:
        """Apply the next batch, if one came; whether there is more to do."""
        if self._done_after is not None:
            return False
        try:
            batch = next(self._batches, None)
        except OffsetOutOfRange as error:
            self._start_over(error)
            return True
        if batch is None:
            self._finish()
            return False
        self._apply(batch)
        return True

    def progress(self) -> float:
        """The share of the log's offsets that is behind, 0 to 1; for any thread, at any time."""
        if self._done_after is not None or not self._left:
            return 1.0
        return max(0.0, 1.0 - self._missing() / self._left)

    @property
    def seconds(self) -> float:
        """How long it took, or has been going on."""
        now = time.monotonic() - self._began
        return now if self._done_after is None else self._done_after

    def _positions(self) -> dict[TopicPartition, int]:
        return {tp: self._store.offset(role) + 1 for role, tp in self._changelogs.items()}

    def _missing(self) -> int:
        return sum(max(0, self._targets[tp] - at) for tp, at in self._at.items())

    def _read(self) -> Iterator[list[Record]]:
        return self._reader.read(dict(self._at), self._targets, limit=BATCH)

    def _apply(self, batch: Sequence[Record]) -> None:
        """Only the last value of a key is written: what came before it no longer counts."""
        latest: dict[bytes, bytes | None] = {}
        offsets: dict[str, int] = {}
        for role, tp in self._changelogs.items():
            records = [record for record in batch if record.topic == tp.topic]
            if records:
                prefix = USER if role == STATE else b""
                latest |= {prefix + r.key: r.value for r in records if r.key}
                offsets[role] = records[-1].offset
        if offsets:
            self._store.apply(map(Put, latest.keys(), latest.values()), offsets)
            self._at |= {self._changelogs[role]: at + 1 for role, at in offsets.items()}
            self.records += len(batch)

    def _start_over(self, error: OffsetOutOfRange) -> None:
        """The log does not have what comes after the store: trust the log alone."""
        if self._cleared:
            raise error
        _log.warning("wiped", why=f"its offset is not in {error.topic}[{error.partition}]")
        self._cleared = True
        self._store.clear()
        self.records = 0
        self._at = self._reader.start_offsets(list(self._changelogs.values()))
        self._left = self._missing()
        self._batches = self._read()

    def _finish(self) -> None:
        """Stand at the targets: what lies below them and did not come was never committed."""
        ends = {role: self._targets[tp] - 1 for role, tp in self._changelogs.items()}
        behind = {role: at for role, at in ends.items() if at > self._store.offset(role)}
        self._store.apply((), behind)
        self._store.restored()
        self._done_after = time.monotonic() - self._began
