"""Values of the topic `signals`: counters and neighbours to bytes and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adapters.types import ModelConfig
from stream.signal_records import SignalCodec, counter_keys, item_of, neighbour_keys

CONFIG = ModelConfig(neighbours=8)
CODEC = SignalCodec(CONFIG)
WIDTH = len(CONFIG.half_lives) + 1
ROWS = st.integers(0, 5)
NUMBERS = st.floats(allow_nan=False, width=32)


@settings(deadline=None)
@given(st.data(), ROWS)
def test_counters_survive_the_round_trip(data: st.DataObject, n: int) -> None:
    """Counters come back to the last bit, whatever they are."""
    counts = data.draw(hnp.arrays(np.float32, (n, WIDTH), elements=NUMBERS))
    times = data.draw(hnp.arrays(np.float64, n, elements=st.floats(0, 4e9)))
    values = CODEC.encode_counters(counts, times)
    back, at, usable = CODEC.decode_counters(values)
    assert np.array_equal(back, counts)
    assert np.array_equal(at, times)
    assert usable.tolist() == [True] * n
    assert CODEC.encode_counters(back, at) == values


@settings(deadline=None)
@given(st.data(), ROWS)
def test_neighbours_survive_the_round_trip(data: st.DataObject, n: int) -> None:
    """Neighbour lists come back to the last bit, with empty places between them too."""
    items = data.draw(hnp.arrays(np.uint64, (n, 8), elements=st.integers(0, 2**64 - 1)))
    weights = data.draw(hnp.arrays(np.float32, (n, 8), elements=NUMBERS))
    weights = np.where(items != 0, weights, 0).astype(np.float32)
    times = data.draw(hnp.arrays(np.float64, n, elements=st.floats(0, 4e9)))
    values = CODEC.encode_neighbours(items, weights, times)
    back, back_weights, at, usable = CODEC.decode_neighbours(values)
    assert np.array_equal(back, items)
    assert np.array_equal(back_weights, weights)
    assert np.array_equal(at, times)
    assert usable.tolist() == [True] * n


def test_empty_places_are_not_stored() -> None:
    """A list of two neighbours takes the head and two entries."""
    items = np.array([[5, 6, 0, 0, 0, 0, 0, 0], [0] * 8], np.uint64)
    values = CODEC.encode_neighbours(items, np.ones((2, 8), np.float32), np.zeros(2))
    assert [len(v) for v in values] == [16 + 2 * 12, 16]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_foreign_bytes_are_left_out(values: list[bytes]) -> None:
    """Bytes that are no such record are marked unusable and read as zeros, never raised."""
    _, _, usable = CODEC.decode_counters(values)
    items, weights, _, listed = CODEC.decode_neighbours(values)
    assert not usable.any()
    assert not listed.any()
    assert not items.any()
    assert not weights.any()


def test_counters_of_other_half_lives_are_left_out() -> None:
    """Counts that decayed at other rates mean something else and are not used; others are."""
    other = SignalCodec(replace(CONFIG, half_lives=(1.0, 2.0, 3.0)))
    counts, times = np.ones((1, WIDTH), np.float32), np.ones(1)
    values = other.encode_counters(counts, times) + CODEC.encode_counters(counts, times)
    back, _, usable = CODEC.decode_counters(values)
    assert usable.tolist() == [False, True]
    assert back.sum(1).tolist() == [0, WIDTH]


def test_lists_of_another_length_are_cut_or_padded() -> None:
    """A model with fewer neighbours reads the heaviest of a longer list, one with more all."""
    items = np.arange(1, 9, dtype=np.uint64)[None]
    values = CODEC.encode_neighbours(items, np.ones((1, 8), np.float32), np.ones(1))
    short = SignalCodec(replace(CONFIG, neighbours=3)).decode_neighbours(values)[0]
    long = SignalCodec(replace(CONFIG, neighbours=10)).decode_neighbours(values)[0]
    assert short.tolist() == [[1, 2, 3]]
    assert long.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 0, 0]]


@given(st.text())
def test_keys_tell_the_kind_and_the_item(item: str) -> None:
    """Counter and neighbours of an item have different keys, from which its id comes back."""
    item = item.encode(errors="replace").decode()
    counter, neighbours = counter_keys([item])[0], neighbour_keys([item])[0]
    assert counter != neighbours
    assert item_of(counter) == item_of(neighbours) == item
