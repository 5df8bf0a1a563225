"""What `innerloop inspect` says about a record."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from adapters.types import ModelConfig
from stream import inspection
from stream.ports import TopicPartition
from stream.testing import MemoryLog, MemoryReader
from stream.user_state import Events, Layout, fold_events, hash_id, stamp

LAYOUT = Layout.of(ModelConfig())
FILMS = ["alien", "heat"]
NAMES = {hash_id("alien"): "Alien (alien)"}


@pytest.fixture
def record() -> bytes:
    """A user who clicked one film and disliked another."""
    events = Events(
        items=np.array([[hash_id(film) for film in FILMS]], np.uint64),
        actions=np.array([[0, 9]], np.uint8),
        values=np.array([[1.0, -2.0]], np.float32),
        times=np.array([[0, 2**62]], np.int64),
        ids=np.array([[1, 2]], np.uint64),
        mask=np.ones((1, 2), bool),
    )
    records = stamp(fold_events(LAYOUT.decode([None]), events), np.array([41]), 5)
    return LAYOUT.encode(LAYOUT.set_adapter(records, LAYOUT.adapter_state(records)))[0]


def test_description_names_what_the_record_holds(record: bytes) -> None:
    """Counts, versions and the support set with titles, newest first; unknown names stay hashes."""
    found = inspection.describe(LAYOUT, record, ["click"], NAMES)
    assert (found["shots"], found["state_version"], found["seen_items"]) == (2, 42, 2)
    newest, oldest = found["support"]
    assert newest["action"] == "unknown"
    assert newest["value"] == -2.0
    assert newest["item"] == f"#{hash_id('heat'):016x}"
    assert oldest == {
        "time": "1970-01-01T00:00:00+00:00",
        "action": "click",
        "value": 1.0,
        "item": "Alien (alien)",
    }
    assert found["adapter"] == {"last": 0.0, "weight": 0.0}


def test_description_is_json_and_text(record: bytes) -> None:
    """Times beyond any calendar and adapters of other dimensions still give JSON and lines."""
    other = Layout.of(ModelConfig(dim=16))
    found = inspection.describe(other, record, [], {})
    assert found["adapter"] is None
    assert orjson.loads(orjson.dumps(found)) == found
    text = "\n".join(inspection.lines("ann", 3, found))
    assert "user ann: 2 shots" in text
    assert "--bundle" in text


def test_the_newest_value_of_a_key_counts() -> None:
    """Later records replace earlier ones, a tombstone too; other keys do not matter."""
    log = MemoryLog()
    log.create("state")
    tp, reader = TopicPartition("state", 0), MemoryReader(log)
    for key, value in [(b"ann", b"1"), (b"bob", b"2"), (b"ann", b"3")]:
        log.append("state", key, value)
    assert inspection.newest_value(reader, tp, 0, b"ann") == b"3"
    assert inspection.newest_value(reader, tp, 0, b"eve") is None
    log.append("state", b"ann", None)
    assert inspection.newest_value(reader, tp, 0, b"ann") is None
