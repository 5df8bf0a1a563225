"""What workers hold, read from the topics: the catalogue and the signals of all partitions."""

from __future__ import annotations

from export.bundle import Bundle
from stream import assembly, inspection
from stream.config import Settings
from stream.messages import Deletion, Item, content_hash, decode_items
from stream.signal_log import SignalLog

ITEM_GRACE_MS = 60_000
"""How long after its record an item may be unknown to a worker that is busy."""

ALWAYS = -1
"""An item that the model knew from the start."""


class Replica:
    """A model with the catalogue as it is in `items`; signals are read when they are wanted."""

    def __init__(self, settings: Settings, bundle: Bundle) -> None:
        """Reads `items` to its end and encodes what the bundle does not know."""
        self._settings = settings
        self.serving = assembly.serving(settings, bundle)
        self.known_since = dict.fromkeys(bundle.items.ids, ALWAYS)
        """Ms of production time from which on each item was surely as it is now."""
        self._content = dict(zip(bundle.items.ids, bundle.items.content.tolist(), strict=True))
        self._read_items()

    def follow_signals(self, now: float = 0.0) -> None:
        """Read `signals`, and move event time on to its newest or to `now` (unix seconds)."""
        signals = SignalLog(self.serving.signals)
        signals.take(list(inspection.records(self._settings, "signals")))
        parts = self.serving.signals.parts.values()
        self.serving.signals.advance(
            max([now, *(float(s.times.max(initial=0.0)) for s in parts)]), []
        )

    def _read_items(self) -> None:
        read = list(inspection.records(self._settings, "items"))
        batch = decode_items(read, self._settings.messages)
        self.serving.table.upsert(batch.accepted)
        for message, place in zip(batch.accepted, batch.places, strict=True):
            self._note(message, read[place].timestamp)

    def _note(self, message: Item | Deletion, produced: int) -> None:
        if isinstance(message, Deletion):
            if self.known_since.get(message.item) != ALWAYS:  # the bundle's vector would stay
                self.known_since.pop(message.item, None)
            return
        if content_hash(message.fields) != self._content.get(message.item):
            self.known_since[message.item] = produced + ITEM_GRACE_MS
