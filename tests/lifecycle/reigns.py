"""Which model may have made a list, by the time of its record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import orjson

from stream.ports import Record


@dataclass(frozen=True, kw_only=True)
class Reign:
    """From a version's record on `models` until no worker serves it any more; both included.

    While workers change over, two reigns overlap.
    """

    version: str
    start: float  # unix seconds
    end: float  # unix seconds


def strays(lists: Iterable[Record], reigns: Sequence[Reign]) -> Iterator[str]:
    """Each list by a model that did not reign, as a sentence."""
    for record in lists:
        if record.value is None:
            continue
        version = orjson.loads(record.value)["model_version"]
        if not _reigned(version, record.timestamp / 1000, reigns):
            where = f"recommendations[{record.partition}]:{record.offset}"
            yield f"{where}: by {version}, which did not serve then"


def _reigned(version: str, at: float, reigns: Sequence[Reign]) -> bool:
    return any(r.version == version and r.start <= at <= r.end for r in reigns)
