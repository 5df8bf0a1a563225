"""The shipped log as live traffic: in its order, at a steady rate, now and then many at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from stream.config import Settings
from stream.kafka.producer import BulkProducer
from stream.message_encoding import encode
from stream.message_types import Interaction


class Replay:
    """A thread that sends a log on from where it is; its events keep their own times."""

    def __init__(self, settings: Settings, events: Sequence[Interaction], *, rate: float) -> None:
        """`rate` is events a second."""
        self._topic = settings.kafka.topic("events")
        self._producer = BulkProducer(settings)
        self._events = events
        self._rate = rate
        self._sending = threading.Lock()  # order counts: one sends at a time
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)
        self.sent = 0
        self.ran_out = False

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def newest(self) -> int:
        """Event time of the next event to be sent, ms."""
        return self._events[min(self.sent, len(self._events) - 1)].timestamp

    def start(self) -> None:
        """Go on at the steady rate."""
        self._thread.start()

    def hurry(self, until: int) -> None:
        """Send what is missing up to this number of events at once; all of it is in the log."""
        with self._sending:
            self._send(until)
            self._producer.flush()
            assert not self._producer.failures

    def stop(self) -> None:
        """Send no more; returns when all that was sent is in the log."""
        if self._thread.is_alive():
            self._stop.set()
            self._thread.join()
            self._producer.flush()
            self._producer.close()

    def _run(self) -> None:
        due, then = 0.0, time.monotonic()
        while not self._stop.wait(0.02):
            now = time.monotonic()
            due, then = due + (now - then) * self._rate, now
            with self._sending:
                self._send(self.sent + int(due))
                self._producer.poll()
            due -= int(due)

    def _send(self, until: int) -> None:
        if until > len(self._events):
            self.ran_out, until = True, len(self._events)
        for event in self._events[self.sent : until]:
            self._producer.produce(self._topic, event.user.encode(), encode(event))
        self.sent = max(self.sent, until)
