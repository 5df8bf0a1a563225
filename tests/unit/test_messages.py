"""What becomes of messages that come in."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream import messages as m
from stream.config import Action, Messages, default_actions
from stream.murmur2 import partition_of
from stream.ports import Record

NOW = 1_700_000_000_000
SETTINGS = Messages()
PARTITIONS = 8
_unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

CLICK = {
    "event": "interaction",
    "id": "e1",
    "timestamp": NOW,
    "user": "u1",
    "item": "i1",
    "type": "click",
}
RANKING = {"event": "ranking", "id": "e2", "timestamp": NOW, "user": "u1", "items": ["i1", "i2"]}
ITEM = {
    "event": "item",
    "id": "m1",
    "timestamp": NOW,
    "item": "i1",
    "fields": [{"name": "title", "value": "A film"}],
}


def record(
    value: Mapping[str, Any] | bytes | None,
    key: bytes | None = b"u1",
    *,
    timestamp: int = NOW,
    headers: tuple[tuple[str, bytes | None], ...] = (),
) -> Record:
    """A record of `events` on the right partition."""
    raw = json.dumps(value).encode() if isinstance(value, Mapping) else value
    return Record("events", partition_of(key or b"", PARTITIONS), 7, timestamp, key, raw, headers)


def decode(*records: Record, allowed: Messages = SETTINGS) -> m.DecodedBatch:
    """The batch of these records."""
    return m.decode_events(records, allowed, PARTITIONS)


def reason(one: Record, allowed: Messages = SETTINGS) -> str | None:
    """Why a record is dead between two healthy neighbours, which must survive; None = accepted."""
    good = record(CLICK)
    batch = decode(good, one, good, allowed=allowed)
    assert [p for p in batch.places if p != 1] == [0, 2]
    assert len(batch.accepted) + len(batch.dead) + batch.skipped.total() == 3
    if not batch.dead:
        return None
    (dead,) = batch.dead
    assert dead.place == 1
    assert dead.record is one
    assert dead.detail.endswith(".")
    return dead.reason.value


MALFORMED: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"click", "not_json"),
    "cut off": (b'{"event": "interaction", "id": "e', "not_json"),
    "two objects": (json.dumps(CLICK).encode() * 2, "not_json"),
    "NaN": (b'{"event":"interaction","value":NaN}', "not_json"),
    "Infinity": (b'{"event":"interaction","value":-Infinity}', "not_json"),
    "byte order mark": (b"\xef\xbb\xbf" + json.dumps(CLICK).encode(), "not_json"),
    "lone surrogate": (json.dumps({**CLICK, "item": "\ud800"}).encode(), "not_json"),
    "Latin-1": (
        json.dumps({**CLICK, "item": "é"}, ensure_ascii=False).encode("latin-1"),
        "not_utf8",
    ),
    "zeros": (bytes(10), "not_json"),
    "an array": (b"[]", "wrong_type"),
    "a number": (b"1", "wrong_type"),
    "null inside": (b"null", "wrong_type"),
    "deep": (b'{"event":"user","x":' + b"[" * 30_000 + b"]" * 30_000 + b"}", "too_deep"),
    "1e400": (json.dumps({**CLICK, "value": 1}).replace(": 1}", ": 1e400}").encode(), "not_finite"),
    "400 digits": (
        json.dumps({**CLICK, "value": 1}).replace(": 1}", ": 1" + "0" * 400 + "}").encode(),
        "not_finite",
    ),
    "oversized": (json.dumps({**CLICK, "x": "x" * 70_000}).encode(), "oversized"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_bytes_are_dead_letters(name: str) -> None:
    """Bytes that are no message end as a dead letter with their reason, neighbours unharmed."""
    value, expected = MALFORMED[name]
    assert reason(record(value)) == expected


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "event of no type": ({"event": 3}, "wrong_type"),
    "unknown event": ({"event": "purchase"}, "unknown_event"),
    "item among events": ({"event": "item"}, "unknown_event"),
    "id a number": ({"id": 5}, "wrong_type"),
    "user null": ({"user": None}, "wrong_type"),
    "value a string": ({"value": "5"}, "wrong_type"),
    "value a boolean": ({"value": True}, "wrong_type"),
    "item a list": ({"item": ["i1"]}, "wrong_type"),
    "empty item": ({"item": ""}, "empty_id"),
    "empty event id": ({"id": ""}, "empty_id"),
    "long item": ({"item": "x" * 257}, "id_too_long"),
    "long in bytes": ({"item": "é" * 129}, "id_too_long"),
    "long event id": ({"id": "x" * 300}, "id_too_long"),
    "unknown action": ({"type": "hover"}, "unknown_action"),
    "rating without value": ({"type": "rating"}, "value_missing"),
    "time a fraction": ({"timestamp": NOW + 0.5}, "timestamp_invalid"),
    "time null": ({"timestamp": None}, "timestamp_invalid"),
    "time true": ({"timestamp": True}, "timestamp_invalid"),
    "time negative": ({"timestamp": -1}, "timestamp_invalid"),
    "time in seconds": ({"timestamp": NOW // 1000}, "timestamp_unit"),
    "time in microseconds": ({"timestamp": NOW * 1000}, "timestamp_future"),
    "time of 400 digits": ({"timestamp": 10**400}, "timestamp_future"),
    "time words": ({"timestamp": "yesterday"}, "timestamp_invalid"),
    "time without zone": ({"timestamp": "2023-11-14T22:13:20"}, "timestamp_invalid"),
    "time on 30 February": ({"timestamp": "2023-02-30T22:13:20Z"}, "timestamp_invalid"),
    "time in the future": ({"timestamp": NOW + 600_001}, "timestamp_future"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_absurd_fields_are_dead_letters(name: str) -> None:
    """A message that is JSON but absurd ends as a dead letter, neighbours unharmed."""
    change, expected = CHANGES[name]
    assert reason(record({**CLICK, **change})) == expected


@pytest.mark.parametrize("name", ["event", "id", "timestamp", "user", "item", "type"])
def test_missing_fields_are_dead_letters(name: str) -> None:
    """Every required field is required."""
    assert reason(record({k: v for k, v in CLICK.items() if k != name})) == "missing_field"


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (record(CLICK, None), "key_missing"),
        (record(CLICK, b""), "key_mismatch"),
        (record(CLICK, b"u2"), "key_mismatch"),
        (record(CLICK, b"\xff"), "key_mismatch"),
        (record({**CLICK, "user": "_cold"}, b"_cold"), "reserved_id"),
        (record({**CLICK, "user": ""}, b""), "empty_id"),
        (record({**CLICK, "user": "u" * 257}, b"u" * 257), "id_too_long"),
    ],
)
def test_keys_and_users_are_checked(one: Record, expected: str) -> None:
    """The key is the user's id, and the id is a sound one."""
    assert reason(one) == expected


def test_the_largest_id_is_accepted() -> None:
    """An id of exactly the allowed bytes passes."""
    assert reason(record({**CLICK, "user": "é" * 128}, ("é" * 128).encode())) is None


@pytest.mark.parametrize("value", [None, b""])
def test_empty_values_are_skipped(value: bytes | None) -> None:
    """A null or empty value is counted and nothing else."""
    batch = decode(record(value))
    assert batch.skipped == {m.Skip.EMPTY: 1}
    assert not batch.dead


def test_an_action_of_weight_zero_is_skipped() -> None:
    """Weight 0 silences an action without dead letters."""
    silent = Messages(actions={**default_actions(), "hover": Action(weight=0)})
    batch = decode(record({**CLICK, "type": "hover"}), allowed=silent)
    assert batch.skipped == {m.Skip.IGNORED_ACTION: 1}


def test_unknown_fields_are_ignored() -> None:
    """Fields this version does not know do no harm, and the last of repeated keys counts."""
    raw = json.dumps({**CLICK, "novel": {"a": [1, None]}, "fields": []}).encode()
    batch = decode(record(raw[:-1] + b', "item": "i9"}'))
    assert batch.accepted == [m.Interaction(**{**_fields(CLICK), "item": "i9"})]


def test_rfc_3339_becomes_milliseconds() -> None:
    """Strings with a zone and digits are read as the same moment."""
    texts = ["2023-11-14T22:13:20Z", "2023-11-14t23:13:20.000+01:00", str(NOW)]
    batch = decode(*(record({**CLICK, "timestamp": text}) for text in texts))
    assert [e.timestamp for e in batch.accepted] == [NOW] * 3


def test_far_past_is_refused_where_configured_only() -> None:
    """Old events pass by default and are dead letters beyond `past_ms`."""
    old = record({**CLICK, "timestamp": 1_362_062_307_000})
    assert reason(old) is None
    assert reason(old, Messages(past_ms=86_400_000)) == "timestamp_past"


def test_a_record_without_timestamp_is_held_against_the_clock() -> None:
    """A record timestamp of -1 is replaced by the clock that is handed in, if any."""
    one = record(CLICK, timestamp=-1)
    assert not m.decode_events([one], SETTINGS, PARTITIONS).dead
    dead = m.decode_events([one], SETTINGS, PARTITIONS, clock_ms=NOW - 3_600_000).dead
    assert [d.reason for d in dead] == [m.Reason.TIMESTAMP_FUTURE]


def test_rankings_are_bounded_and_lose_repeats() -> None:
    """Too long a ranking is a dead letter, an empty one a skip, repeats keep their first place."""
    long = {**RANKING, "items": [f"i{n}" for n in range(201)]}
    assert reason(record(long)) == "ranking_too_long"
    assert reason(record({**RANKING, "items": ["i1", ""]})) == "empty_id"
    batch = decode(record({**RANKING, "items": ["b", "a", "b"]}), record({**RANKING, "items": []}))
    assert [e.items for e in batch.accepted if isinstance(e, m.Ranking)] == [["b", "a"]]
    assert batch.skipped == {m.Skip.EMPTY_RANKING: 1}


def test_all_events_are_read() -> None:
    """The four kinds of events come out as their structs, in the order of their records."""
    profile = {**_base("user"), "fields": [{"name": "age", "value": 31}]}
    batch = decode(record(CLICK), record(RANKING), record(profile), record(_base("forget")))
    assert [type(e) for e in batch.accepted] == [m.Interaction, m.Ranking, m.User, m.Forget]
    assert batch.places == [0, 1, 2, 3]


def test_cloud_events_are_tolerated() -> None:
    """Binary mode is read as it is, structured mode is unwrapped, text or base64."""
    kind = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)
    encoded = base64.b64encode(json.dumps(CLICK).encode()).decode()
    envelope = {"specversion": "1.0", "id": "c", "source": "/s", "type": "t"}
    batch = decode(
        record(CLICK, headers=(("ce_id", b"c"), ("content-type", b"application/json"))),
        record({**envelope, "data": CLICK}, headers=kind),
        record({**envelope, "data_base64": encoded}, headers=kind),
    )
    assert len(batch.accepted) == 3
    assert reason(record(envelope, headers=kind)) == "cloud_event"
    assert reason(record({**envelope, "data_base64": "*"}, headers=kind)) == "cloud_event"
    assert reason(record(b"{", headers=kind)) == "not_json"
    assert reason(record({**envelope, "data": 3}, headers=(("Content-Type", None),))) is not None


def test_records_off_their_partition_are_counted_not_dropped() -> None:
    """A record on a partition that is not its key's is accepted and counted."""
    one = record(CLICK)
    batch = decode(one, one._replace(partition=(one.partition + 1) % PARTITIONS))
    assert batch.misrouted == 1
    assert len(batch.accepted) == 2


@_unhurried
@given(st.lists(st.binary(max_size=60) | st.none(), max_size=8))
def test_arbitrary_bytes_never_raise(values: list[bytes | None]) -> None:
    """Whatever the bytes are, each record ends in exactly one place and neighbours survive."""
    good = record(CLICK)
    batch = decode(good, *(record(value) for value in values), good)
    assert len(batch.accepted) + len(batch.dead) + batch.skipped.total() == len(values) + 2
    assert batch.places[0] == 0
    assert batch.places[-1] == len(values) + 1


_scalar = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
_json = _scalar | st.lists(_scalar, max_size=3) | st.dictionaries(st.text(max_size=3), _scalar)


@_unhurried
@given(
    st.sampled_from([CLICK, RANKING, {**ITEM, "user": "u1"}]),
    st.dictionaries(st.sampled_from([*CLICK, "items", "fields", "value"]), _json, max_size=3),
)
def test_arbitrary_json_never_raises(base: dict[str, Any], change: dict[str, Any]) -> None:
    """Any JSON in any field is accepted, dead or skipped, on both topics."""
    one = record({**base, **change})
    reason(one)
    items = m.decode_items([one, one], SETTINGS)
    assert len(items.accepted) + len(items.dead) == 2


def test_items_and_their_deletions_are_read() -> None:
    """An item is read, and a null value under its id is a deletion."""
    batch = m.decode_items([record(ITEM, b"i1"), record(None, b"i2")], SETTINGS)
    assert [type(x) for x in batch.accepted] == [m.Item, m.Deletion]
    assert [x.item for x in batch.accepted] == ["i1", "i2"]


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (record(ITEM, b"i2"), "key_mismatch"),
        (record(ITEM, None), "key_missing"),
        (record(None, None), "key_missing"),
        (record(None, b""), "empty_id"),
        (record(None, b"\xff"), "not_utf8"),
        (record(b"", b"i1"), "not_json"),
        (record(CLICK, b"i1"), "unknown_event"),
        (record({**ITEM, "fields": [{"name": "n"}]}, b"i1"), "missing_field"),
        (record({**ITEM, "fields": [{"name": "n", "value": {}}]}, b"i1"), "wrong_type"),
        (record({**ITEM, "fields": [{"name": "n", "value": [10**400]}]}, b"i1"), "not_finite"),
    ],
)
def test_bad_items_are_dead_letters(one: Record, expected: str) -> None:
    """An item that cannot be used has a reason, and its neighbours survive."""
    good = record(ITEM, b"i1")
    batch = m.decode_items([good, one, good], SETTINGS)
    assert batch.places == [0, 2]
    assert [d.reason.value for d in batch.dead] == [expected]


def _base(event: str) -> dict[str, Any]:
    return {"event": event, "id": "e", "timestamp": NOW, "user": "u1"}


def _fields(message: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in message.items() if k != "event"}
