"""The tables of a data set: rows by cohort, differences with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from adapters.report import by_shots, per_user
from benchmarks.learning.goals import SetResult, ahead, words
from benchmarks.learning.kept import Array
from benchmarks.learning.rows import ALONE, OWN, ROWS, Row
from benchmarks.tables import markdown


def text(found: SetResult) -> str:
    """Markdown: nDCG@10 by shots, and how far the model with all defaults is ahead."""
    users = found.judged.users
    parts = [*by_shots(found.judged.shots), ("new items", found.judged.new)]
    head = ["nDCG@10", "all", *(name for name, _ in parts), "defaults are ahead by"]
    places = [np.ones(len(users), bool), *(inside for _, inside in parts)]
    lines = []
    for row, ndcg in found.ndcg.items():
        cells = [mean(users, ndcg, inside) for inside in places]
        lead = "" if row == OWN else words(ahead(found, row))
        lines.append([row, *cells, lead])
    counts = [f"{len(np.unique(users[inside])):,}" for inside in places]
    lines.append(["users", *counts, ""])
    lines.append(["positions", *(f"{inside.sum():,}" for inside in places), ""])
    return markdown(head, lines)


def ablations(found: Sequence[SetResult]) -> str:
    """Markdown: how far the defaults are ahead of each ablation, with experts and without.

    Both are means of the same seeds. Empty where no ablation was run.
    """
    head = ["the defaults are ahead of", "seeds"]
    head += [f"{own.name}{part}" for own in found for part in ("", ", encoder only")]
    lines = []
    for row in (row for row in ROWS if row.ablation):
        seeds = {own.seeds[row.name] for own in found if row.name in own.seeds}
        if seeds:
            cells = [_lead(own, row, variant) for own in found for variant in ("adapted", ALONE[0])]
            lines.append([row.name, " or ".join(map(str, sorted(seeds))), *cells])
    return markdown(head, lines) if lines else ""


def _lead(found: SetResult, row: Row, variant: str) -> str:
    """Of the defaults over this row; empty where either was not run."""
    own, other = replace(row, name=OWN).label(variant), row.label(variant)
    return words(ahead(found, other, own)) if {own, other} <= found.ndcg.keys() else ""


def mean(users: Array, ndcg: Array, inside: Array) -> str:
    """The mean over users of what is inside, as tables write it; empty where nothing is."""
    if not inside.any():
        return ""
    return f"{per_user(users[inside], ndcg[inside, None]).mean():.4f}".removeprefix("0")
