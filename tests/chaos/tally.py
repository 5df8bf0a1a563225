"""What was done to the workers and brokers, counted from several threads."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Goals:
    """The least that a run has to do before it may end."""

    kills: int = 150
    wipes: int = 30
    rebalances: int = 20
    broker_restarts: int = 6
    stops: int = 10  # SIGSTOP beyond the session timeout, then SIGCONT
    full_disks: int = 3
    each_point: int = 10


@dataclass
class Tally:
    """Counters by name, and kills by point."""

    counts: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, number: int = 1) -> None:
        """Count something."""
        with self._lock:
            self.counts[name] += number

    def hit(self, point: str) -> None:
        """A process died at this point; empty = at any moment."""
        with self._lock:
            self.counts["kills"] += 1
            self.points[point] += 1

    def missing(self, goals: Goals, points: tuple[str, ...]) -> Mapping[str, int]:
        """What has still to be done, by name."""
        with self._lock:
            wanted = {
                name: getattr(goals, name) - self.counts[name]
                for name in ("kills", "wipes", "rebalances", "broker_restarts", "stops")
            }
            wanted["full_disks"] = goals.full_disks - self.counts["full_disks"]
            wanted |= {point: goals.each_point - self.points[point] for point in points}
        return {name: count for name, count in wanted.items() if count > 0}

    def rarest(self, points: tuple[str, ...]) -> str:
        """The point that was hit least."""
        with self._lock:
            return min(points, key=lambda point: self.points[point])

    def line(self) -> str:
        """The beginning of the last line."""
        c = self.counts
        return (
            f"kills {c['kills']}, wipes {c['wipes']}, rebalances {c['rebalances']}, "
            f"broker restarts {c['broker_restarts']}"
        )
