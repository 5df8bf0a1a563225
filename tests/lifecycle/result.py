"""What came of a life: figures, whether all of it held, and the last line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.freshness import Freshness
from stream import bundles
from stream.model_tables import gate_line
from stream.releases import Release
from stream.succession import Gate
from stream.tables import table
from tests.chaos.checker import Verdict

CHANGES = 3
"""Two retrainings and a rollback."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A model before the gate."""

    name: str
    gate: Gate

    @classmethod
    def of(cls, name: str, address: Path) -> Judged:
        """With the verdict in the bundle's manifest."""
        return cls(name=name, gate=bundles.load(str(address)).manifest.gate or {})

    @property
    def promoted(self) -> bool:
        """Whether the gate let it pass."""
        return bool(self.gate.get("promoted"))


@dataclass(frozen=True, kw_only=True)
class Change:
    """How fresh lists were around a change of the model."""

    before: Freshness
    during: Freshness
    after: Freshness


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything that was found."""

    releases: tuple[Release, ...]
    judged: tuple[Judged, ...]
    changes: tuple[Change, ...]
    migrated: int  # users whom the sweeps gave a list, all changes together
    verdict: Verdict
    strays: tuple[str, ...]  # lists by a model that did not serve then
    troubles: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the gate did both, users moved, and nothing was found."""
        return (
            self.verdict.clean
            and not (self.strays or self.troubles)
            and {one.promoted for one in self.judged} == {True, False}
            and self.migrated > 0
            and len(self.changes) == CHANGES
        )

    def table(self) -> Iterator[str]:
        """Freshness by change, and the gate's verdicts."""
        head = ("change", *(f"p99 {n}" for n in ("before", "during", "after")), "during/before")
        rows = [head]
        for release, change in zip(self.releases[1:], self.changes, strict=False):
            times = [f"{1e3 * x.p99:.0f} ms" for x in (change.before, change.during, change.after)]
            ratio = change.during.p99 / change.before.p99
            rows.append((f"to {release.version} ({release.reason})", *times, f"{ratio:.2f}"))
        yield from table(rows)
        yield from table([(f"gate: {one.name}", gate_line(one.gate)) for one in self.judged])

    def line(self) -> str:
        """The last line; p99 is the worst of all changes."""
        letters = {
            v: chr(65 + i) for i, v in enumerate(dict.fromkeys(map(_version, self.releases)))
        }
        versions = " -> ".join(letters[release.version] for release in self.releases)
        promoted = sum(one.promoted for one in self.judged)
        worst = (
            f"{1e3 * max((getattr(c, name).p99 for c in self.changes), default=0.0):.0f}"
            for name in ("before", "during", "after")
        )
        return (
            f"versions {versions}, gate promoted {promoted} refused "
            f"{len(self.judged) - promoted}, freshness p99 before/during/after "
            f"{'/'.join(worst)} ms, users migrated {self.migrated:,}: {self.verdict.summary()}"
        )

    def as_json(self) -> dict[str, Any]:
        """The same for programs; seconds."""
        return {
            "passed": self.passed,
            "line": self.line(),
            "releases": [
                {"version": r.version, "reason": r.reason, "note": r.note} for r in self.releases
            ],
            "judged": [{"name": one.name, "gate": one.gate} for one in self.judged],
            "changes": [asdict(change) for change in self.changes],
            "migrated": self.migrated,
            "events": self.verdict.events,
            "users": self.verdict.users,
            "lists": self.verdict.lists,
            "findings": [*self.verdict.lost, *self.verdict.repeated, *self.verdict.regressions],
            "strays": list(self.strays),
            "troubles": list(self.troubles),
        }


def _version(release: Release) -> str:
    return release.version
