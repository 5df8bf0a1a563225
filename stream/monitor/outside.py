"""What the monitor learns beside the two topics that it follows: lag, members, items, runs.

Everything here asks a broker and waits for it; it runs in a thread of its own, one look at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from stream import log
from stream.config import Settings
from stream.errors import InnerloopError
from stream.item_content import attributes
from stream.kafka.admin import Admin
from stream.kafka.reader import LogReader, Tail
from stream.message_types import Item
from stream.messages import decode_items
from stream.monitor.lags import GroupLag, Lag
from stream.monitor.memory import hashed
from stream.monitor.runs import Run, decode

_log = log.get("monitor")

CATEGORY = "category="
"""How the attribute begins that says what kind of item it is."""


class Outside:
    """Looks at the cluster every `monitor.lag_s` seconds. Raises on a broker that is not there
    when it is made, and says so in the log afterwards."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        kafka = settings.kafka
        self._settings, self._clock = settings, clock
        self._admin, self._reader = Admin(kafka), LogReader(kafka)
        self._items = Tail(kafka, kafka.topic("items"))
        self._runs = Tail(kafka, kafka.topic("retraining"))
        events = self._admin.partitions(kafka.topic("events"))
        self._lag = GroupLag(
            self._reader, lambda: self._admin.committed(kafka.group_id, events), events, clock
        )
        self._last_member = clock()
        self.lags: dict[int, Lag] = {}
        self.workers = 0
        self.absent_s = 0.0
        self.items: set[int] = set()
        self.kinds: dict[int, str] = {}
        self.run: Run | None = None
        self.trouble = ""
        self.looked_at = 0.0  # when the last look was whole

    def look(self) -> None:
        """See how things are; what cannot be told stays as it was, with `trouble` saying why."""
        try:
            self._follow()
            self.lags = self._lag.observe()
            self._count_workers(self._admin.members(self._settings.kafka.group_id))
            self.trouble, self.looked_at = "", self._clock()
        except InnerloopError as error:
            if not self.trouble:
                _log.warning("lag unknown", why=str(error))
            self.trouble = str(error)

    def close(self) -> None:
        """Let go of the connections."""
        for each in (self._items, self._runs, self._reader, self._admin):
            each.close()

    def _count_workers(self, members: int) -> None:
        now = self._clock()
        self.workers = members
        if members:
            self._last_member = now
        self.absent_s = now - self._last_member

    def _follow(self) -> None:
        while records := self._items.poll(timeout=0.05):
            for message in decode_items(records, self._settings.messages).accepted:
                self._keep(message.item, message if isinstance(message, Item) else None)
        for record in self._runs.poll(timeout=0.05):
            self.run = decode(record) or self.run

    def _keep(self, name: str, item: Item | None) -> None:
        """An item as it is now; None = it is gone. Its first category says of what kind it is."""
        key = hashed(name)
        self.kinds.pop(key, None)
        if item is None:
            self.items.discard(key)
            return
        self.items.add(key)
        kind = next((a for a in attributes(item.fields) if a.startswith(CATEGORY)), None)
        if kind is not None:
            self.kinds[key] = kind
