"""Models and verdicts in words: what `innerloop promote` and `innerloop models` print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from adapters.gate import spread
from adapters.report import Figure
from stream.releases import Release
from stream.succession import Gate, Standing
from stream.tables import instant, printable, table


def verdict_lines(gate: Gate) -> Iterator[str]:
    """The figures behind a verdict, by cohort and by baseline; nothing where nobody judged."""
    if not gate.get("cohorts"):
        return
    part = gate["slice"]
    yield f"slice {part['first']} to {part['last']}"
    head = ("shots", "predictions", "users", "challenger", "champion", "change (95%)", "")
    yield from table([head, *map(_cohort, gate["cohorts"])], indent="")
    yield ""
    rivals = [("baseline", "nDCG@10", "challenger's lead (95%)"), *map(_rival, gate["baselines"])]
    yield from table(rivals, indent="")
    yield ""


def gate_line(gate: Gate | None) -> str:
    """A verdict in a few words, with the change over all positions where there was a champion."""
    if gate is None:
        return "-"
    word = "passed" if gate["promoted"] else "refused"
    if not gate.get("cohorts"):
        return word if gate["promoted"] else "not judged"
    change = gate["cohorts"][0]["change"]
    return f"{word}, {spread(Figure(**change))}" if change else f"{word}, no champion yet"


def why(release: Release) -> str:
    """The reason of a record, with the words of whoever asked for it."""
    return f"{release.reason}: {printable(release.note)}" if release.note else release.reason


def model_rows(roles: Standing) -> list[tuple[str, ...]]:
    """Head and rows of the table of models: who serves, then who served, the newest first."""
    serving = [release for release in (roles.champion, roles.challenger) if release is not None]
    return [
        ("role", "version", "users", "since", "why", "gate", "bundle"),
        *(_release(release.role, release) for release in serving),
        *(_release("before", release) for release in roles.before),
        *_unrecorded(roles),
    ]


def models_json(roles: Standing) -> dict[str, Any]:
    """The same in plain types, with all figures."""
    named = {"champion": roles.champion, "challenger": roles.challenger, "before": roles.before}
    return {name: msgspec.to_builtins(value) for name, value in named.items()}


def _release(role: str, release: Release) -> tuple[str, ...]:
    return (
        role,
        printable(release.version),
        f"{100 * release.share:.4g}%",
        instant(release.published_at),
        why(release),
        gate_line(release.gate),
        printable(release.bundle),
    )


def _unrecorded(roles: Standing) -> list[tuple[str, ...]]:
    """The champion's parent, where compaction has taken the record that made it champion."""
    parent = roles.champion and roles.champion.parent
    if parent is None or any(release.version == parent.version for release in roles.before):
        return []
    return [("before", printable(parent.version), "", "", "", "", printable(parent.bundle))]


def _cohort(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        str(row["positions"]),
        str(row["users"]),
        f"{row['challenger']:.4f}",
        "-" if row["champion"] is None else f"{row['champion']:.4f}",
        spread(Figure(**row["change"])) if row["change"] else "-",
        "" if row["passed"] and row["counts"] else _mark(row),
    )


def _mark(row: Mapping[str, Any]) -> str:
    return "too few to count" if not row["counts"] else "worse"


def _rival(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["name"], f"{row['ndcg']:.4f}", spread(Figure(**row["lead"]))
