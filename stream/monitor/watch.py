"""One monitor's view: records go in, a report comes out. No I/O; time is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec

from stream import log
from stream.config import Settings
from stream.message_encoding import Recommendation
from stream.message_types import Forget, Interaction, Ranking
from stream.messages import decode_events
from stream.monitor import control, drift
from stream.monitor.alarms import Alarm, Readings, alarms
from stream.monitor.joins import Join
from stream.monitor.lags import Lag
from stream.monitor.report import Report, Row, rows
from stream.monitor.runs import Run
from stream.monitor.windows import Group, Sums, Window
from stream.ports import Record

_log = log.get("monitor")
_lists = msgspec.json.Decoder(Recommendation)


class Watch:
    """Follows what users do and what is published, and tells how lists fare."""

    def __init__(self, settings: Settings, started: float, kinds: Mapping[int, str]) -> None:
        """`kinds` are the categories of items, by hash; it may grow."""
        limits = settings.monitor
        self._settings, self._started = settings, started
        self._window = Window(60 * limits.window_minutes)
        self._halves = control.Halves(3_600 * limits.control_hours, limits.max_users)
        self._join = Join(settings, self._window, self._halves, kinds)
        self._clicks_before: Counter[int] = Counter()
        self._kinds_before: Counter[str] = Counter()
        self._on: dict[Alarm, str] = {}
        self.events = 0
        self.unreadable = 0

    @property
    def totals(self) -> Mapping[Group, Sums]:
        """Sums of each group since the monitor began."""
        return self._window.totals

    @property
    def unjudged(self) -> Mapping[str, int]:
        """Events that no figure counts, by reason."""
        return self._join.unjudged

    def rates(self) -> dict[str, list[float]]:
        """The hit rate of each user of adapted lists, by model, over `monitor.control_hours`."""
        return self._halves.rates()

    # -- what comes in --------------------------------------------------------------------------

    def event(self, record: Record, now: float) -> None:
        """A record of `events`; what the worker would not use is left alone."""
        batch = decode_events([record], self._settings.messages, 1, clock_ms=int(1000 * now))
        self.events += len(batch.accepted)
        self.unreadable += len(batch.dead)
        for event in batch.accepted:
            if isinstance(event, Interaction | Ranking):
                time = _seconds(record, now)
                self._join.happened(record.partition, record.offset, time, event, now)
            elif isinstance(event, Forget):
                self._join.forgotten(event.user)

    def published(self, record: Record, now: float) -> None:
        """A committed record of `recommendations`."""
        try:
            key = (record.key or b"").decode()
            found = None if record.value is None else _lists.decode(record.value)
        except (UnicodeDecodeError, msgspec.MsgspecError):
            self.unreadable += 1
            return
        self._join.published(record.partition, _seconds(record, now), key, found, now)

    def left(self, partition: int) -> None:
        """The partition is another monitor's now."""
        self._join.left(partition)

    # -- time goes on ---------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Judge what has waited long enough and move the windows on."""
        self._join.settle(now)
        self._halves.advance(now)
        keep = 0.5 ** (self._window.width / 3_600 / self._settings.monitor.reference_hours)
        for bucket in self._window.advance(now):
            self._clicks_before = drift.faded(self._clicks_before, bucket.clicks, keep)
            self._kinds_before = drift.faded(self._kinds_before, bucket.kinds, keep)

    # -- what comes out -------------------------------------------------------------------------

    def report(
        self,
        now: float,
        *,
        items: int = 0,
        lags: Mapping[int, Lag] | None = None,
        workers: int = 0,
        absent_s: float = 0.0,
        looked_at: float = 0.0,
        run: Run | None = None,
        share: float = 1.0,
    ) -> Report:
        """All figures as of `now`; `items` are in the catalogue, `share` of users followed."""
        drifts, compared = self._drifts(), self._compared()
        readings = Readings(
            drift=drifts,
            learning=compared,
            lags=lags or {},
            freshness=self._window.waited(0.99),
            absent_s=absent_s,
            run=run,
        )
        self._tell(alarms(readings, self._settings.monitor))
        return Report(
            at=now,
            started=self._started,
            share=share,
            figures=self._figures(),
            freshness={str(p): self._window.waited(p / 100) for p in (50, 99)},
            items_listed=self._window.items_listed(),
            items=items,
            drift=drifts,
            learning=compared,
            lags=dict(lags or {}),
            workers=workers,
            looked_at=looked_at,
            run=run,
            alarms={alarm: self._on.get(alarm) for alarm in Alarm},
        )

    def _figures(self) -> dict[str, list[Row]]:
        groups = self._window.groups()
        return {by: rows(groups, by, self._settings.monitor.k) for by in Group._fields}

    def _drifts(self) -> dict[str, float | None]:
        fewest = self._settings.monitor.drift_clicks
        return {
            "items": _drift(self._window.clicks(), self._clicks_before, fewest),
            "categories": _drift(self._window.kinds(), self._kinds_before, fewest),
        }

    def _compared(self) -> control.Comparison:
        adapted, other = (self._halves.users(strategy) for strategy in control.STRATEGIES)
        return control.compare(
            adapted,
            other,
            share=self._settings.ranking.control_share,
            fewest=self._settings.monitor.control_users,
            least_gain=self._settings.monitor.control_gain,
        )

    def _tell(self, on: dict[Alarm, str]) -> None:
        """A line when an alarm begins or ends."""
        for alarm in on.keys() - self._on.keys():
            _log.warning("alarm", alarm=alarm.value, why=on[alarm])
        for alarm in self._on.keys() - on.keys():
            _log.info("alarm is over", alarm=alarm.value)
        self._on = on


def _drift(now: Counter, before: Counter, fewest: int) -> float | None:  # type: ignore[type-arg]
    if min(now.total(), before.total()) < fewest:
        return None
    return drift.divergence(now, before)


def _seconds(record: Record, now: float) -> float:
    """Production time of a record; `now` for one that has none or is ahead of the clock."""
    return min(record.timestamp / 1000, now) if record.timestamp >= 0 else now
