"""Whether a user's record in `state` is the one that the log of `events` makes.

Support set, counts and versions have to be equal. Adapters agree within `TOLERANCE`: events came to
the worker in other batches, whose kernels round otherwise, and an adapter is rounded to fp16 after
each of them. What cannot be compared is counted, with the reason, and is no difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from stream.tables import printable
from stream.user_layout import has_adapter
from stream.user_state import Layout, Records

TOLERANCE = 0.01
"""Largest difference between two adapters, of any number in them, relative to the largest one."""

SHOWN = 20
"""Users who differ that are told one by one."""

_DAY_MS = 86_400_000


class Verdict(StrEnum):
    """What became of a user; the value says it to a person."""

    AGREES = "who agree"
    DIFFERS = "who differ"
    EXPIRED = "expired (state.ttl_days)"
    BEFORE_LOG = "not compared: their first events are no longer in the log"
    ACTED_MEANWHILE = "not compared: they acted meanwhile"


class Adapter(StrEnum):
    """Whether an adapter was compared; the value says it to a person."""

    COMPARED = "compared"
    OTHER_MODEL = "not compared: made by another model than the bundle"
    LATE_ITEM = "not compared: an item came, changed or went after the user acted on it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found about a user."""

    user: bytes
    verdict: Verdict
    what: str = ""  # differs
    adapter: Adapter | None = None  # None = there was no reason to look at it
    distance: float = 0.0  # of the adapters, where they were compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What has to be known of a partition to judge its users."""

    layout: Layout
    model: int  # hash of the bundle's version
    ttl_days: float | None
    newest: int  # ms of event time
    cut: bool  # whether retention has deleted the beginning of the log
    moving: frozenset[bytes]  # users with events after those that were replayed
    late: frozenset[bytes]  # users of whose items not all were then as they are now
    adapters: bool = True  # whether to compare them
    refreshed: bool = False  # whether a change of the model may have raised versions


def judge(
    user: bytes, expected: bytes | None, found: bytes | None, known: Circumstances
) -> Finding:
    """Compare the record that the log makes with the one in `state`; None = no record."""
    if user in known.moving:
        return Finding(user=user, verdict=Verdict.ACTED_MEANWHILE)
    if expected is None:
        return _unless(known.cut, Verdict.BEFORE_LOG, user, "no event in the log")
    mine = known.layout.decode([expected])
    if found is None:
        return _unless(_has_expired(mine, known), Verdict.EXPIRED, user, "no record in state")
    other = known.layout.decode([found])
    if known.cut and _began_before(other, mine):
        return Finding(user=user, verdict=Verdict.BEFORE_LOG)
    if known.ttl_days is not None and _began_anew(other, mine):
        return Finding(user=user, verdict=Verdict.EXPIRED)
    if what := _unequal(mine, other, known.refreshed):
        return Finding(user=user, verdict=Verdict.DIFFERS, what=what)
    return _adapters(user, mine, other, known)


def _unless(excused: bool, verdict: Verdict, user: bytes, what: str) -> Finding:
    """The verdict where there is an excuse, else a difference."""
    if excused:
        return Finding(user=user, verdict=verdict)
    return Finding(user=user, verdict=Verdict.DIFFERS, what=what)


def _has_expired(record: Records, known: Circumstances) -> bool:
    """Whether the sweep of `state.ttl_days` may have taken this record."""
    if known.ttl_days is None:
        return False
    shown = 1000 * int(record["impressions"]["time"].max(initial=0))
    last = int(record["last_time"][0])
    last = last if record["shots"][0] else max(last, shown)
    return last + known.ttl_days * _DAY_MS < known.newest


def _began_before(found: Records, expected: Records) -> bool:
    """Whether the record knows events that come before all those that are left in the log."""
    if not found["shots"][0]:
        return False
    earlier = found["first_time"][0] < expected["first_time"][0]
    return bool(earlier or not expected["shots"][0])


def _began_anew(found: Records, expected: Records) -> bool:
    """Whether the user expired and came back: the record knows later events alone."""
    fewer = found["shots"][0] < expected["shots"][0]
    return bool(fewer and found["first_time"][0] > expected["first_time"][0])


def _unequal(mine: Records, other: Records, refreshed: bool) -> str:
    """What the log and the record say differently, the adapter aside; "" = nothing."""
    for name in ("state_version", "shots", "first_time", "last_time"):
        a, b = int(mine[name][0]), int(other[name][0])
        if a != b and not (refreshed and name == "state_version" and b > a):
            return f"{name}: the log says {a}, state {b}"
    if (mine["profile"] != other["profile"]).any():
        return "profile: its attributes are others"
    places = np.flatnonzero(mine["support"][0] != other["support"][0])
    if len(places):
        return f"support set: {len(places)} of its places, the first is {int(places[0])}"
    return ""


# -- adapters ---------------------------------------------------------------------------------


def _adapters(user: bytes, mine: Records, other: Records, known: Circumstances) -> Finding:
    """Compare the adapters of a user of whom everything else agrees."""
    agrees = Verdict.AGREES
    if not (known.adapters and mine["shots"][0]):
        return Finding(user=user, verdict=agrees)
    if int(other["model"][0]) != known.model or not has_adapter(other)[0]:
        return Finding(user=user, verdict=agrees, adapter=Adapter.OTHER_MODEL)
    if user in known.late:
        return Finding(user=user, verdict=agrees, adapter=Adapter.LATE_ITEM)
    distance, name = adapter_distance(known.layout, mine, other)
    near = distance <= TOLERANCE
    return Finding(
        user=user,
        verdict=agrees if near else Verdict.DIFFERS,
        what="" if near else f"adapter: {name} by {distance:.3g}{_perhaps_rebuilt(mine)}",
        adapter=Adapter.COMPARED,
        distance=distance,
    )


def _perhaps_rebuilt(record: Records) -> str:
    """What to know of users whose support set does not hold all that their adapter went through."""
    places = record["support"].shape[1]
    if record["shots"][0] <= places:
        return ""
    return f" (more than {places} events: expected where the model has changed since)"


def adapter_distance(layout: Layout, mine: Records, other: Records) -> tuple[float, str]:
    """The largest difference between two adapters, and the field that it is in.

    Relative to the largest number of the field, where that is above 1.
    """
    a, b = layout.adapter_state(mine), layout.adapter_state(other)
    found = {
        name: float((a[name] - b[name]).abs().max() / b[name].abs().max().clamp(min=1.0))
        for name in a
    }
    worst = max(found, key=lambda name: found[name])
    return found[worst], worst


# -- reports ----------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Report:
    """Findings, counted."""

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    adapters: Counter[Adapter] = field(default_factory=Counter)
    differences: list[Finding] = field(default_factory=list)
    largest: float = 0.0  # difference of adapters that were compared

    @property
    def users(self) -> int:
        """Users looked at."""
        return self.verdicts.total()

    def take(self, findings: Iterable[Finding]) -> None:
        """Count findings in."""
        for found in findings:
            self.verdicts[found.verdict] += 1
            if found.adapter is not None:
                self.adapters[found.adapter] += 1
            if found.verdict is Verdict.DIFFERS:
                self.differences.append(found)
            self.largest = max(self.largest, found.distance)

    def lines(self) -> Iterator[str]:
        """What was found, in words: differences one by one, then counts."""
        for found in self.differences[:SHOWN]:
            yield f"user {printable(found.user)}: {found.what}"
        if len(self.differences) > SHOWN:
            yield f"and {len(self.differences) - SHOWN} users more"
        for verdict, count in self.verdicts.items():
            yield f"users {verdict}: {count}"
        for kind, count in self.adapters.items():
            yield f"adapters {kind}: {count}"
        if self.adapters[Adapter.COMPARED]:
            yield f"largest difference of adapters: {self.largest:.2g}, allowed {TOLERANCE}"
