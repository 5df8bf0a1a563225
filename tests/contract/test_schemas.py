"""The JSON Schemas, held against what leaves, what is accepted and what the docs say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream import messages as m
from stream import movietweetings
from stream.config import Messages, default_actions
from stream.message_encoding import SCHEMAS
from stream.ports import Record

DOCS = (Path(__file__).parents[2] / "docs" / "messages.md").read_text()
EXAMPLES = re.findall(r"^```json (\w+)\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
NOW = 1_772_366_400_000
_unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)


def validate(name: str, message: Any) -> None:
    """Raises where the message breaks its schema."""
    jsonschema.Draft202012Validator(m.schema(name)).validate(message)


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_schemas(name: str) -> None:
    """Every schema is valid 2020-12 and names itself."""
    found = m.schema(name)
    jsonschema.Draft202012Validator.check_schema(found)
    assert found["$id"] == f"urn:innerloop:schema:{name}"


@pytest.mark.parametrize(("name", "text"), EXAMPLES)
def test_examples_of_the_docs_are_valid(name: str, text: str) -> None:
    """Examples satisfy their schema, and those that come in are accepted by the decoder."""
    message = json.loads(text)
    validate(name, message)
    key = str(message.get("item" if name == "item" else "user")).encode()
    record = Record("topic", 0, 0, NOW + 60_000, key, text.encode())
    if name == "item":
        assert len(m.decode_items([record], Messages()).accepted) == 1
    elif name not in ("recommendation", "model", "retraining", "dead_letter"):
        assert len(m.decode_events([record], Messages(), 1).accepted) == 1


def test_the_docs_show_every_message_reason_and_action() -> None:
    """No message, reason or action is left undocumented."""
    assert {name for name, _ in EXAMPLES} == set(SCHEMAS)
    for word in [*m.Reason, *m.Skip, *default_actions()]:
        assert f"\n| `{word}` |" in DOCS


def test_the_schema_knows_every_reason() -> None:
    """Reasons of the code and of the schema are the same."""
    reasons = m.schema("dead_letter")["properties"]["reason"]["enum"]
    assert set(reasons) == {reason.value for reason in m.Reason}


_ids = st.text(min_size=1, max_size=20)


@_unhurried
@given(
    st.lists(_ids, max_size=5),
    st.floats(width=32),
    _ids,
    st.booleans(),
)
def test_every_list_that_leaves_is_valid(
    items: list[str], score: float, user: str, caused: bool
) -> None:
    """Any ids and scores, not finite ones included, give a valid list."""
    cause = m.Cause("e1", NOW, "events", 3, 991) if caused else None
    scores = np.full(len(items), score, np.float32)
    encoded = m.encode_recommendation(
        user, items, scores, "adapted", 1, 2, "v", NOW, NOW + 1, cause
    )
    validate("recommendation", json.loads(encoded))


@_unhurried
@given(st.sampled_from(m.Reason), st.text(), st.integers(-1, 2**40))
def test_every_dead_letter_is_valid(reason: m.Reason, detail: str, timestamp: int) -> None:
    """Headers of any dead letter satisfy their schema."""
    fate = m.dead_letter(Record("events", 1, 2, timestamp, None, b"x"), reason, detail)
    headers = {name: value.decode("utf-8", "ignore") for name, value in fate.headers}
    validate("dead_letter", headers)


def test_events_and_items_of_our_own_are_valid() -> None:
    """What `load movietweetings` and `encode` send satisfies the schemas."""
    for item in movietweetings.items()[:50]:
        validate("item", json.loads(m.encode(item)))
    for event in movietweetings.events()[:50]:
        validate("interaction", json.loads(m.encode(event)))
    validate("forget", json.loads(m.encode(m.Forget(id="e", timestamp=NOW, user="u"))))
    validate(
        "ranking", json.loads(m.encode(m.Ranking(id="e", timestamp=NOW, user="u", items=["a"])))
    )
    profile = m.User(id="e", timestamp=NOW, user="u", fields=[m.Field(name="age", value=31)])
    validate("user", json.loads(m.encode(profile)))
