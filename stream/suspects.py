"""Batches that failed for a reason of their own are halved, down to the one event at fault.

A transaction that fails because of what is in it (a record that is too large) fails again. Its
records stay in hand and are tried before anything new is read: read again, they would come in
other company each time, and nobody could tell whose fault it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from stream.ports import Record

TRIALS = 2
"""Failures after which a batch is halved, and one event is given up."""


@dataclass(frozen=True)
class Batch:
    """Records that share a transaction, and how often that was aborted because of them."""

    records: Sequence[Record] = ()
    failures: int = 0

    @property
    def condemned(self) -> bool:
        """Whether this is the one event that makes its transaction fail."""
        return self.failures >= TRIALS and len(self.records) == 1

    @property
    def bare(self) -> bool:
        """Whether not even its dead letter was taken, so that its bytes are left out."""
        return self.condemned and self.failures > TRIALS


class Suspects:
    """Batches that wait to be tried again, in the order of their records."""

    def __init__(self) -> None:
        self._waiting: deque[Batch] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def next(self) -> Batch:
        """The first of them, which waits no longer."""
        return self._waiting.popleft()

    def failed(self, batch: Batch) -> None:
        """Try it again, and then its halves, which are suspected already."""
        failures, half = batch.failures + 1, len(batch.records) // 2
        if failures < TRIALS or not half:
            self._waiting.appendleft(Batch(batch.records, failures))
            return
        for part in (batch.records[half:], batch.records[:half]):
            self._waiting.appendleft(Batch(part, TRIALS - 1))

    def clear(self) -> list[Record]:
        """Let all of them go; returns their records, which have to be read again."""
        records = [record for batch in self._waiting for record in batch.records]
        self._waiting.clear()
        return records
