"""Valid messages and records, which are then damaged."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

from adapters.signals import counter_width
from adapters.types import ModelConfig
from benchmarks.user_records import user_records
from stream.murmur2 import partition_of
from stream.ports import Record
from stream.signal_records import SignalCodec

NOW = 1_700_000_000_000


def _bytes(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode()


def _event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"event": kind, "id": "e1", "timestamp": NOW, "user": "u1", **fields}


CLICK = _event("interaction", item="i1", type="click")
EVENTS = tuple(
    map(
        _bytes,
        (
            CLICK,
            _event("interaction", item="i2", type="rating", value=4.5, session="s"),
            _event(
                "interaction", item="ü", type="dwell", value=12, timestamp="2023-11-14T22:13:20Z"
            ),
            _event("interaction", item="i3", type="dislike", fields=[], timestamp=str(NOW)),
            _event("ranking", items=["i1", "i2", "i1"]),
            _event("ranking", items=[f"film-{n}" for n in range(200)]),
            _event(
                "user", fields=[{"name": "age", "value": 31}, {"name": "tags", "value": ["a", 2]}]
            ),
            _event("forget"),
        ),
    )
)
ITEM: dict[str, Any] = {
    "event": "item",
    "id": "m1",
    "timestamp": NOW,
    "item": "u1",
    "fields": [
        {"name": "title", "value": "A film"},
        {"name": "category", "value": ["Drama", "Crime"]},
        {"name": "year", "value": 1994},
        {"name": "score", "value": 7.25},
        {"name": "seen", "value": True},
        {"name": "none", "value": None},
        {"name": "image_embedding", "value": [0.5, -1, 2e-3]},
    ],
}
ITEMS = (
    _bytes(ITEM),
    _bytes({**ITEM, "fields": []}),
    _bytes({**ITEM, "fields": ITEM["fields"][:2]}),
)
KEYS: tuple[bytes | None, ...] = (*8 * (b"u1",), b"", None, b"u2", b"\xff", b"_cold")
KEYS_KNOWN = (b"u1", b"film", "ü".encode())

# -- CloudEvents ---------------------------------------------------------------------------------

_CLOUD = {"specversion": "1.0", "id": "1", "source": "/a", "type": "t"}
CLOUD_EVENTS = (
    _bytes({**_CLOUD, "data": CLICK}),
    _bytes({**_CLOUD, "data_base64": base64.b64encode(EVENTS[1]).decode()}),
    *EVENTS[:3],
)
STRUCTURED = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)
NO_HEADERS: tuple[Any, ...] = ((), (), (), STRUCTURED)
HEADER_NAMES = (b"content-type", b"ce_type", b"Content-Type", b"")
HEADER_VALUES = (b"application/cloudevents+json", b"application/json", b"", b"\xff")

# -- neighbours that must come out ---------------------------------------------------------------


def _sound(value: bytes, headers: Any = ()) -> Record:
    return Record("events", partition_of(b"u1", 8), 7, NOW, b"u1", value, headers)


CLICK_RECORD, ITEM_RECORD = _sound(EVENTS[0]), _sound(ITEMS[0])
CLOUD_RECORD = _sound(CLOUD_EVENTS[0], STRUCTURED)

# -- records -------------------------------------------------------------------------------------


def _signals() -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    config, random = ModelConfig(), np.random.default_rng(1)
    codec, rows = SignalCodec(config), 4
    times = random.random(rows) * 1e9
    counts = random.random((rows, counter_width(config)), np.float32)
    items = random.integers(0, 2**63, (rows, config.neighbours)).astype(np.uint64)
    items[0, 3:] = 0
    weights = random.random(items.shape, np.float32)
    return (
        tuple(codec.encode_counters(counts, times)),
        tuple(codec.encode_neighbours(items, weights, times)),
    )


COUNTERS, NEIGHBOURS = _signals()
USER_RECORDS = (*user_records(3, events=10), *user_records(2, events=90), b"")
