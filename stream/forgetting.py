"""Asking for the erasure of a user, and seeing it done.

The request is an event like any other, on the user's own partition, so that it comes after all
that the user did before. Only the partition's owner writes the nulls.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from stream import config
from stream.errors import ConfigError
from stream.inspection import committed
from stream.message_checks import Limits, Refused
from stream.message_encoding import encode
from stream.message_types import Forget
from stream.messages import read_event
from stream.ports import LogReader, TopicPartition
from stream.user_layout import HEADER

_PAUSE_S = 0.05


class Erased(StrEnum):
    """How the erasure showed on `state`."""

    NULL = "the record is gone"
    CAME_BACK = "the record is gone; the user has acted since and has a new one"


def request(user: str, settings: config.Messages, now: float) -> Forget:
    """A `forget` event of `now` (unix seconds). Raises `ConfigError` for an id no user can have."""
    event = Forget(id=f"forget-{uuid.uuid4().hex}", timestamp=round(now * 1000), user=user)
    try:
        read_event(encode(event), Limits.of(settings, event.timestamp))
    except Refused as refused:
        raise ConfigError(refused.detail, remedy="Name the user as events do.") from None
    return event


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Waits for the erasure of one user. `starts` are ends from before the request was sent."""

    reader: LogReader
    event: Forget
    events: TopicPartition
    state: TopicPartition
    starts: dict[TopicPartition, int]

    def wait(self, timeout: float, clock: Callable[[], float] = time.monotonic) -> Erased | None:
        """What was seen on `state`, committed; None after `timeout` seconds."""
        deadline, offset = clock() + timeout, self._offset()
        while (found := self._seen(offset)) is None and clock() < deadline:
            time.sleep(_PAUSE_S)
        return found

    def _offset(self) -> int:
        """Where the request stands on `events`."""
        key, mark = self.event.user.encode(), self.event.id.encode()
        found = committed(self.reader, {self.events: self.starts[self.events]})
        return max(
            (r.offset for r in found if r.key == key and mark in (r.value or b"")), default=0
        )

    def _seen(self, offset: int) -> Erased | None:
        """A null; or a record of events after the request, which was erased in between."""
        key = self.event.user.encode()
        for record in committed(self.reader, {self.state: self.starts[self.state]}):
            if record.key != key:
                continue
            if record.value is None:
                return Erased.NULL
            header = np.frombuffer(record.value, HEADER, 1)
            if int(header["state_version"][0]) > offset + 1:
                return Erased.CAME_BACK
        return None
