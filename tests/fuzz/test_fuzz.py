"""A few thousand damaged inputs; `make fuzz` feeds a million."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.ports import Record
from tests.fuzz import corpus, targets
from tests.fuzz.__main__ import run
from tests.fuzz.targets import SHARES, Target

_unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("target", SHARES, ids=[one.__name__ for one in SHARES])
def test_damaged_input_ends_as_documented(target: Target) -> None:
    """Whatever is fed ends as a message, a dead letter, a skip or a named error, neighbours too."""
    run(target, 1_000, seed=7)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NAMES = ("event", "id", "timestamp", "user", "item", "type", "value", "items", "fields", "session")
CHANGES = st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=4)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["content-type", "Content-Type"]) | st.text(max_size=9),
        st.none() | st.sampled_from([corpus.STRUCTURED[0][1]]) | st.binary(max_size=9),
    ),
    max_size=3,
).map(tuple)
RECORDS = st.builds(
    lambda known, changes, key, at, headers: Record(
        "events", 0, 1, at, key, _changed(known, changes), headers
    ),
    st.sampled_from([*corpus.EVENTS, *corpus.ITEMS, *corpus.CLOUD_EVENTS]),
    CHANGES,
    st.just(b"u1") | st.none() | st.binary(max_size=5),
    st.just(corpus.NOW) | st.integers(-1, 2**63 - 1),
    HEADERS,
)


def _changed(known: bytes, changes: dict[str, Any]) -> bytes:
    return json.dumps({**json.loads(known), **changes}).encode("utf-8", "surrogatepass")


@_unhurried
@given(st.lists(RECORDS, max_size=8))
def test_fields_of_any_kind_end_as_documented(records: list[Record]) -> None:
    """Messages whose fields, keys, times and headers may be anything never raise."""
    targets.check_events(records)
    targets.check_items(records)


@_unhurried
@given(st.lists(st.binary(max_size=200) | st.sampled_from(corpus.EVENTS), max_size=8))
def test_bytes_of_any_kind_end_as_documented(values: list[bytes]) -> None:
    """Values that are any bytes never raise, as events or as items."""
    records = [Record("events", 0, 1, corpus.NOW, b"u1", value) for value in values]
    targets.check_events(records)
    targets.check_items(records)


def test_the_command_counts_its_inputs() -> None:
    """The last line of `python -m tests.fuzz` says how many inputs there were."""
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "1000", "--seed", "3"]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert re.fullmatch(r"fuzz: \d{4} inputs, \d crashes\n", said.stdout)
