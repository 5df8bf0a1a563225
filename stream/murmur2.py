"""Which partition a key belongs to: the JVM's murmur2 rule, and librdkafka's CRC32 rule.

Java producers, and librdkafka with `partitioner=murmur2_random`, put a key on
`(murmur2(key) & 0x7fffffff) % partitions`. librdkafka's default, `consistent_random`, uses CRC32
instead and puts most keys elsewhere.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(key: bytes) -> int:
    """The 32-bit hash of `key`, unsigned."""
    length = len(key)
    h = _SEED ^ length
    for at in range(0, length & ~3, 4):
        k = int.from_bytes(key[at : at + 4], "little") * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if length & 3:
        h = (h ^ int.from_bytes(key[length & ~3 :], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def murmur2_many(keys: Sequence[bytes]) -> NDArray[np.uint32]:
    """The hashes of n keys, [n]. Costs one pass over the longest key's words for all together."""
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    words, starts = _words(keys, lengths)
    m = np.uint32(_M)
    h = np.uint32(_SEED) ^ lengths.astype(np.uint32)
    for at, active in _rounds(lengths >> 2):
        k = words[starts[active] + 4 * at] * m
        k = (k ^ k >> np.uint32(24)) * m
        h[active] = h[active] * m ^ k
    rest = lengths & 3
    tail = words[starts + (lengths & ~3)] & ((np.uint64(1) << (8 * rest).astype(np.uint64)) - 1)
    h = np.where(rest > 0, (h ^ tail.astype(np.uint32)) * m, h)
    h = (h ^ h >> np.uint32(13)) * m
    return h ^ h >> np.uint32(15)


def partition_of(key: bytes, partitions: int, partitioner: str = "murmur2_random") -> int:
    """The partition of `key` among `partitions`; `partitioner` as in `kafka.partitioner`."""
    if partitioner == "murmur2_random":
        return (murmur2(key) & 0x7FFFFFFF) % partitions
    return zlib.crc32(key) % partitions


def partitions_of(
    keys: Sequence[bytes], partitions: int, partitioner: str = "murmur2_random"
) -> NDArray[np.int64]:
    """The partitions of n keys, [n] int64; the same as `partition_of` key by key."""
    if partitioner == "murmur2_random":
        hashes = (murmur2_many(keys) & np.uint32(0x7FFFFFFF)).astype(np.int64)
    else:
        hashes = np.fromiter(map(zlib.crc32, keys), np.int64, len(keys))
    return hashes % partitions


def _words(
    keys: Sequence[bytes], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The little-endian word at every byte of all keys in a row, and where each key starts."""
    data = np.frombuffer(b"".join(keys) + bytes(4), np.uint8).astype(np.uint32)
    words = data[:-3].copy()
    for place, view in ((8, data[1:-2]), (16, data[2:-1]), (24, data[3:])):
        words |= view << np.uint32(place)
    return words, np.cumsum(lengths) - lengths


def _rounds(counts: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """For each word's place, the keys that are long enough to have one."""
    return [(at, np.flatnonzero(counts > at)) for at in range(int(counts.max(initial=0)))]
