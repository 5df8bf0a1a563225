"""`innerloop promote` before it meets a broker: options, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream.commands import promote
from stream.errors import ConfigError, DataError, ReleaseError
from stream.model_tables import gate_line, model_rows, models_json, verdict_lines
from stream.online import compared, read_rates
from stream.releases import ModelRef, Release
from stream.succession import Standing
from tests.unit.small_training import invoke, said

CHANGE = {"mean": 0.012, "low": -0.004, "high": 0.028}
WORSE = {"mean": -0.04, "low": -0.06, "high": -0.02}


def cohort(name: str, change: dict[str, float] | None, **told: Any) -> dict[str, Any]:
    """A row of a verdict."""
    row = {"name": name, "positions": 900, "users": 90, "challenger": 0.12, "champion": 0.11}
    champion = None if change is None else 0.11
    row |= {"counts": True, "passed": True, "champion": champion, "change": change}
    return row | told


GATE: dict[str, Any] = {
    "promoted": False,
    "reasons": ["at 8-15 shots nDCG@10 changes by -4.0%"],
    "champion": "a",
    "slice": {"first": "2013-08-27T22:02:20+00:00", "last": "2013-09-01T20:27:45+00:00"},
    "cohorts": [
        cohort("all", CHANGE),
        cohort("8-15", WORSE, passed=False),
        cohort("64+", WORSE, counts=False, positions=40),
    ],
    "baselines": [{"name": "recency popularity (7 d)", "ndcg": 0.1, "lead": CHANGE}],
}


def release(version: str, **told: Any) -> Release:
    """A champion, unless told otherwise."""
    given = {"role": "champion", "reason": "gate", "published_at": 1_772_366_400_000} | told
    return Release(version=version, bundle=f"s3://models/{version}", **given)


ROLES = Standing(
    champion=release(
        "b", parent=ModelRef(version="a", bundle="s3://models/a"), gate=GATE, note="an\noutage"
    ),
    challenger=release("c", role="challenger", share=0.05, reason="canary"),
    before=(release("a", reason="first"),),
)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "what"),
        (("model", "--challenger"), "what"),
        (("model", "--force"), "--reason"),
        (("--challenger", "--canary", "5%"), "--canary"),
        (("model", "--canary", "0%"), "5%"),
        (("model", "--canary", "100%"), "5%"),
        (("model", "--canary", "some"), "5%"),
        (("model", "--canary", "-3"), "5%"),
        (("model", "--events", "movietweetings"), "--items"),
        (("model", "--items", "movietweetings"), "--events"),
        (("model", "--from-kafka", "--events", "a", "--items", "b"), "--from-kafka"),
        (("model", "--window", "3d"), "--from-kafka"),
        (("model", "--from-kafka", "--window", "long"), "30d"),
        (("model", "--from", "yesterday"), "no time"),
        (("model", "--online", "rates.json"), "--challenger"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: tuple[str, ...], named: str) -> None:
    """One line names the option and the remedy, before anything is read."""
    error = said(invoke(promote.app, *arguments))
    assert isinstance(error, ConfigError)
    assert named in str(error)
    assert len(str(error).splitlines()) == 1


def test_the_verdict_shows_every_cohort_and_baseline() -> None:
    """A cohort that lost and one that is too small are marked; figures carry their interval."""
    lines = list(verdict_lines(GATE))
    assert "2013-08-27" in lines[0]
    assert any(line.startswith("all") and "+1.2% (-0.4% to +2.8%)" in line for line in lines)
    assert any(line.startswith("8-15") and line.endswith("worse") for line in lines)
    assert any(line.startswith("64+") and line.endswith("too few to count") for line in lines)
    assert any(line.startswith("recency popularity (7 d)") for line in lines)
    assert list(verdict_lines({"promoted": False, "reasons": ["not judged"]})) == []


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (None, "-"),
        (GATE, "refused, +1.2% (-0.4% to +2.8%)"),
        ({**GATE, "promoted": True}, "passed, +1.2% (-0.4% to +2.8%)"),
        ({"promoted": True, "cohorts": [cohort("all", None)]}, "passed, no champion yet"),
        ({"promoted": False, "reasons": ["not judged"]}, "not judged"),
    ],
)
def test_a_verdict_in_a_few_words(gate: dict[str, Any] | None, words: str) -> None:
    """Whether it passed, and by how much."""
    assert gate_line(gate) == words


def test_the_table_of_models_has_who_serves_and_who_served() -> None:
    """Champion, challenger with its share, then earlier ones; words of people are made harmless."""
    rows = model_rows(ROLES)
    assert [row[:3] for row in rows[1:]] == [
        ("champion", "b", "100%"),
        ("challenger", "c", "5%"),
        ("before", "a", "100%"),
    ]
    assert rows[1][4] == "gate: an\\noutage"
    assert rows[3][4:6] == ("first", "-")


def test_a_parent_without_a_record_is_in_the_table() -> None:
    """Compaction took the record that made it champion; a rollback still finds it."""
    rows = model_rows(Standing(champion=ROLES.champion))
    assert [row[1] for row in rows[1:]] == ["b", "a"]


def test_models_as_json_carry_all_figures() -> None:
    """Plain types, with the whole verdict."""
    found = json.loads(json.dumps(models_json(ROLES)))
    assert found["champion"]["gate"]["cohorts"][1]["name"] == "8-15"
    assert [found["challenger"]["share"], found["before"][0]["version"]] == [0.05, "a"]


# -- online -------------------------------------------------------------------------------------


def rates(tmp_path: Path, content: object) -> Path:
    """A file of hit rates."""
    path = tmp_path / "rates.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_hit_rates_are_compared_with_their_interval(tmp_path: Path) -> None:
    """A challenger whose users hit twice as often is ahead, and by how much is said."""
    rng = np.random.default_rng(0)
    found = {"b": rng.binomial(5, 0.1, 2_000) / 5, "c": rng.binomial(5, 0.2, 300) / 5}
    path = rates(tmp_path, {name: values.tolist() for name, values in found.items()})
    line = compared(read_rates(path), ROLES)
    assert "challenger is ahead of the champion" in line
    assert "of 300 users" in line


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "not JSON"),
        ([1, 2], "no object"),
        ({"b": "many"}, "b has no list"),
        ({"b": [[0.5]]}, "b has no list"),
        ({"b": [0.5, 2.0]}, "b has no list"),
    ],
)
def test_rates_that_are_none_are_refused(tmp_path: Path, content: object, named: str) -> None:
    """The file, the model and the right form are named."""
    with pytest.raises(DataError, match=named) as caught:
        read_rates(rates(tmp_path, content))
    assert "hit rate of each user" in str(caught.value)


def test_too_few_users_say_nothing(tmp_path: Path) -> None:
    """A canary of a few users has no interval worth printing; a missing file is named."""
    path = rates(tmp_path, {"b": [0.1] * 99, "c": [0.2] * 9})
    with pytest.raises(DataError, match="9 users of the challenger c"):
        compared(read_rates(path), ROLES)
    with pytest.raises(ReleaseError, match="no challenger"):
        compared(read_rates(path), Standing(champion=ROLES.champion))
    with pytest.raises(DataError, match="nowhere"):
        read_rates(tmp_path / "nowhere")
