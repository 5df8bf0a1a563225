"""Events of many users as they come in production: duplicates, garbage, impressions, erasures."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

from stream.config import Settings
from stream.kafka.producer import BulkProducer
from stream.message_encoding import encode
from stream.message_types import Event, Forget, Interaction, Ranking

REGULARS = 40
"""Users who come again and again; everybody else acts once or twice and never again."""

KINDS = ("click", "like", "skip")

GARBAGE = (b"{", b"\xff\xfe\x00", b"[]", b'{"event": "interaction"}')
"""What ends as a dead letter."""


class Traffic:
    """A thread that produces until it is stopped; event time is the time of the clock."""

    def __init__(self, settings: Settings, items: Sequence[str], *, rate: float, seed: int) -> None:
        """`rate` is events a second."""
        self._topic = settings.kafka.topic("events")
        self._producer = BulkProducer(settings)
        self._items = list(items)
        self._rate = rate
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._previous: Event | None = None
        self.sent = 0

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more; returns when all that was sent is in the log."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
            self._producer.flush()
            self._producer.close()

    def _run(self) -> None:
        began = time.monotonic()
        while not self._stop.wait(0.02):
            due = int((time.monotonic() - began) * self._rate)
            while self.sent < due:
                self._send(self.sent)
                self.sent += 1
            self._producer.poll()

    def _send(self, number: int) -> None:
        luck = self._random.random()
        if luck < 0.005:
            user = f"regular-{self._random.randrange(REGULARS)}"
            self._producer.produce(self._topic, user.encode(), self._random.choice(GARBAGE))
            return
        repeated = self._previous if luck < 0.02 else None
        event = repeated or self._event(number, luck)
        self._previous = event
        self._producer.produce(self._topic, event.user.encode(), encode(event))

    def _event(self, number: int, luck: float) -> Event:
        user, id_, now = self._user(number), f"e{number}", time.time_ns() // 1_000_000
        if luck < 0.025:
            return Forget(id=id_, timestamp=now, user=user)
        if luck < 0.06:
            shown = self._random.sample(self._items, min(5, len(self._items)))
            return Ranking(id=id_, timestamp=now, user=user, items=shown)
        item, kind = self._random.choice(self._items), self._random.choice(KINDS)
        return Interaction(id=id_, timestamp=now, user=user, item=item, type=kind)

    def _user(self, number: int) -> str:
        if self._random.random() < 0.5:
            return f"regular-{self._random.randrange(REGULARS)}"
        return f"once-{number - self._random.randrange(3)}"
