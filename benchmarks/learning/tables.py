"""The tables of a data set: rows by cohort, differences with their intervals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adapters.report import COHORTS, per_user
from benchmarks.learning.goals import SetResult, difference
from benchmarks.learning.kept import Array
from benchmarks.learning.rows import OWN


def text(found: SetResult) -> str:
    """Markdown: nDCG@10 by shots, and how far the model with all defaults is ahead."""
    users = found.judged.users
    names = [name for name, _, _ in COHORTS]
    head = ["nDCG@10", "all", *names, "new items", "defaults are ahead by"]
    lines = [head, ["---"] * len(head)]
    for row, ndcg in found.ndcg.items():
        cells = [_mean(users, ndcg, inside) for inside in _parts(found)]
        lead = difference(found, OWN, row)
        ahead = "" if row == OWN else f"{lead.mean:+.1%} ({lead.low:+.1%} to {lead.high:+.1%})"
        lines.append([row, *cells, ahead])
    counts = [f"{len(np.unique(users[inside])):,}" for inside in _parts(found)]
    lines.append(["users", *counts, ""])
    lines.append(["positions", *(f"{inside.sum():,}" for inside in _parts(found)), ""])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _parts(found: SetResult) -> Iterator[Array]:
    shots = found.judged.shots
    yield np.ones(len(shots), bool)
    for _, low, high in COHORTS:
        yield (shots >= low) & (shots <= high)
    yield found.judged.new


def _mean(users: Array, ndcg: Array, inside: Array) -> str:
    if not inside.any():
        return ""
    return f"{per_user(users[inside], ndcg[inside, None]).mean():.4f}".removeprefix("0")
