"""The tables of a data set: rows by cohort, differences with their intervals."""

from __future__ import annotations

import numpy as np

from adapters.report import by_shots, per_user
from benchmarks.learning.goals import SetResult, difference, words
from benchmarks.learning.kept import Array
from benchmarks.learning.rows import OWN


def text(found: SetResult) -> str:
    """Markdown: nDCG@10 by shots, and how far the model with all defaults is ahead."""
    users = found.judged.users
    parts = [*by_shots(found.judged.shots), ("new items", found.judged.new)]
    head = ["nDCG@10", "all", *(name for name, _ in parts), "defaults are ahead by"]
    places = [np.ones(len(users), bool), *(inside for _, inside in parts)]
    lines = [head, ["---"] * len(head)]
    for row, ndcg in found.ndcg.items():
        cells = [mean(users, ndcg, inside) for inside in places]
        ahead = "" if row == OWN else words(difference(found, OWN, row))
        lines.append([row, *cells, ahead])
    counts = [f"{len(np.unique(users[inside])):,}" for inside in places]
    lines.append(["users", *counts, ""])
    lines.append(["positions", *(f"{inside.sum():,}" for inside in places), ""])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean(users: Array, ndcg: Array, inside: Array) -> str:
    """The mean over users of what is inside, as tables write it; empty where nothing is."""
    if not inside.any():
        return ""
    return f"{per_user(users[inside], ndcg[inside, None]).mean():.4f}".removeprefix("0")
