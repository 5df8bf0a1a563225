"""What is known of a user, in words: the record of the `state` topic, read without its store."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from stream.config import Settings
from stream.errors import UnknownUser
from stream.kafka.admin import Admin
from stream.kafka.reader import LogReader
from stream.message_encoding import Recommendation
from stream.messages import Item, decode_items
from stream.murmur2 import partition_of
from stream.ports import LogReader as LogReaderPort
from stream.ports import Record, TopicPartition
from stream.seen_ring import seen_hashes
from stream.succession import Standing, read_standing
from stream.tables import instant, printable
from stream.user_state import (
    IGNORED,
    PENDING,
    Layout,
    has_adapter,
    hash_id,
    profile_buckets,
)

_SHOWN = 10
"""Places of the last list that are printed."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The newest record of a user in a topic, None = no record, and where it belongs."""

    partition: int
    value: bytes | None


def stored_record(settings: Settings, user: str, role: str = "state") -> Stored:
    """The user's record in his partition of `state` or `recommendations`. Raises `TopicError`."""
    kafka, key = settings.kafka, user.encode()
    with Admin(kafka) as admin:
        partitions = admin.partitions(kafka.topic(role))
        tp = partitions[partition_of(key, len(partitions), kafka.partitioner)]
        start = admin.start_offsets([tp])[tp]
    reader = LogReader(kafka)
    try:
        return Stored(tp.partition, newest_value(reader, tp, start, key))
    finally:
        reader.close()


def required_record(settings: Settings, user: str) -> tuple[int, bytes]:
    """Partition and bytes of the user's record. Raises `UnknownUser` where there is none."""
    stored = stored_record(settings, user)
    if stored.value is None:
        topic = f"{settings.kafka.topic('state')}[{stored.partition}]"
        raise UnknownUser(f"user {printable(user)} has no record in {topic}")
    return stored.partition, stored.value


def last_list(settings: Settings, user: str) -> Recommendation | None:
    """The user's list as rankers have it; None = there is none, or it was withdrawn."""
    value = stored_record(settings, user, "recommendations").value
    return None if value is None else msgspec.json.decode(value, type=Recommendation)


def newest_value(reader: LogReaderPort, tp: TopicPartition, start: int, key: bytes) -> bytes | None:
    """The last committed value of a key from offset `start` to the end as it is now."""
    value = None
    for record in committed(reader, {tp: start}):
        if record.key == key:
            value = record.value
    return value


def newest_values(reader: LogReaderPort, tp: TopicPartition) -> dict[bytes, bytes]:
    """The last committed value of every key of a partition, those that are deleted left out."""
    values: dict[bytes, bytes | None] = {}
    for record in committed(reader, reader.start_offsets([tp])):
        if record.key:
            values[record.key] = record.value
    return {key: value for key, value in values.items() if value is not None}


def committed(reader: LogReaderPort, starts: Mapping[TopicPartition, int]) -> Iterator[Record]:
    """All committed records from `starts` to the ends as they are now."""
    ends = reader.end_offsets(list(starts))
    for batch in reader.read(starts, ends):
        yield from batch


def records(settings: Settings, role: str) -> Iterator[Record]:
    """All committed records of a topic as it is now. Raises `TopicError`."""
    with Admin(settings.kafka) as admin:
        starts = admin.start_offsets(admin.partitions(settings.kafka.topic(role)))
    with closing(LogReader(settings.kafka)) as reader:
        yield from committed(reader, starts)


def standing(settings: Settings) -> Standing:
    """The roles that `models` gives now. Raises `TopicError` and `BrokerUnavailable`."""
    return read_standing(records(settings, "models"))


def item_names(settings: Settings, hashes: Collection[int]) -> dict[int, str]:
    """Titles, or else ids, of the items with these hashes, from the `items` topic."""
    wanted = [r for r in records(settings, "items") if r.key and hash_id(r.key) in hashes]
    ids = {hash_id(r.key): r.key.decode(errors="replace") for r in wanted if r.key}
    items = (message for message in decode_items(wanted, settings.messages).accepted)
    return ids | {hash_id(i.item): _named(i) for i in items if isinstance(i, Item)}


def describe(
    layout: Layout, value: bytes, actions: Sequence[str], names: Mapping[int, str]
) -> dict[str, Any]:
    """The record in plain types, ready for JSON; the support set newest first.

    `actions` are the model's; `names` maps item hashes to titles.
    """
    records = layout.decode([value])
    record = records[0]
    support = record["support"][record["support"]["item"] != 0]
    status = record["impressions"]["status"]
    return {
        "bytes": len(value),
        "shots": int(record["shots"]),
        "state_version": int(record["state_version"]),
        "model_hash": f"{int(record['model']):016x}",
        "first_time": instant(int(record["first_time"])) if record["shots"] else None,
        "last_time": instant(int(record["last_time"])) if record["shots"] else None,
        "seen_items": int(np.count_nonzero(np.unique(seen_hashes(records)))),
        "profile": int((profile_buckets(records) >= 0).sum()),
        "impressions": {
            "waiting": int((status == PENDING).sum()),
            "ignored": int((status == IGNORED).sum()),
        },
        "adapter": _norms(layout, records),
        "support": [_event(event, actions, names) for event in support],
    }


def lines(user: str, partition: int, found: Mapping[str, Any]) -> Iterator[str]:
    """The description as lines of text; `found` may hold the last list as `list`."""
    yield f"user {printable(user)}: {found['shots']} shots, {found['seen_items']} items seen"
    yield f"  record         {found['bytes']} bytes in partition {partition} of the state topic"
    yield f"  state version  {found['state_version']}"
    yield f"  model          {found.get('model_version') or found['model_hash']}"
    yield f"  events         {found['first_time']} to {found['last_time']}"
    waiting, ignored = found["impressions"]["waiting"], found["impressions"]["ignored"]
    yield f"  impressions    {waiting} waiting, {ignored} ignored"
    yield f"  profile        {found['profile']} attributes"
    norms = found["adapter"] or {}
    text = ", ".join(f"|{name}| {norm:.3f}" for name, norm in norms.items())
    yield f"  adapter        {text or 'none of these dimensions; name the model with --bundle'}"
    yield f"  support        {len(found['support'])} events, newest first"
    for event in found["support"]:
        item = printable(event["item"])
        yield f"    {event['time']}  {event['action']:<12} {event['value']:+.2f}  {item}"
    if found.get("list"):
        yield from list_lines(found["list"])


def list_lines(published: Mapping[str, Any]) -> Iterator[str]:
    """A published list as lines of text: where it comes from, then the best ten."""
    cause, items = published["caused_by"], published["items"]
    why = (
        f"event {printable(cause['event_id'])} at offset {cause['offset']}" if cause else "no event"
    )
    yield (
        f"  last list      {len(items)} items of {instant(published['generated_at'])}, "
        f"{published['strategy']}, version {published['state_version']}, caused by {why}"
    )
    for entry in items[:_SHOWN]:
        name = printable(entry.get("title") or entry["item"])
        yield f"    {entry['rank']:>2}  {entry['score']:8.3f}  {name}"


def _event(event: Any, actions: Sequence[str], names: Mapping[int, str]) -> dict[str, Any]:
    item, action = int(event["item"]), int(event["action"])
    return {
        "time": instant(int(event["time"])),
        "action": actions[action] if action < len(actions) else "unknown",
        "value": round(float(event["value"]), 6),
        "item": names.get(item, f"#{item:016x}"),
    }


def _norms(layout: Layout, records: Any) -> dict[str, float] | None:
    """The Euclidean norm of each field of the adapter; None where there is no adapter."""
    if not has_adapter(records)[0]:
        return None
    state = layout.adapter_state(records)
    return {k: float(v.norm()) for k, v in state.items() if v.is_floating_point() and v.dim() > 1}


def _named(item: Item) -> str:
    title = next((f.value for f in item.fields if f.name == "title"), None)
    return f"{title} ({item.item})" if isinstance(title, str) else item.item
