"""How many records the next batch takes: a batch that keeps failing is halved, down to one event.

A transaction that fails because of what is in it (a record that is too large) fails again. So it
is narrowed down: after two failures of the same records the next batch has half of them, and an
event that fails alone goes to dead letters.
"""

from __future__ import annotations

from collections.abc import Sequence

from stream.ports import Record


class BatchLimit:
    """The size of the next batch, and whether its one event is condemned."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._failures = 0
        self._suspects: list[tuple[int, int]] = []
        self.records = most

    def aborted(self, records: Sequence[Record], *, blames_batch: bool) -> None:
        """A transaction of these records was aborted."""
        if not blames_batch:
            return
        suspects = _places(records)
        self._failures = self._failures + 1 if suspects == self._suspects else 1
        self._suspects = suspects
        if self._failures >= 2 and len(records) > 1:
            self.records = max(1, len(records) // 2)

    def committed(self) -> None:
        """A transaction went through: the next one may be twice as large."""
        self._failures = 0
        self.records = min(self._most, 2 * self.records)

    def condemned(self, records: Sequence[Record]) -> bool:
        """Whether this is the one event that made its transaction fail twice."""
        return self._failures >= 2 and len(records) == 1 and _places(records) == self._suspects


def _places(records: Sequence[Record]) -> list[tuple[int, int]]:
    return [(r.partition, r.offset) for r in records]
