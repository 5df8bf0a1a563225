"""Which users are followed when there is more traffic than the monitor may look at.

Half of the users, a quarter, and so on, by hash: a smaller sample is part of every larger one, so
that whoever stays is known already. Records of others are dropped before they are decoded.
"""

from __future__ import annotations

from stream.message_checks import COLD_KEY
from stream.monitor.memory import hashed_bytes

_COLD = COLD_KEY.encode()
_SMALLEST = 1 / 2**20
_SLACK = 0.8
"""The sample doubles when it would fill no more than this of what is allowed."""


class Sample:
    """The share of users who are followed, after the traffic of the latest seconds."""

    def __init__(self, most_per_s: float) -> None:
        self._most = most_per_s
        self._seen = 0
        self._since: float | None = None
        self.share = 1.0

    def takes(self, key: bytes | None, *, counts: bool) -> bool:
        """Whether the user with this key is followed; `counts` = it is a record of `events`."""
        self._seen += counts
        if self.share == 1.0 or key is None or key == _COLD:
            return True
        return hashed_bytes(key) < self.share * 2**64

    def adjust(self, now: float) -> None:
        """Choose the share anew by the records seen since the last call; `now` in seconds."""
        if self._since is not None and now > self._since:
            self.share = _chosen(self._seen / (now - self._since), self._most, self.share)
        self._seen, self._since = 0, now


def _chosen(rate: float, most: float, share: float) -> float:
    """The largest halving of one that stays below `most`, and grows only where there is room."""
    while share > _SMALLEST and rate * share > most:
        share /= 2
    while share < 1.0 and rate * share * 2 <= _SLACK * most:
        share *= 2
    return share
