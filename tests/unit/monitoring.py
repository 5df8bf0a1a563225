"""Lists and events for tests of the monitor, with times in seconds of one day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from stream.config import Settings, load
from stream.message_encoding import Cause, encode, encode_recommendation
from stream.message_types import Event, Forget, Interaction, Ranking
from stream.monitor.report import Report, Row
from stream.monitor.watch import Watch
from stream.ports import Record

DAY = 1_772_366_400.0
"""Noon, in unix seconds."""


def settings(**changes: object) -> Settings:
    """Defaults, but for names such as `monitor__k`."""
    given = {name.replace("__", "."): value for name, value in changes.items()}
    return load(None, {"monitor.k": 3, **given})


@dataclass
class Scene:
    """A monitor of one partition, whose clock is moved by hand."""

    settings: Settings = field(default_factory=settings)
    kinds: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.watch = Watch(self.settings, DAY, self.kinds)
        self.now = DAY
        self._offset = -1

    def publish(
        self,
        at: float,
        user: str,
        items: Sequence[str],
        *,
        strategy: str = "adapted",
        shots: int = 5,
        model: str = "m1",
        lives: float = 3_600.0,
        cause: int = -1,
    ) -> None:
        """A list of a user, `at` seconds after noon; `cause` is the offset of its event."""
        made = int(1000 * (DAY + at))
        value = encode_recommendation(
            user,
            items,
            [1.0] * len(items),
            strategy,
            shots,
            7,
            model,
            made,
            made + int(1000 * lives),
            Cause("e", made, "events", 0, cause) if cause >= 0 else None,
        )
        self._listed(at, user, value)

    def withdraw(self, at: float, user: str) -> None:
        """The null of a user who was forgotten."""
        self._listed(at, user, None)

    def click(
        self, at: float, user: str, item: str, action: str = "click", value: float | None = None
    ) -> int:
        """A user acts on an item; returns the event's offset."""
        time = int(1000 * (DAY + at))
        event = Interaction(
            id=f"e{self._offset}", timestamp=time, user=user, item=item, type=action, value=value
        )
        return self._happen(at, event)

    def show(self, at: float, user: str, items: Sequence[str]) -> None:
        """A ranking that says what a user was shown."""
        time = int(1000 * (DAY + at))
        self._happen(at, Ranking(id=f"r{at}", timestamp=time, user=user, items=list(items)))

    def forget(self, at: float, user: str) -> None:
        """A request to erase a user."""
        self._happen(at, Forget(id=f"f{at}", timestamp=int(1000 * (DAY + at)), user=user))

    def settle(self, at: float) -> Report:
        """Let time go on until everything has been judged that can be."""
        self.now = max(self.now, DAY + at)
        self.watch.tick(self.now)
        return self.watch.report(self.now)

    def _happen(self, at: float, event: Event) -> int:
        self._offset += 1
        record = Record(
            "events",
            0,
            self._offset,
            int(1000 * (DAY + at)),
            event.user.encode(),
            encode(event),
        )
        self.watch.event(record, max(self.now, DAY + at))
        return self._offset

    def _listed(self, at: float, user: str, value: bytes | None) -> None:
        record = Record("recommendations", 0, 0, int(1000 * (DAY + at)), user.encode(), value)
        self.watch.published(record, max(self.now, DAY + at))


def row(report: Report, by: str, name: str) -> Row:
    """A row of the report's figures."""
    return next(row for row in report.figures[by] if row.name == name)
