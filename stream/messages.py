"""The messages of all topics: what they hold, how they are read and written.

Reading never raises on what came in: every record of a batch ends as an accepted message, as a
dead letter with a reason, or as a counted skip, whatever its neighbours are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream import config
from stream.cloud_events import unwrap
from stream.item_content import attributes, content_hash, item_text, vectors
from stream.message_checks import (
    COLD_KEY,
    Limits,
    Reason,
    Refused,
    Skip,
    Skipped,
    check_id,
    check_key,
    check_size,
    check_time,
    explain,
    parse_time,
    quote,
)
from stream.message_encoding import (
    Cause,
    Recommendation,
    dead_letter,
    encode,
    encode_recommendation,
    encode_recommendations,
    schema,
)
from stream.message_types import (
    Deletion,
    Event,
    Field,
    Forget,
    Interaction,
    Item,
    Ranking,
    User,
)
from stream.murmur2 import partitions_of
from stream.ports import Record

__all__ = [
    "COLD_KEY",
    "Cause",
    "DeadLetter",
    "Decoded",
    "DecodedBatch",
    "Deletion",
    "Event",
    "Field",
    "Forget",
    "Interaction",
    "Item",
    "Limits",
    "Ranking",
    "Reason",
    "Recommendation",
    "Refused",
    "Skip",
    "Skipped",
    "User",
    "attributes",
    "content_hash",
    "dead_letter",
    "decode_events",
    "decode_items",
    "encode",
    "encode_recommendation",
    "encode_recommendations",
    "evidence",
    "evidence_of",
    "item_text",
    "read_event",
    "read_item",
    "schema",
    "vectors",
]

_LARGEST_GRADE = 5.0
_events = msgspec.json.Decoder(Interaction | Ranking | User | Forget)
_items = msgspec.json.Decoder(Item)
_anything = msgspec.json.Decoder()
M = TypeVar("M")


class DeadLetter(NamedTuple):
    """A record that cannot be used: its place in the batch, why, and a sentence about it."""

    place: int
    record: Record
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded(Generic[M]):
    """What became of a batch of records, each of which is in exactly one of three places."""

    records: Sequence[Record]
    accepted: list[M]  # in the order of their records
    places: list[int]  # where in `records` each of `accepted` was
    dead: list[DeadLetter]
    skipped: Counter[Skip]
    misrouted: int = 0  # accepted all the same, but off the partition of their key


DecodedBatch = Decoded[Event]
"""A batch of the `events` topic."""


def decode_events(
    records: Sequence[Record],
    settings: config.Messages,
    partitions: int,
    partitioner: str = "murmur2_random",
    *,
    clock_ms: int | None = None,
) -> DecodedBatch:
    """Read a batch of `events`; never raises on what is in it.

    `partitions` is the topic's number of them. `clock_ms` stands in for the timestamp of records
    that have none (-1) when "future" is judged.
    """
    limits = Limits.of(settings, clock_ms)
    batch = _decode(records, lambda record: _accept_event(record, limits))
    keys = [event.user.encode() for event in batch.accepted]
    actual = np.fromiter((records[i].partition for i in batch.places), np.int64, len(keys))
    misrouted = int((partitions_of(keys, partitions, partitioner) != actual).sum())
    return replace(batch, misrouted=misrouted)


def decode_items(
    records: Sequence[Record], settings: config.Messages, *, clock_ms: int | None = None
) -> Decoded[Item | Deletion]:
    """Read a batch of `items`, null values as `Deletion`; never raises on what is in it."""
    limits = Limits.of(settings, clock_ms)
    return _decode(records, lambda record: _accept_item(record, limits))


def read_event(value: bytes, limits: Limits) -> Event:
    """One event without a record, as the worker would read it if produced at `limits.clock_ms`.

    Raises `Refused` or `Skipped`.
    """
    return _check_event(_parse(value, (), _events, limits), -1, limits)


def read_item(value: bytes, limits: Limits) -> Item:
    """One item without a record, as the worker would read it. Raises `Refused`."""
    return _check_item(_parse(value, (), _items, limits), -1, limits)


# -- evidence -----------------------------------------------------------------------------------


def evidence(action: str, value: float | None, settings: config.Messages) -> float:
    """What an event says about its item: weight x graded value; negative = dislike.

    The grade `(value - neutral) / scale` is held within -5 and 5, so that no single number can
    run away with a user. Raises `KeyError` for an action that is not configured.
    """
    rule = settings.actions[action]
    if not rule.graded:
        return rule.weight
    grade = ((rule.neutral if value is None else value) - rule.neutral) / rule.scale
    return rule.weight * max(-_LARGEST_GRADE, min(_LARGEST_GRADE, grade))


def evidence_of(
    actions: NDArray[np.int64], values: NDArray[np.float64], settings: config.Messages
) -> NDArray[np.float32]:
    """`evidence` of m events, [m].

    `actions` are places in `tuple(settings.actions)`; a missing value is nan.
    """
    rules = list(settings.actions.values())
    weight, neutral, scale = (
        np.array([getattr(rule, name) for rule in rules]) for name in ("weight", "neutral", "scale")
    )
    graded = np.array([rule.graded for rule in rules])[actions]
    grade = (values - neutral[actions]) / scale[actions]
    bounded = np.clip(np.nan_to_num(grade, nan=0.0), -_LARGEST_GRADE, _LARGEST_GRADE)
    return (weight[actions] * np.where(graded, bounded, 1.0)).astype(np.float32)


# -- one record ---------------------------------------------------------------------------------


def _decode(records: Sequence[Record], accept: Callable[[Record], M]) -> Decoded[M]:
    batch: Decoded[M] = Decoded(records=records, accepted=[], places=[], dead=[], skipped=Counter())
    for index, record in enumerate(records):
        try:
            message = accept(record)
        except Refused as refused:
            batch.dead.append(DeadLetter(index, record, refused.reason, refused.detail))
        except Skipped as skipped:
            batch.skipped[skipped.reason] += 1
        else:
            batch.accepted.append(message)
            batch.places.append(index)
    return batch


def _accept_event(record: Record, limits: Limits) -> Event:
    if not record.value:
        raise Skipped(Skip.EMPTY)
    event = _parse(record.value, record.headers, _events, limits)
    check_key("user", event.user, record.key)
    return _check_event(event, record.timestamp, limits)


def _accept_item(record: Record, limits: Limits) -> Item | Deletion:
    if record.value is None:
        return _deletion(record, limits)
    item = _parse(record.value, record.headers, _items, limits)
    check_key("item", item.item, record.key)
    return _check_item(item, record.timestamp, limits)


def _deletion(record: Record, limits: Limits) -> Deletion:
    if record.key is None:
        raise Refused(Reason.KEY_MISSING, "The record has no key; it must be the item id.")
    try:
        item = record.key.decode()
    except UnicodeDecodeError:
        raise Refused(Reason.NOT_UTF8, "The record's key is not UTF-8.") from None
    check_id("item", item, limits)
    return Deletion(item)


def _parse(
    value: bytes,
    headers: tuple[tuple[str, bytes | None], ...],
    decoder: msgspec.json.Decoder[M],
    limits: Limits,
) -> M:
    check_size(value, limits)
    if headers:
        value = unwrap(value, headers)
    try:
        return decoder.decode(value)
    except (ValueError, RecursionError) as error:
        if str(error).endswith("`$.timestamp`"):
            return _parse_with_time(value, decoder)
        raise _refusal(error, value) from None


def _parse_with_time(value: bytes, decoder: msgspec.json.Decoder[M]) -> M:
    """The slow way, for a timestamp that is not an integer."""
    try:
        fields: dict[str, Any] = _anything.decode(value)
        message: M = msgspec.convert(
            {**fields, "timestamp": parse_time(fields.get("timestamp"))}, decoder.type
        )
    except (ValueError, RecursionError) as error:
        raise _refusal(error, value) from None
    return message


def _refusal(error: Exception, value: bytes) -> Refused:
    refused = explain(error, value)
    if refused.reason is Reason.UNKNOWN_EVENT and "'item'" in refused.detail:
        return Refused(refused.reason, "An item belongs to the items topic, not to events.")
    return refused


def _check_event(event: Event, produced: int, limits: Limits) -> Event:
    check_time(event.timestamp, produced, limits)
    check_id("user", event.user, limits)
    if event.user == COLD_KEY:
        raise Refused(Reason.RESERVED_ID, f"{COLD_KEY} is the key of the list for unseen users.")
    check_id("id", event.id, limits)
    if isinstance(event, Interaction):
        return _check_interaction(event, limits)
    return _check_ranking(event, limits) if isinstance(event, Ranking) else event


def _check_interaction(event: Interaction, limits: Limits) -> Interaction:
    check_id("item", event.item, limits)
    rule = limits.actions.get(event.type)
    if rule is None:
        raise Refused(
            Reason.UNKNOWN_ACTION,
            f"Action {quote(event.type)} is not configured; messages.actions names those that are.",
        )
    if rule.weight == 0.0:
        raise Skipped(Skip.IGNORED_ACTION)
    if rule.graded and event.value is None:
        raise Refused(Reason.VALUE_MISSING, f"Action {quote(event.type)} needs a `value`.")
    return event


def _check_ranking(event: Ranking, limits: Limits) -> Ranking:
    count = len(event.items)
    if count > limits.max_ranking_items:
        raise Refused(
            Reason.RANKING_TOO_LONG,
            f"Field `items` has {count} items, {limits.max_ranking_items} are allowed.",
        )
    if not count:
        raise Skipped(Skip.EMPTY_RANKING)
    for item in event.items:
        check_id("items", item, limits)
    once = list(dict.fromkeys(event.items))
    return event if len(once) == count else msgspec.structs.replace(event, items=once)


def _check_item(item: Item, produced: int, limits: Limits) -> Item:
    check_time(item.timestamp, produced, limits)
    check_id("item", item.item, limits)
    check_id("id", item.id, limits)
    for field in item.fields:
        _check_numbers(field)
    return item


def _check_numbers(field: Field) -> None:
    """Refuses integers beyond what a float holds; JSON knows no other bound."""
    values = field.value if isinstance(field.value, list) else (field.value,)
    try:
        for value in values:
            if isinstance(value, int):
                float(value)
    except OverflowError:
        raise Refused(
            Reason.NOT_FINITE, f"Field {quote(field.name)} holds a number that is too large."
        ) from None
