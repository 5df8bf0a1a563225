"""What is fed, and what must hold: every input ends as documented and harms no neighbour.

Each target makes one batch of inputs from chance and checks what becomes of it. `Found` names the
input that broke a rule.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import orjson

from adapters.signals import counter_width
from adapters.types import ModelConfig
from stream import messages as m
from stream.config import Messages
from stream.errors import StateError
from stream.kafka.properties import HEADROOM_BYTES
from stream.murmur2 import murmur2, murmur2_many, partition_of, partitions_of
from stream.ports import Record
from stream.signal_records import SignalCodec
from stream.user_layout import Layout
from tests.fuzz import corpus
from tests.fuzz.mutations import mutated

Target = Callable[[random.Random, int], None]
"""Feeds a number of inputs; raises `Found`."""

SETTINGS = Messages()
PARTITIONS = 8
NEIGHBOUR_EVERY = 20
LIMITS = m.Limits.of(SETTINGS, None)
CODEC = SignalCodec(ModelConfig())
LAYOUT = Layout.of(ModelConfig())


class Found(AssertionError):
    """An input that does what none should do."""

    def __init__(self, target: str, given: object, why: Exception) -> None:
        line = traceback.extract_tb(why.__traceback__)[-1].line
        super().__init__(f"{target}: {why!r} at `{line}`\n  input: {given!r}")


# -- messages ------------------------------------------------------------------------------------


def events(chance: random.Random, count: int) -> None:
    """Events whose bytes, keys and times are damaged."""
    given = [_record(chance, corpus.EVENTS, chance.choice(corpus.NO_HEADERS)) for _ in range(count)]
    check_events(given)


def check_events(given: Sequence[Record]) -> None:
    """Read records as events, sound ones among them."""
    _messages("decode_events", given, corpus.CLICK_RECORD, _decode_events, _check_event)


def items(chance: random.Random, count: int) -> None:
    """Items whose bytes, keys and times are damaged."""
    given = [_record(chance, corpus.ITEMS, chance.choice(corpus.NO_HEADERS)) for _ in range(count)]
    check_items(given)


def check_items(given: Sequence[Record]) -> None:
    """Read records as items, sound ones among them."""
    _messages("decode_items", given, corpus.ITEM_RECORD, _decode_items, _check_item)


def cloud_events(chance: random.Random, count: int) -> None:
    """CloudEvents in both modes, with damaged bodies and headers of any kind."""
    given = [_record(chance, corpus.CLOUD_EVENTS, _headers(chance)) for _ in range(count)]
    _messages("CloudEvents", given, corpus.CLOUD_RECORD, _decode_events, _check_event)


def dead_letters(chance: random.Random, count: int) -> None:
    """Records with headers, keys and values of any kind, as dead letters."""
    for _ in range(count):
        few = chance.random() < 0.999
        headers = _headers(chance) if few else chance.choice((500, 8_000)) * (("", b""),)
        record = _record(chance, corpus.EVENTS, headers)
        detail = mutated(chance, b"Field `x` is odd.", corpus.EVENTS).decode(
            errors="surrogateescape"
        )
        reason = chance.choice(list(m.Reason))
        _guarded("dead_letter", (record, detail), partial(_letter, record, reason, detail))


def _record(chance: random.Random, known: Sequence[bytes], headers: Any) -> Record:
    value = mutated(chance, chance.choice(known), known)
    key: bytes | None = chance.choice(corpus.KEYS)
    if key and chance.random() < 0.1:
        key = mutated(chance, key, corpus.KEYS_KNOWN)
    at = chance.choice((corpus.NOW, corpus.NOW, corpus.NOW, -1, 0, 2**62))
    kept = None if chance.random() < 0.01 else value
    return Record(
        "events", chance.randrange(PARTITIONS), chance.getrandbits(40), at, key, kept, headers
    )


def _headers(chance: random.Random) -> tuple[tuple[str, bytes | None], ...]:
    if chance.random() < 0.5:
        return corpus.STRUCTURED
    made = []
    for _ in range(chance.randrange(4)):
        name = mutated(chance, chance.choice(corpus.HEADER_NAMES), corpus.HEADER_NAMES)
        value = mutated(chance, chance.choice(corpus.HEADER_VALUES), corpus.HEADER_VALUES)
        made.append((name.decode(errors="replace"), None if chance.random() < 0.1 else value))
    return tuple(made)


def _messages(
    name: str,
    given: Sequence[Record],
    neighbour: Record,
    decode: Callable[[Sequence[Record]], m.Decoded[Any]],
    check: Callable[[Any], None],
) -> None:
    """Damaged records among sound ones, in one batch; alone only to name the one that fails."""

    def fed(batch: Sequence[Record]) -> None:
        _check_batch(batch, neighbour, decode(batch), check)

    batch: list[Record] = []
    for place, record in enumerate(given):
        batch += [record] if place % NEIGHBOUR_EVERY else [neighbour, record]
    try:
        fed(batch)
    except Exception:
        for record in given:
            _guarded(name, record, partial(fed, [neighbour, record, neighbour]))
        raise


def _check_batch(
    batch: Sequence[Record],
    neighbour: Record,
    out: m.Decoded[Any],
    check: Callable[[Any], None],
) -> None:
    dead = [letter.place for letter in out.dead]
    assert len(out.accepted) == len(out.places)
    assert len(batch) == len(out.places) + len(dead) + out.skipped.total()
    assert out.places == sorted(set(out.places))
    assert not set(dead) & set(out.places)
    assert {i for i, one in enumerate(batch) if one is neighbour} <= set(out.places)
    for place, message in zip(out.places, out.accepted, strict=True):
        if batch[place] is not neighbour:
            check(message)
    for letter in out.dead:
        assert batch[letter.place] is letter.record
        assert letter.detail.endswith(".")
        _letter(letter.record, letter.reason, letter.detail)


def _decode_events(batch: Sequence[Record]) -> m.DecodedBatch:
    return m.decode_events(batch, SETTINGS, PARTITIONS, clock_ms=corpus.NOW)


def _decode_items(batch: Sequence[Record]) -> m.Decoded[m.Item | m.Deletion]:
    return m.decode_items(batch, SETTINGS, clock_ms=corpus.NOW)


def _check_event(event: m.Event) -> None:
    """What is accepted is sound, and reads the same after it was written."""
    assert 0 < len(event.user.encode()) <= SETTINGS.max_id_bytes
    assert 0 <= event.timestamp < 253_402_300_800_000
    if isinstance(event, m.Interaction):
        assert np.isfinite(m.evidence(event.type, event.value, SETTINGS))
    assert m.read_event(m.encode(event), LIMITS) == event


def _check_item(item: m.Item | m.Deletion) -> None:
    """What is accepted can be read by the model, and reads the same after it was written."""
    assert 0 < len(item.item.encode()) <= SETTINGS.max_id_bytes
    if isinstance(item, m.Deletion):
        return
    m.item_text(item.fields)
    m.content_hash(item.fields)
    assert all("=" in one for one in m.attributes(item.fields))
    assert all(np.isfinite(one).all() for one in m.vectors(item.fields).values())
    assert m.read_item(m.encode(item), LIMITS) == item


def _letter(record: Record, reason: m.Reason, detail: str) -> None:
    """The bytes are the record's own; what is added fits the topic's headroom."""
    key, value, headers = m.dead_letter(record, reason, detail)
    assert (key, value) == (record.key, record.value)
    assert all(type(name) is str and type(text) is bytes for name, text in headers)
    added = sum(len(name.encode()) + len(text) for name, text in headers)
    added -= sum(len(name.encode()) + len(text or b"") for name, text in record.headers)
    assert added <= HEADROOM_BYTES


# -- records -------------------------------------------------------------------------------------


def user_records(chance: random.Random, count: int) -> None:
    """Records of users: sound users beside a damaged one come out, or the damage is named."""
    sound = corpus.USER_RECORDS[0]
    expected = LAYOUT.decode([sound]).tobytes()
    for _ in range(count):
        damaged = mutated(chance, chance.choice(corpus.USER_RECORDS), corpus.USER_RECORDS)

        def fed(record: bytes = damaged) -> None:
            try:
                records = LAYOUT.decode([sound, record, sound])
            except StateError:
                return
            assert records.shape == (3,)
            assert records[0].tobytes() == records[2].tobytes() == expected
            again = LAYOUT.decode(LAYOUT.encode(records))
            assert again.tobytes() == records.tobytes()

        _guarded("Layout.decode", damaged, fed)


def counters(chance: random.Random, count: int) -> None:
    """Counters of items: whatever the bytes, one row for each, and zeros where of no use."""
    width = counter_width(ModelConfig())

    def fed(values: Sequence[bytes]) -> list[np.ndarray[Any, Any]]:
        counts, times, usable = CODEC.decode_counters(values)
        assert counts.shape == (len(values), width)
        assert not counts[~usable].any()
        assert not times[~usable].any()
        return [counts, times, usable]

    _rows("decode_counters", chance, count, corpus.COUNTERS, fed)


def neighbours(chance: random.Random, count: int) -> None:
    """Neighbours of items: whatever the bytes, one row for each, and zeros where of no use."""
    places = ModelConfig().neighbours

    def fed(values: Sequence[bytes]) -> list[np.ndarray[Any, Any]]:
        found, weights, times, usable = CODEC.decode_neighbours(values)
        assert found.shape == weights.shape == (len(values), places)
        for column in (found, weights, times):
            assert not column[~usable].any()
        return [found, weights, times, usable]

    _rows("decode_neighbours", chance, count, corpus.NEIGHBOURS, fed)


def _rows(
    name: str,
    chance: random.Random,
    count: int,
    known: Sequence[bytes],
    decode: Callable[[Sequence[bytes]], list[np.ndarray[Any, Any]]],
) -> None:
    """Every second value is sound and must come out as it does alone."""
    damaged = [mutated(chance, chance.choice(known), known) for _ in range(count)]
    values = [value for one in damaged for value in (known[0], one)]

    def fed() -> None:
        for column, sound in zip(decode(values), decode(known[:1]), strict=True):
            np.testing.assert_array_equal(column[::2], sound.repeat(count, 0))

    _guarded(name, damaged, fed)


def keys(chance: random.Random, count: int) -> None:
    """The hash of many keys is that of each; every key has a partition that exists."""
    given = [
        chance.randbytes(chance.randrange(chance.choice((1, 5, 40, 300)))) for _ in range(count)
    ]
    partitions = chance.choice((1, 3, 32, 1_000))

    def fed() -> None:
        assert murmur2_many(given).tolist() == [murmur2(key) for key in given]
        for partitioner in ("murmur2_random", "consistent_random"):
            found = partitions_of(given, partitions, partitioner).tolist()
            assert found == [partition_of(key, partitions, partitioner) for key in given]
            assert 0 <= min(found, default=0) <= max(found, default=0) < partitions

    _guarded("murmur2", given, fed)


# -- what leaves ---------------------------------------------------------------------------------


def lists(chance: random.Random, count: int) -> None:
    """Lists with scores and ids of any kind are JSON with finite numbers."""
    numbers = (0.0, 1.5, -1e30, float("nan"), float("inf"), float("-inf"), 3.4e38)
    scores = np.array(
        [[chance.choice(numbers) for _ in range(3)] for _ in range(count)], np.float32
    )
    ids = [[mutated(chance, b"film", corpus.KEYS_KNOWN).decode(errors="replace")] * 3] * count

    def fed() -> None:
        written = m.encode_recommendations(
            ["ann"] * count,
            ids,
            scores,
            strategy=["adapted"] * count,
            shots=[1] * count,
            state_versions=[1] * count,
            model_version="v",
            generated_at=0,
            expires_at=1,
            caused_by=[None] * count,
        )
        for value, names in zip(written, ids, strict=True):
            read = orjson.loads(value)
            assert [one["item"] for one in read["items"]] == names
            assert all(np.isfinite(one["score"]) for one in read["items"])

    _guarded("encode_recommendations", ids, fed)


def _guarded(name: str, given: object, check: Callable[[], None]) -> None:
    try:
        check()
    except Exception as why:
        raise Found(name, given, why) from why


SHARES: dict[Target, int] = {
    events: 38,
    items: 20,
    cloud_events: 14,
    dead_letters: 4,
    user_records: 6,
    counters: 5,
    neighbours: 5,
    lists: 3,
    keys: 5,
}
"""Percent of the inputs that each target gets."""
