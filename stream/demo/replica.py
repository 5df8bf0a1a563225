"""Why an item moved, while traffic goes on: the record and the signals as they are this moment.

Nothing here is told by the worker: the record is the one in `state`, counters and neighbours are
those in `signals`. `stream.explaining` does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapters.types import UserView
from export.bundle import Bundle
from stream import assembly, inspection
from stream.config import Settings
from stream.explaining import Explainer, Floats
from stream.kafka.admin import Admin
from stream.kafka.reader import LogReader, Tail
from stream.messages import Item
from stream.ports import TopicPartition
from stream.signal_log import SignalLog


class Replica:
    """The model with the catalogue and the signals, read-only."""

    def __init__(self, settings: Settings, bundle: Bundle, items: Sequence[Item]) -> None:
        self._settings = settings
        self.serving = assembly.serving(settings, bundle)
        self.serving.table.upsert(items)
        self._explainer = Explainer(settings, self.serving)
        self._signals = SignalLog(self.serving.signals)
        self._reader = LogReader(settings.kafka)
        self._tail: Tail | None = None
        self._starts: dict[TopicPartition, int] = {}

    def close(self) -> None:
        """Let go of the connections."""
        self._reader.close()
        if self._tail is not None:
            self._tail.close()

    def follow(self, now: float) -> None:
        """Read what is new in `signals` and move event time on to `now` (unix seconds)."""
        if self._tail is None:
            kafka = self._settings.kafka
            self._tail = Tail(kafka, kafka.topic("signals"))
            with Admin(kafka) as admin:
                self._starts = admin.end_offsets(admin.partitions(kafka.topic("state")))
        while (records := self._tail.poll(timeout=0.05)) or not self._tail.caught_up():
            self._signals.take(records)
        self.serving.signals.advance(now, [])

    def view(self, user: str | None) -> UserView:
        """What ranking knows of a user now; None = of one nobody has seen."""
        return self._explainer.view(user or "", None if user is None else self._record(user))

    def contributions(self, view: UserView, items: Sequence[str]) -> Floats:
        """What each expert adds to the scores of these items for one user: [m, E]."""
        return self._explainer.contributions(view, items)

    def reasons(self, before: Floats, after: Floats) -> list[str]:
        """In words, which expert moved each of m items most, compared with the others: [m].

        `before` and `after` are `contributions` [m, E] of the same items.
        """
        change = after - before
        return self._explainer.reasons(change - change.mean(0))

    def _record(self, user: str) -> bytes | None:
        """The newest record of a user in `state` that came after the first `follow`."""
        key = user.encode()
        found = inspection.committed(self._reader, self._starts)
        return max((r for r in found if r.key == key), key=lambda r: r.offset).value
