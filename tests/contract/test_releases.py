"""The records of `models`: what is written satisfies the schema, what is read is checked."""

from __future__ import annotations

import json

import jsonschema
import msgspec
import pytest

from stream.messages import schema
from stream.ports import Record
from stream.releases import ModelRef, Release, ReleaseRefused, encode_release, read_release

CHAMPION = Release(
    role="champion",
    version="20260301T120000Z-a1b2",
    bundle="s3://models/a1b2",
    parent=ModelRef(version="20260222T120000Z-0f9e", bundle="s3://models/0f9e"),
    reason="gate",
    published_at=1_772_366_400_000,
    gate={"promoted": True},
)


def record(key: bytes | None, value: bytes | None) -> Record:
    """A record of `models`."""
    return Record("models", 0, 0, 1_772_366_400_000, key, value)


@pytest.mark.parametrize(
    "release",
    [
        CHAMPION,
        msgspec.structs.replace(CHAMPION, reason="first", parent=None, gate=None),
        msgspec.structs.replace(CHAMPION, role="challenger", share=0.05, reason="canary"),
        msgspec.structs.replace(CHAMPION, reason="forced", note="an outage"),
    ],
)
def test_a_release_satisfies_its_schema_and_is_read_back(release: Release) -> None:
    """What is written is what is read, and what the schema says."""
    key, value = encode_release(release)
    jsonschema.Draft202012Validator(schema("model")).validate(json.loads(value))
    assert read_release(record(key, value)) == (release.role, release)


def test_a_challenger_is_withdrawn_by_a_null() -> None:
    """A null under `challenger` means that there is none."""
    assert read_release(record(b"challenger", None)) == ("challenger", None)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        (None, None, "key"),
        (b"chief", None, "key"),
        (b"champion", None, "withdrawn"),
        (b"champion", b"{", "truncated"),
        (b"champion", b'{"role": "champion"}', "version"),
        (b"challenger", encode_release(CHAMPION)[1], "role"),
        (b"champion", encode_release(CHAMPION)[1].replace(b'"share":1.0', b'"share":0.5'), "share"),
        (
            b"champion",
            encode_release(CHAMPION)[1].replace(b'"schema_version":1', b'"schema_version":2'),
            "schema_version",
        ),
    ],
)
def test_what_names_no_bundle_is_refused_with_the_field(
    key: bytes | None, value: bytes | None, named: str
) -> None:
    """Strange keys and values are refused, and the reason names what is wrong."""
    with pytest.raises(ReleaseRefused, match=named):
        read_release(record(key, value))
