"""What the model reads of an item: its text, its attributes, its vectors, and their hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
import xxhash

Value = str | int | float | bool | None | list[str | int | float]
"""What a field of an item or of a profile may hold."""

_PROSE = ("title", "description")
_LONGEST_ATTRIBUTE = 64  # characters; longer strings are prose


class Field(Protocol):
    """A field of an item: `name` and `value`."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def value(self) -> Value:
        """What it holds."""


def item_text(fields: Sequence[Field]) -> str:
    """The text for the backbone: "title. category, category. other text fields by name".

    Numbers, vectors and addresses (`https://…`) are left out; a repeated name counts once, the
    last one. An item without text gives "".
    """
    values = _by_name(fields)
    names = ["title", "category", *sorted(values.keys() - {"title", "category"})]
    parts = (_prose(values.get(name)) for name in names)
    return ". ".join(part for part in parts if part)


def attributes(fields: Sequence[Field]) -> list[str]:
    """Strings "field=value" for the attribute table, sorted by field, without repeats.

    Short strings and lists of them, numbers and booleans; strings are case-folded, fractions are
    kept to two digits. Title, description, long strings and vectors are left out.
    """
    values = _by_name(fields)
    pairs = (
        f"{name}={word}"
        for name in sorted(values.keys() - set(_PROSE))
        for word in _words(values[name])
    )
    return list(dict.fromkeys(pairs))


def vectors(fields: Sequence[Field]) -> dict[str, list[float]]:
    """Fields that hold a list of numbers, by name."""
    return {
        name: [float(x) for x in value]
        for name, value in sorted(_by_name(fields).items())
        if isinstance(value, list) and value and not any(isinstance(x, str) for x in value)
    }


def content_hash(fields: Sequence[Field]) -> int:
    """Unsigned 64-bit hash of all fields by name; the order of fields does not matter."""
    values = sorted(_by_name(fields).items(), key=lambda pair: pair[0])
    return xxhash.xxh3_64_intdigest(msgspec.json.encode(values))


def _by_name(fields: Sequence[Field]) -> Mapping[str, Value]:
    return {field.name: field.value for field in fields}


def _prose(value: Value) -> str:
    if isinstance(value, list):
        return ", ".join(x.strip() for x in value if isinstance(x, str) and x.strip())
    if not isinstance(value, str) or "://" in value[:10]:
        return ""
    return " ".join(value.split()).rstrip(".")


def _words(value: Value) -> list[str]:
    if isinstance(value, list):
        return [word for x in value if isinstance(x, str) for word in _words(x)]
    if isinstance(value, str):
        word = " ".join(value.split()).casefold()
        return [word] if 0 < len(word) <= _LONGEST_ATTRIBUTE and "://" not in word else []
    if isinstance(value, bool):
        return [str(value).lower()]
    if value is None:
        return []
    return [f"{value:.6g}" if value == int(value) else f"{value:.2g}"]
