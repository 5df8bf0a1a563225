"""The checks a message must pass, each with a reason code and a sentence for a person."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import msgspec

from stream import config

COLD_KEY = "_cold"
"""Key of the list for users nobody has seen; refused as a user id."""

_LAST_MS = 253_402_300_799_999  # the end of the year 9999
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d+)?([Zz]|[+-]\d\d:\d\d)?", re.ASCII
)


class Reason(StrEnum):
    """Why a message became a dead letter; the value stands in its `reason` header."""

    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    TOO_DEEP = "too_deep"
    OVERSIZED = "oversized"
    UNKNOWN_EVENT = "unknown_event"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    NOT_FINITE = "not_finite"
    CLOUD_EVENT = "cloud_event"
    KEY_MISSING = "key_missing"
    KEY_MISMATCH = "key_mismatch"
    RESERVED_ID = "reserved_id"
    EMPTY_ID = "empty_id"
    ID_TOO_LONG = "id_too_long"
    UNKNOWN_ACTION = "unknown_action"
    VALUE_MISSING = "value_missing"
    TIMESTAMP_INVALID = "timestamp_invalid"
    TIMESTAMP_UNIT = "timestamp_unit"
    TIMESTAMP_FUTURE = "timestamp_future"
    TIMESTAMP_PAST = "timestamp_past"
    RANKING_TOO_LONG = "ranking_too_long"
    UNPROCESSABLE = "unprocessable"


class Skip(StrEnum):
    """Why a message was counted and left alone: nothing is wrong with it, nothing follows."""

    EMPTY = "empty"
    IGNORED_ACTION = "ignored_action"
    EMPTY_RANKING = "empty_ranking"
    DUPLICATE = "duplicate"
    TOO_MANY = "too_many"


class Refused(Exception):
    """A message that cannot be used; caught by the decoder, never by a user."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(detail)


class Skipped(Exception):
    """A message that is fine and says nothing; caught by the decoder, never by a user."""

    def __init__(self, reason: Skip) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Limits:
    """`config.Messages` as plain numbers, for the loop over a batch."""

    max_bytes: int
    max_id_bytes: int
    short_id: int  # characters that are within max_id_bytes whatever they are
    max_ranking_items: int
    future_ms: int
    past_ms: int | None
    clock_ms: int  # stands in for a record's missing timestamp
    actions: Mapping[str, config.Action]

    @classmethod
    def of(cls, settings: config.Messages, clock_ms: int | None) -> Limits:
        """The limits of `settings`; without a clock, only the year 9999 bounds such records."""
        return cls(
            max_bytes=settings.max_bytes,
            max_id_bytes=settings.max_id_bytes,
            short_id=settings.max_id_bytes // 4,
            max_ranking_items=settings.max_ranking_items,
            future_ms=settings.future_ms,
            past_ms=settings.past_ms,
            clock_ms=_LAST_MS if clock_ms is None else clock_ms,
            actions=settings.actions,
        )


def check_id(name: str, value: str, limits: Limits) -> None:
    """Refuses an id that is empty or longer than `messages.max_id_bytes`."""
    if 0 < len(value) <= limits.short_id:
        return
    if not value:
        raise Refused(Reason.EMPTY_ID, f"Field `{name}` is empty.")
    size = len(value.encode())
    if size > limits.max_id_bytes:
        raise Refused(
            Reason.ID_TOO_LONG,
            f"Field `{name}` has {size} bytes, {limits.max_id_bytes} are allowed.",
        )


def check_key(name: str, value: str, key: bytes | None) -> None:
    """Refuses a record whose key is not the id in its message."""
    if key == value.encode():
        return
    if key is None:
        raise Refused(Reason.KEY_MISSING, f"The record has no key; it must be the {name} id.")
    shown = quote(key.decode(errors="replace"))
    raise Refused(
        Reason.KEY_MISMATCH, f"The record's key is {shown}, but `{name}` is {quote(value)}."
    )


def check_size(value: bytes, limits: Limits) -> None:
    """Refuses a message longer than `messages.max_bytes`."""
    if len(value) > limits.max_bytes:
        raise Refused(
            Reason.OVERSIZED,
            f"The message has {len(value)} bytes, {limits.max_bytes} are allowed.",
        )


def check_time(time: int, produced: int, limits: Limits) -> None:
    """Refuses an event time that is absurd against the time the record was produced, both ms."""
    reference = produced if produced >= 0 else limits.clock_ms
    if 10_000_000_000 <= time <= min(reference + limits.future_ms, _LAST_MS):
        if limits.past_ms is not None and time < reference - limits.past_ms:
            raise Refused(
                Reason.TIMESTAMP_PAST,
                f"Field `timestamp` lies {reference - time} ms before the record, "
                f"{limits.past_ms} ms are allowed.",
            )
        return
    _explain_time(time, reference, limits)


def _explain_time(time: int, reference: int, limits: Limits) -> None:
    if time < 0:
        raise Refused(Reason.TIMESTAMP_INVALID, "Field `timestamp` is negative.")
    if 500_000_000 <= time < 10_000_000_000:
        raise Refused(
            Reason.TIMESTAMP_UNIT,
            f"Field `timestamp` is {time}, which looks like seconds; milliseconds are expected.",
        )
    if time > min(reference + limits.future_ms, _LAST_MS):
        ahead = f"{time - reference} ms" if time <= _LAST_MS else "thousands of years"
        raise Refused(
            Reason.TIMESTAMP_FUTURE,
            f"Field `timestamp` lies {ahead} after the record, {limits.future_ms} ms are allowed.",
        )
    if limits.past_ms is not None and time < reference - limits.past_ms:
        raise Refused(
            Reason.TIMESTAMP_PAST,
            f"Field `timestamp` lies {reference - time} ms before the record.",
        )


def parse_time(value: object) -> int:
    """Milliseconds since the epoch from an RFC 3339 string with a zone, or from digits."""
    if type(value) is int:
        return value
    if not isinstance(value, str):
        raise Refused(
            Reason.TIMESTAMP_INVALID,
            "Field `timestamp` is neither milliseconds as an integer nor an RFC 3339 string.",
        )
    if value.isascii() and value.isdigit() and len(value) <= 16:
        return int(value)
    match = _RFC3339.fullmatch(value)
    if match and not match[1]:
        raise Refused(
            Reason.TIMESTAMP_INVALID,
            f"Field `timestamp` is {quote(value)}, which has no zone; append Z if it is UTC.",
        )
    try:
        if match:
            return (datetime.fromisoformat(value.upper()) - _EPOCH) // _MILLISECOND
    except (ValueError, OverflowError):
        pass
    raise Refused(
        Reason.TIMESTAMP_INVALID, f"Field `timestamp` is {quote(value)}, which is not a time."
    )


def explain(error: Exception, value: bytes) -> Refused:
    """The reason and the sentence for what a msgspec decoder raised on `value`."""
    if isinstance(error, UnicodeDecodeError) or not _is_utf8(value):
        return Refused(Reason.NOT_UTF8, "The message is not UTF-8.")
    if isinstance(error, RecursionError):
        return Refused(Reason.TOO_DEEP, "The message is nested too deeply.")
    text = " ".join(str(error).split())[:300]
    if not isinstance(error, msgspec.ValidationError):
        return Refused(Reason.NOT_JSON, f"The message is not JSON: {text}.")
    return Refused(_reason_of(text), f"{text}.")


def _reason_of(text: str) -> Reason:
    if "missing required field" in text:
        return Reason.MISSING_FIELD
    if text.startswith("Invalid value") and text.endswith("`$.event`"):
        return Reason.UNKNOWN_EVENT
    if "out of range" in text:
        return Reason.NOT_FINITE
    return Reason.WRONG_TYPE


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def quote(text: str) -> str:
    """`text` in quotes, printable and short enough for a sentence."""
    return repr(text if len(text) <= 60 else text[:60] + "…")
