"""Text for people: columns as wide as they need to be, and nothing that a terminal would obey."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> Iterator[str]:
    """Rows of equal length as lines."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield (indent + "  ".join(cells)).rstrip()


def printable(text: str | bytes | None) -> str:
    """The text with control characters as escapes, bytes that are no UTF-8 too; "-" for None."""
    if text is None:
        return "-"
    if isinstance(text, bytes):
        text = text.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def instant(ms: int) -> str:
    """RFC 3339 in UTC of a time in ms, or the bare number for times no calendar has."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms"


def age(seconds: float) -> str:
    """A span of time in its largest unit, such as `3 h`; below 0 it is `0 s`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
