"""Records of the topic `signals`: what the users of one partition did with an item.

The key is a type byte and the item's id, in Kafka as in the store, so that compaction keeps an
item's counter and its neighbours apart. (A user's record has the bare user id as its key in
`state` and the type byte `u` before it in the store.)

| key | value, little-endian |
|---|---|
| `c` + item | head, then a float32 for each half-life and one for the open bucket |
| `n` + item | head, then 64-bit hash and float32 weight of each neighbour, heaviest first |

The head is version, fingerprint, and the time (float64) that the numbers are decayed to.
The fingerprint stands for what the numbers mean (half-lives, bucket). Records of another meaning
are left out when they are read: counters of other half-lives cannot be converted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from adapters.signals import PAIR_HALF_LIFE, counter_width
from adapters.types import ModelConfig

COUNTER = b"c"
NEIGHBOURS = b"n"

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
Hashes = NDArray[np.uint64]
Times = NDArray[np.float64]

_VERSION = 1
_HEAD: list[Any] = [("version", "<u4"), ("fingerprint", "<u4"), ("time", "<f8")]
_PAIR = np.dtype([("item", "<u8"), ("weight", "<f4")])


def counter_keys(items: Iterable[str]) -> list[bytes]:
    """The keys of items' counters."""
    return [COUNTER + item.encode() for item in items]


def neighbour_keys(items: Iterable[str]) -> list[bytes]:
    """The keys of items' neighbours."""
    return [NEIGHBOURS + item.encode() for item in items]


def item_of(key: bytes) -> str:
    """The item's id in a key of either kind; bytes that are no UTF-8 become replacement signs."""
    return key[1:].decode(errors="replace")


class SignalCodec:
    """Values to arrays and back, for the counters and neighbours of a model."""

    def __init__(self, config: ModelConfig) -> None:
        self._counter = np.dtype([*_HEAD, ("counts", "<f4", (counter_width(config),))])
        self._list = np.dtype([*_HEAD, ("pairs", _PAIR, (config.neighbours,))])
        self._counter_mark = _mark("counter", config.half_lives, config.bucket)
        self._list_mark = _mark("neighbours", PAIR_HALF_LIFE, config.bucket)

    def encode_counters(self, counts: Floats, times: Times) -> list[bytes]:
        """Counters [r, H + 1] with times [r], as values."""
        records = _blank(self._counter, self._counter_mark, times)
        records["counts"] = counts
        raw, size = records.tobytes(), self._counter.itemsize
        return [raw[at : at + size] for at in range(0, len(raw), size)]

    def decode_counters(self, values: Sequence[bytes]) -> tuple[Floats, Times, Bools]:
        """Counts [r, H + 1], times [r], and which [r] can be used; zeros where not."""
        records, usable = _parsed(values, self._counter, self._counter_mark)
        return records["counts"].copy(), records["time"].copy(), usable

    def encode_neighbours(self, items: Hashes, weights: Floats, times: Times) -> list[bytes]:
        """Neighbours [r, M] with times [r], as values; empty places at the end are not stored."""
        records = _blank(self._list, self._list_mark, times)
        records["pairs"]["item"] = items
        records["pairs"]["weight"] = np.where(items != 0, weights, 0)
        places = np.arange(1, items.shape[1] + 1)
        used = np.where(items != 0, places, 0).max(1, initial=0)
        sizes = self._list.itemsize - (items.shape[1] - used) * _PAIR.itemsize
        raw, size = records.tobytes(), self._list.itemsize
        return [raw[i * size : i * size + b] for i, b in enumerate(sizes.tolist())]

    def decode_neighbours(self, values: Sequence[bytes]) -> tuple[Hashes, Floats, Times, Bools]:
        """Items and weights [r, M], 0 = none, times [r], and which [r] can be used."""
        records, usable = _parsed(values, self._list, self._list_mark)
        pairs = records["pairs"]
        return pairs["item"].copy(), pairs["weight"].copy(), records["time"].copy(), usable


def _blank(dtype: np.dtype[Any], mark: int, times: Times) -> NDArray[Any]:
    records = np.zeros(len(times), dtype)
    records["version"], records["fingerprint"], records["time"] = _VERSION, mark, times
    return records


def _mark(*meaning: object) -> int:
    return xxhash.xxh32_intdigest(repr(meaning).encode())


def _parsed(values: Sequence[bytes], dtype: np.dtype[Any], mark: int) -> tuple[NDArray[Any], Bools]:
    """Records [n], longer values cut, shorter ones padded; unusable ones are zeros."""
    size = dtype.itemsize
    data = b"".join([value[:size].ljust(size, b"\0") for value in values])
    records = np.frombuffer(data, dtype)
    usable = (records["version"] == _VERSION) & (records["fingerprint"] == mark)
    if usable.all():
        return records, usable
    records = records.copy()
    records[~usable] = np.zeros((), dtype)
    return records, usable
