"""What is done to valid bytes so that they no longer are."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]
"""From chance, bytes and the corpus they are of, to other bytes."""

NUMBERS = (
    b"0",
    b"-0",
    b"-1",
    b"1e400",
    b"-1e400",
    b"1e-400",
    b"9" * 400,
    b"9223372036854775808",
    b"18446744073709551616",
    b"253402300800000",
    b"1.5",
    b"00",
    b"NaN",
    b"Infinity",
    b"0x10",
)
TOKENS = (
    b"null",
    b"true",
    b"{}",
    b"[]",
    b'""',
    b'"\\ud800"',
    b'"\\u0000"',
    b'"_cold"',
    b'"2023-11-14T22:13:20Z"',
    b'"9999-12-31T23:59:59.999999999+23:59"',
    b'"0001-01-01T00:00:00-23:59"',
    b'"event"',
    b'"timestamp"',
    b"\xef\xbb\xbf",
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\0",
    b"\\",
    b'"',
    b",",
    b"//",
)


def mutated(chance: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """`data` after one to three mutations, or, now and then, as it was."""
    for _ in range(chance.choice((0, 1, 1, 1, 1, 2, 2, 3))):
        data = chance.choice(MUTATIONS)(chance, data, corpus)
    return data


def _flipped(chance: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """One bit the other way round."""
    if not data:
        return data
    changed = bytearray(data)
    changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _noisy(chance: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """Some bytes replaced by any others."""
    start, end = _slice(chance, data)
    return data[:start] + chance.randbytes(min(16, end - start)) + data[end:]


def _cut(chance: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """The end, or a piece in the middle, is missing."""
    start, end = _slice(chance, data)
    return data[:start] if chance.random() < 0.5 else data[:start] + data[end:]


def _repeated(chance: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """A piece comes twice, or very often."""
    start, end = _slice(chance, data)
    times = chance.choice((2, 2, 2, 50))
    return data[:start] + times * data[start : min(end, start + 200)] + data[end:]


def _spliced(chance: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """The beginning of this one, the end of another."""
    other = chance.choice(corpus)
    return data[: _place(chance, data)] + other[_place(chance, other) :]


def _told(chance: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """A word of JSON, or bytes that are no UTF-8, put somewhere."""
    at = _place(chance, data)
    return data[:at] + chance.choice(TOKENS) + data[at:]


def _renumbered(chance: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """A value becomes an absurd number."""
    starts = [at + 1 for at in range(len(data)) if data[at : at + 1] == b":"]
    if not starts:
        return data
    start = chance.choice(starts)
    end = min((e for e in (data.find(b",", start), data.find(b"}", start)) if e > 0), default=start)
    return data[:start] + chance.choice(NUMBERS) + data[end:]


def _nested(chance: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """Brackets in brackets, closed or not."""
    depth = chance.choice((3, 100, 1_100, 20_000) if chance.random() < 0.05 else (3, 20))
    opened, closed = chance.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'{"fields":[', b"]}")))
    at = _place(chance, data)
    inside = depth * opened + b"1" + (depth * closed if chance.random() < 0.7 else b"")
    return data[:at] + inside + data[at:]


def _foreign(chance: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """Nothing of it is left."""
    return chance.randbytes(chance.randrange(40))


MUTATIONS: tuple[Mutation, ...] = (
    _flipped,
    _flipped,
    _noisy,
    _cut,
    _repeated,
    _spliced,
    _told,
    _told,
    _renumbered,
    _nested,
    _foreign,
)


def _place(chance: random.Random, data: bytes) -> int:
    return chance.randrange(len(data) + 1)


def _slice(chance: random.Random, data: bytes) -> tuple[int, int]:
    start = _place(chance, data)
    return start, min(len(data), start + chance.choice((1, 2, 8, 64)))
