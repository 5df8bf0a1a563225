"""Columns of figures for a reader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns aligned right, two spaces between them."""
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same as a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def met(goal: bool) -> str:
    """Whether a goal was reached, so that it catches the eye where it was not."""
    return "met" if goal else "MISSED"
