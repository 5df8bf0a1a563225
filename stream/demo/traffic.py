"""Live traffic: events go out at a bounded rate, lists come back as feed rankers read them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from stream.config import Settings
from stream.errors import DeliveryFailed
from stream.kafka.producer import BulkProducer
from stream.kafka.reader import Tail
from stream.message_checks import COLD_KEY
from stream.message_encoding import Recommendation
from stream.message_types import Interaction, Item
from stream.messages import encode

_RECENT = 20_000
"""Lists whose freshness is kept for quantiles."""

_STEP_S = 0.005


@dataclass(frozen=True, slots=True)
class Seen:
    """A list, and how long after its event it could be read."""

    list: Recommendation
    age: float | None  # seconds from producing the event; None = not caused by one of ours


@dataclass
class Exchange:
    """Produces events and items, reads committed lists, and times the way in between."""

    settings: Settings
    ages: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    latest: dict[str, Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kafka = self.settings.kafka
        self._events, self._items = kafka.topic("events"), kafka.topic("items")
        self._producer = BulkProducer(self.settings)
        self._lists = Tail(kafka, kafka.topic("recommendations"))
        self._decoder = msgspec.json.Decoder(Recommendation)
        self._sent: dict[str, float] = {}

    def close(self) -> None:
        """Let go of the connections."""
        self._producer.close()
        self._lists.close()

    def send(self, event: Interaction) -> None:
        """Queue an event under its user's key."""
        self._sent[event.id] = time.time()
        self._producer.produce(self._events, event.user.encode(), encode(event))
        self._check()

    def send_items(self, items: Sequence[Item]) -> None:
        """Write items and wait until the broker has them."""
        for item in items:
            self._producer.produce(self._items, item.item.encode(), encode(item))
        self._producer.flush()
        self._check()

    def read(self, timeout: float = 0.0) -> list[Seen]:
        """Lists that were committed since the last call; waits at most `timeout` seconds."""
        self._producer.poll()
        records = self._lists.poll(timeout=timeout)
        now = time.time()
        return [self._take(record.value, now) for record in records if record.value is not None]

    def wait_for(self, event: Interaction, timeout: float) -> Seen | None:
        """The list that this event causes, None where it does not come in time."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.read(_STEP_S)
            found = self.latest.get(event.user)
            cause = found.list.caused_by if found else None
            if cause is not None and cause.event_id == event.id:
                return found
        return None

    def cold(self, timeout: float) -> Recommendation | None:
        """The list for users nobody has seen, None where it does not come in time."""
        deadline = time.monotonic() + timeout
        while COLD_KEY not in self.latest and time.monotonic() < deadline:
            self.read(_STEP_S)
        found = self.latest.get(COLD_KEY)
        return found.list if found else None

    def freshness(self) -> tuple[float, float]:
        """Median and 99th percentile of the latest lists' ages, seconds; nan without lists."""
        if not self.ages:
            return float("nan"), float("nan")
        p50, p99 = np.quantile(np.array(self.ages), [0.5, 0.99]).tolist()
        return p50, p99

    def _take(self, value: bytes, now: float) -> Seen:
        found = self._decoder.decode(value)
        began = self._sent.get(found.caused_by.event_id) if found.caused_by else None
        seen = Seen(found, None if began is None else now - began)
        if seen.age is not None:
            self.ages.append(seen.age)
        self.latest[found.user] = seen
        return seen

    def _check(self) -> None:
        if self._producer.failures:
            _, why = self._producer.failures[0]
            raise DeliveryFailed(why)


def paced(
    exchange: Exchange, events: Sequence[Interaction], rate: float
) -> Iterator[tuple[int, list[Seen]]]:
    """Send events at `rate` a second; gives how many went out so far and what came back.

    A sender that fell behind does not hurry to catch up by more than a tenth of a second.
    """
    began, sent = time.monotonic(), 0
    while sent < len(events):
        due = min(int((time.monotonic() - began) * rate) + 1, len(events))
        if due - sent > rate / 10 + 1:
            began += (due - sent) / rate - 0.1
            due = sent + int(rate / 10) + 1
        for event in events[sent : min(due, len(events))]:
            exchange.send(event)
        sent = max(sent, min(due, len(events)))
        yield sent, exchange.read(_STEP_S)
