"""What leaves: evidence, lists, dead letters, and what the model reads of items."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream import messages as m
from stream.config import Messages
from stream.ports import Record

SETTINGS = Messages()
NAMES = tuple(SETTINGS.actions)


@pytest.mark.parametrize(
    ("action", "value", "expected"),
    [
        ("click", None, 1.0),
        ("click", 9.0, 1.0),
        ("dislike", None, -2.0),
        ("rating", 5.0, 1.0),
        ("rating", 0.0, -1.0),
        ("rating", 2.5, 0.0),
        ("dwell", 60.0, 2.0),
        ("dwell", 1e308, 5.0),
        ("rating", -1e308, -5.0),
    ],
)
def test_evidence_is_weight_times_bounded_grade(
    action: str, value: float | None, expected: float
) -> None:
    """Graded actions count by their value, within bounds; others by their weight alone."""
    assert m.evidence(action, value, SETTINGS) == pytest.approx(expected)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(NAMES), st.none() | st.floats(allow_nan=False, allow_infinity=False)
        )
    )
)
def test_evidence_of_a_batch_agrees_with_one_by_one(
    events: list[tuple[str, float | None]],
) -> None:
    """The vectorised evidence equals the scalar one, and is always finite."""
    actions = np.array([NAMES.index(a) for a, _ in events], np.int64)
    values = np.array([math.nan if v is None else v for _, v in events], np.float64)
    found = m.evidence_of(actions, values, SETTINGS)
    assert found.dtype == np.float32
    expected = [m.evidence(a, v, SETTINGS) for a, v in events]
    np.testing.assert_allclose(found, np.array(expected, np.float32), rtol=1e-6)


def _lists(scores: np.ndarray, ids: list[list[str]]) -> list[dict[str, object]]:
    n = len(ids)
    encoded = m.encode_recommendations(
        [f"u{i}" for i in range(n)],
        ids,
        scores,
        strategy=["adapted"] * n,
        shots=list(np.arange(n)),
        state_versions=list(np.arange(n) + 5),
        model_version="v1",
        generated_at=1,
        expires_at=2,
        caused_by=[None] * n,
    )
    return [json.loads(one) for one in encoded]


def test_lists_keep_order_and_read_no_score_beyond_their_items() -> None:
    """Ranks start at 1, scores are rounded, and shorter lists ignore padded places."""
    scores = np.array([[1.2345678, -0.5], [0.1, -np.inf]], np.float32)
    first, second = _lists(scores, [["a", "b"], ["c"]])
    assert first["items"] == [
        {"item": "a", "score": 1.23457, "rank": 1},
        {"item": "b", "score": -0.5, "rank": 2},
    ]
    assert second["items"] == [{"item": "c", "score": 0.1, "rank": 1}]
    assert (second["shots"], second["state_version"], second["user"]) == (1, 6, "u1")


def test_scores_that_are_not_finite_leave_as_numbers() -> None:
    """JSON has neither nan nor infinity, so that a list never breaks a reader."""
    (found,) = _lists(np.array([[np.nan, np.inf, -np.inf]], np.float32), [["a", "b", "c"]])
    scores = [entry["score"] for entry in found["items"]]  # type: ignore[attr-defined]
    assert scores == [0.0, 3.4e38, -3.4e38]


def test_one_list_equals_its_batch() -> None:
    """Encoding one list gives the bytes that a batch of it gives."""
    cause = m.Cause("e1", 1, "events", 3, 991)
    one = json.loads(
        m.encode_recommendation("u0", ["a"], [0.5], "adapted", 0, 5, "v1", 1, 2, cause)
    )
    (same,) = _lists(np.array([[0.5]], np.float32), [["a"]])
    assert one.pop("caused_by") == {
        "event_id": "e1",
        "event_time": 1,
        "topic": "events",
        "partition": 3,
        "offset": 991,
    }
    same.pop("caused_by")
    assert one == same


def test_a_dead_letter_holds_the_original_and_says_why() -> None:
    """Key, value and headers of the record survive, and ours say where it was."""
    record = Record("events", 3, 991, 17, b"k", b"\xff", (("trace", b"t"), ("none", None)))
    fate = m.dead_letter(record, m.Reason.NOT_UTF8, "é" * 5_000)
    headers = dict(fate.headers)
    assert (fate.key, fate.value) == (b"k", b"\xff")
    assert headers["topic"] == b"events"
    assert headers["partition"] == b"3"
    assert headers["offset"] == b"991"
    assert headers["timestamp"] == b"17"
    assert headers["reason"] == b"not_utf8"
    assert headers["original.trace"] == b"t"
    assert headers["original.none"] == b""
    assert len(headers["detail"].decode()) < 1_100


def test_encoded_events_are_read_back() -> None:
    """What `encode` writes, the decoder reads as the same."""
    event = m.Interaction(id="e", timestamp=10**12, user="é", item='"', type="click", value=0.1)
    record = Record("events", 0, 0, 10**12, "é".encode(), m.encode(event))
    assert m.decode_events([record], SETTINGS, 1).accepted == [event]


def _item(**fields: object) -> list[m.Field]:
    return [m.Field(name=name, value=value) for name, value in fields.items()]  # type: ignore[arg-type]


def test_item_text_begins_with_title_and_category() -> None:
    """The text has a stable order and leaves out numbers, vectors and addresses."""
    fields = _item(
        plot=" A  gangster\nstory. ",
        category=["Crime", "Drama"],
        year=1912,
        image="https://x/y.png",
        vector=[0.1, 0.2],
        brand="Gaumont",
        title="Fantômas",
    )
    expected = "Fantômas. Crime, Drama. Gaumont. A gangster story"
    assert m.item_text(fields) == expected
    assert m.item_text(fields[::-1]) == expected
    assert m.item_text([]) == ""


def test_attributes_are_short_words_by_field() -> None:
    """Strings, numbers and booleans become attributes; prose, titles and vectors do not."""
    fields = _item(
        title="T",
        category=["Crime", "crime", " "],
        year=1912,
        price=12.991,
        new=True,
        gone=None,
        plot="x" * 65,
        vector=[1, 2],
    )
    assert m.attributes(fields) == ["category=crime", "new=true", "price=13", "year=1912"]


def test_vectors_are_lists_of_numbers() -> None:
    """Only non-empty lists of numbers are vectors."""
    fields = _item(a=[1, 2.5], b=["x"], c=[], d=3)
    assert m.vectors(fields) == {"a": [1.0, 2.5]}


def test_the_content_hash_follows_content_alone() -> None:
    """Order of fields does not matter, any value does, and the hash is the same everywhere."""
    fields = _item(title="T", year=1912)
    assert m.content_hash(fields) == m.content_hash(fields[::-1])
    assert m.content_hash(fields) != m.content_hash(_item(title="T", year=1913))
    assert m.content_hash(_item(title="T")) == 15634215669742909022
