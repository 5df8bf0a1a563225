"""The messages that leave: events and items of our own making, lists, dead letters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.message_checks import Reason
from stream.message_types import Event, Item
from stream.ports import Record

SCHEMA_VERSION = 1
SCHEMAS = (
    "interaction",
    "ranking",
    "user",
    "forget",
    "item",
    "recommendation",
    "model",
    "retraining",
    "dead_letter",
)
LEFT_OUT = "left_out"
"""Header of a dead letter without its payload: the number of bytes."""

_SCORE_DIGITS = 5
_LARGEST_SCORE = 3.4e38  # of float32, about
_MOST_HEADERS = 1_000  # each takes nine bytes more here than it took there
_DETAIL_BYTES = 1_000
_encoder = msgspec.json.Encoder()


class Cause(msgspec.Struct, frozen=True, gc=False):
    """The event that a list answers; `event_time` is event time in ms."""

    event_id: str
    event_time: int
    topic: str
    partition: int
    offset: int


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A place in a list; rank 1 is the best."""

    item: str
    score: float
    rank: int


class Recommendation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A list as it stands in `recommendations`; times in ms."""

    schema_version: int = SCHEMA_VERSION
    user: str
    items: list[Entry]
    strategy: str
    shots: int
    state_version: int
    model_version: str
    generated_at: int
    expires_at: int
    caused_by: Cause | None


class Fate(NamedTuple):
    """A dead letter as it is written; the caller chooses the partition."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


def encode(message: Event | Item) -> bytes:
    """The message as the JSON of docs/messages.md."""
    return _encoder.encode(message)


def encode_recommendation(
    user: str,
    item_ids: Sequence[str],
    scores: NDArray[np.float32] | Sequence[float],
    strategy: str,
    shots: int,
    state_version: int,
    model_version: str,
    generated_at: int,
    expires_at: int,
    caused_by: Cause | None,
) -> bytes:
    """One list as JSON, best item first; `scores` is aligned with `item_ids`, times are ms."""
    return encode_recommendations(
        [user],
        [item_ids],
        np.asarray(scores, np.float32).reshape(1, -1),
        strategy=[strategy],
        shots=[shots],
        state_versions=[state_version],
        model_version=model_version,
        generated_at=generated_at,
        expires_at=expires_at,
        caused_by=[caused_by],
    )[0]


def encode_recommendations(
    users: Sequence[str],
    item_ids: Sequence[Sequence[str]],
    scores: NDArray[np.float32],
    *,
    strategy: Sequence[str],
    shots: Sequence[int],
    state_versions: Sequence[int],
    model_version: str,
    generated_at: int,
    expires_at: int,
    caused_by: Sequence[Cause | None],
) -> list[bytes]:
    """The lists of n users as JSON.

    `item_ids` holds one list a user, best first, of at most k ids; `scores` is [n, k], places
    beyond a user's ids are not read. Scores are rounded to 5 digits after the point; one that is
    not finite is written as 0 or as the largest number of float32, since JSON has no other.
    """
    rounded = np.nan_to_num(
        scores.astype(np.float64), posinf=_LARGEST_SCORE, neginf=-_LARGEST_SCORE
    )
    table = np.round(rounded, _SCORE_DIGITS).tolist()
    ranks = range(1, scores.shape[1] + 1)
    rows = zip(users, item_ids, table, strategy, shots, state_versions, caused_by, strict=True)
    return [
        _encoder.encode(
            Recommendation(
                user=user,
                items=list(map(Entry, ids, row, ranks)),
                strategy=how,
                shots=int(shot),
                state_version=int(version),
                model_version=model_version,
                generated_at=generated_at,
                expires_at=expires_at,
                caused_by=cause,
            )
        )
        for user, ids, row, how, shot, version, cause in rows
    ]


def dead_letter(record: Record, reason: Reason, detail: str) -> Fate:
    """The record's own key and bytes with headers that say where it was and why it is here.

    Headers of the record itself are kept as `original.NAME`, so that it can be sent again as it
    was; of more than a thousand the first ones, or what is added would not fit the topic.
    """
    said = {
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "timestamp": str(record.timestamp),
        "reason": reason.value,
        "detail": detail,
    }
    ours = tuple(
        (name, text.encode("utf-8", "replace")[:_DETAIL_BYTES]) for name, text in said.items()
    )
    kept = record.headers[:_MOST_HEADERS]
    theirs = tuple((f"original.{name}", value or b"") for name, value in kept)
    return Fate(record.key, record.value, ours + theirs)


def bare_letter(record: Record, reason: Reason, detail: str) -> Fate:
    """A dead letter without bytes and headers of the record, where the topic refuses the whole.

    The header `left_out` says how many bytes the value had; they are where the record was until
    the retention of its topic.
    """
    stripped = record._replace(key=_short(record.key), value=None, headers=())
    fate = dead_letter(stripped, reason, detail)
    size = len(record.value or b"")
    return fate._replace(headers=(*fate.headers, (LEFT_OUT, str(size).encode())))


def _short(key: bytes | None) -> bytes | None:
    return None if key is None or len(key) > _DETAIL_BYTES else key


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a message, one of `SCHEMAS`."""
    text = (files("stream") / "schemas" / f"{name}.json").read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded
