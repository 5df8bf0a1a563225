"""The versioned binary record of a user: one packed structure, read for a whole batch at once.

A record is at most 6,000 bytes with the default model. Fields that stay empty for users with few
events come last, and trailing zeros are not stored. Numbers are little-endian.

| part | what it holds |
|---|---|
| header | magic, format version, number of experts, fingerprint of the dimensions, counts, times |
| delta | the user's own expert weights, float32 |
| profile | attributes that the user's profile names, 1 + hash bucket each |
| adapter | the fields that `adapters.adapter.fields` names, in their storage types |
| impressions | the last 32 items shown: low half of the hash, seconds, status; newest first |
| support | the last S events: item, event id, time, evidence, action; newest first |
| seen | low halves of the hashes of older items; a ring. In format 3 with the low bytes of days |

Items and events are 64-bit hashes of their ids; 0 means empty. A record of other dimensions keeps
everything but the adapter, which is to be rebuilt from the support set; one of another format and
the same dimensions keeps that, too.

Format 3 is written where items may come again, and holds fewer older items for the sake of their
days. Else format 2 is: when an item was taken says nothing once it is never shown again.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from adapters import adapter, experts
from adapters.impressions import RING
from adapters.towers import ATTRIBUTES
from adapters.types import Field, ModelConfig, State
from stream.errors import StateError

Hashes = NDArray[np.uint64]
Halves = NDArray[np.uint32]
Records = NDArray[np.void]
"""Records of n users, [n], with the fields of `Layout.dtype`. Never changed in place."""

MAGIC = 0x49
BEFORE_PROFILES, PLAIN, WITH_DAYS = 1, 2, 3
"""The formats, all of which are read."""

MAX_BYTES = 6_000
DAY_MS = 86_400_000
DAY_BITS = 255
IMPRESSIONS = RING
HAS_ADAPTER = 1
"""Flag: the record holds an adapter. Without it the adapter is the model's start."""

_MAX_SEEN = 448
_MIN_SEEN = 128

HEADER = np.dtype(
    [
        ("magic", "u1"),
        ("version", "u1"),
        ("experts", "<u2"),
        ("fingerprint", "<u4"),
        ("adapter_bytes", "<u4"),
        ("support_places", "<u2"),
        ("flags", "<u2"),
        ("remembered", "<u8"),  # items ever put in the ring of seen items
        ("state_version", "<u8"),
        ("shots", "<u8"),  # true number of events, ever
        ("first_time", "<i8"),  # ms of event time
        ("last_time", "<i8"),  # ms of event time, the highest so far
        ("model", "<u8"),  # hash of the model version that wrote the adapter
    ]
)
IMPRESSION = np.dtype([("item", "<u4"), ("time", "<u4"), ("status", "u1")])
PROFILE = np.dtype("<u2")
EVENT = np.dtype(
    [("item", "<u8"), ("event", "<u8"), ("time", "<i8"), ("value", "<f4"), ("action", "u1")]
)

SEEN = np.dtype([("item", "<u4")])
SEEN_ON = np.dtype([("item", "<u4"), ("day", "u1")])
"""An older item; the day is that of the event in UTC since 1970, modulo 256."""

_HEAD = struct.Struct("<BBHIIH")  # the part of the header that a layout determines
_MEMORY_TYPES = {torch.float16: torch.float32, torch.int32: torch.int64}


class Layout:
    """Where the fields of a record are, for a model's dimensions."""

    def __init__(
        self, config: ModelConfig, adapter_fields: Mapping[str, Field], experts: int, *, days: bool
    ) -> None:
        self._fields = dict(adapter_fields)
        state = np.dtype(
            [(name, _stored(f.dtype), f.shape) for name, f in sorted(self._fields.items())]
        )
        self.experts = experts
        self.support = config.support
        parts: list[Any] = [
            *((name, HEADER[name]) for name in HEADER.names or ()),
            ("delta", "<f4", (experts,)),
            ("profile", PROFILE, (ATTRIBUTES,)),
            ("adapter", state),
            ("impressions", IMPRESSION, (IMPRESSIONS,)),
            ("support", EVENT, (config.support,)),
        ]
        used = np.dtype(parts).itemsize
        entry = _entry(WITH_DAYS if days else PLAIN)
        self.seen = _places(used, entry)
        rest = -(used + entry.itemsize * self.seen) % 8  # so that a record is whole words
        self.dtype = np.dtype([*parts, ("seen", entry, (self.seen,)), ("rest", "u1", (rest,))])
        meaning = repr((config.kind, state.descr, experts, config.support))
        self._fingerprint = xxhash.xxh32_intdigest(meaning.encode())
        self._head = _HEAD.pack(
            MAGIC,
            WITH_DAYS if days else PLAIN,
            experts,
            self._fingerprint,
            state.itemsize,
            config.support,
        )
        self._fresh = self._head.ljust(self.dtype.itemsize, b"\0")

    @classmethod
    def of(cls, config: ModelConfig, *, repeats: bool = False) -> Layout:
        """The layout for a model of this configuration; with `repeats` items may come again."""
        return cls(config, adapter.fields(config), len(experts.names(config)), days=repeats)

    # -- bytes --------------------------------------------------------------------------------

    def decode(self, records: Sequence[bytes | None]) -> Records:
        """Records of n users, [n]; None is a user nobody has seen. The array is read-only.

        Raises `StateError` for bytes that are no record or one of a newer format.
        """
        size, head, fresh = self.dtype.itemsize, self._head, self._fresh
        data = b"".join(
            [
                fresh
                if r is None
                else (
                    r.ljust(size, b"\0")
                    if r.startswith(head) and len(r) <= size
                    else self._adopt(r)
                )
                for r in records
            ]
        )
        return np.frombuffer(data, self.dtype)

    def damaged(self, record: bytes | None) -> bool:
        """Whether these bytes are no user record of any format, so that nothing can read them."""
        if record is None or (record.startswith(self._head) and len(record) <= self.dtype.itemsize):
            return False
        return self._broken(record)

    def encode(self, records: Records) -> list[bytes]:
        """The inverse of `decode`, without trailing zeros; equal arrays give equal bytes."""
        n, size = len(records), self.dtype.itemsize
        raw = records.tobytes()
        words = np.frombuffer(raw, "<u8").reshape(n, size // 8) != 0
        used = size - 8 * words[:, ::-1].argmax(1)
        starts = range(0, n * size, size)
        return [raw[a : a + b] for a, b in zip(starts, used.tolist(), strict=True)]

    # -- tensors ------------------------------------------------------------------------------

    def adapter_state(self, records: Records, device: torch.device | str = "cpu") -> State:
        """The stored adapters as tensors: float32, int64, float64; zeros where there is none."""
        stored = records["adapter"]
        return {
            name: torch.from_numpy(np.array(stored[name]))
            .to(device)
            .to(_MEMORY_TYPES.get(field.dtype, field.dtype))
            for name, field in self._fields.items()
        }

    def set_adapter(self, records: Records, state: State) -> Records:
        """The records with these adapters, rounded to their storage types."""
        new = copied(records)
        for name, field in self._fields.items():
            new["adapter"][name] = state[name].detach().to(field.dtype).cpu().numpy()
        new["flags"] |= HAS_ADAPTER
        return new

    # -- other dimensions ---------------------------------------------------------------------

    def _adopt(self, record: bytes) -> bytes:
        """A record of other dimensions, without its adapter, or of another format."""
        if self._broken(record):
            raise StateError("a record of the state topic is no user record")
        if record[1] not in (BEFORE_PROFILES, PLAIN, WITH_DAYS):
            raise StateError(
                f"a user record has format {record[1]}, this version reads up to {WITH_DAYS}",
                remedy="Run the version of Innerloop that wrote it.",
            )
        _, version, count, fingerprint, adapter_bytes, places = _HEAD.unpack_from(record)
        told = 0 if version == BEFORE_PROFILES else ATTRIBUTES * PROFILE.itemsize
        new = np.frombuffer(self._fresh, self.dtype).copy()
        header = np.frombuffer(record, HEADER, 1)
        for name in ("remembered", "state_version", "shots", "first_time", "last_time", "model"):
            new[name] = header[name]
        used = _used(HEADER.itemsize, 4 * count, told, adapter_bytes, places)
        _, delta, profile, state, impressions, support, seen = _split(record, used)
        if fingerprint == self._fingerprint:
            new["adapter"] = _padded(state, new["adapter"].dtype, 1)
            new["flags"] = header["flags"]
        if count == self.experts:
            new["delta"] = _padded(delta, "<f4", count)
        new["profile"] = _padded(profile, PROFILE, ATTRIBUTES)
        new["impressions"] = _padded(impressions, IMPRESSION, IMPRESSIONS)
        new["support"] = _padded(support, EVENT, self.support)
        entry = _entry(version)
        self._take_over(new, _padded(seen, entry, _places(sum(used), entry)))
        return new.tobytes()

    def _take_over(self, new: Records, ring: NDArray[Any]) -> None:
        """Put the newest items of another ring into that of one record [1], in their places.

        Where it holds no days they count as taken on that of the oldest event in the support set.
        """
        put = new["remembered"]  # [1] uint64
        newest = np.arange(1, 1 + min(int(put[0]), len(ring), self.seen), dtype=np.uint64)
        to, taken = (put - newest) % self.seen, ring[(put - newest) % len(ring)]
        new["seen"]["item"][0, to] = taken["item"]
        if not has_days(new):
            return
        support = new["support"][0]
        oldest = max(np.count_nonzero(support["item"]) - 1, 0)
        new["seen"]["day"][0, to] = (
            taken["day"] if ring.dtype == SEEN_ON else days_of(support["time"][oldest]) & DAY_BITS
        )

    def _broken(self, record: bytes) -> bool:
        """Not a record, or one of these dimensions that is longer than it can be."""
        return len(record) < HEADER.itemsize or record[0] != MAGIC or record.startswith(self._head)


def headers(records: Sequence[bytes]) -> NDArray[np.void]:
    """The headers [n] of records of any dimensions; they come first in every format."""
    size = HEADER.itemsize
    return np.frombuffer(b"".join([r[:size].ljust(size, b"\0") for r in records]), HEADER)


def copied(records: Records) -> Records:
    """A copy, made as bytes: ten times as fast as field by field."""
    return records.view(f"V{records.dtype.itemsize}").copy().view(records.dtype)


def picked(records: Records, users: NDArray[np.int64]) -> Records:
    """The records of some users [m], moved as bytes."""
    return np.asarray(records.view(f"V{records.dtype.itemsize}")[users].view(records.dtype))


def put(records: Records, users: NDArray[np.int64], new: Records) -> None:
    """Overwrite the records of some users [m] in place, moved as bytes; the array must be owned."""
    raw = f"V{records.dtype.itemsize}"
    records.view(raw)[users] = new.view(raw)


def has_adapter(records: Records) -> NDArray[np.bool_]:
    """Users [n] whose record holds an adapter of this layout's dimensions."""
    return np.asarray((records["flags"] & HAS_ADAPTER) != 0)


def needs_rebuild(records: Records, model: int | None = None) -> NDArray[np.bool_]:
    """Users [n] with events but without an adapter of this model: step through their support.

    `model` is the hash of the model's version; None asks for the dimensions only.
    """
    missing = ~has_adapter(records)
    other = np.zeros_like(missing) if model is None else records["model"] != np.uint64(model)
    return np.asarray((records["shots"] > 0) & (missing | other))


def _stored(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty(0, dtype=dtype).numpy().dtype.newbyteorder("<")


def low_half(hashes: Hashes) -> Halves:
    """The low 32 bits of hashes, as older items are stored; never 0 unless the hash is."""
    low = hashes.astype(np.uint32)
    return np.asarray(np.where((low == 0) & (hashes != 0), np.uint32(1), low))


def days_of(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Days in UTC since 1970 of times in ms, in their shape."""
    return np.asarray(times) // DAY_MS


def has_days(records: Records) -> bool:
    """Whether these records tell the days of older items."""
    return records.dtype["seen"].base == SEEN_ON


def _entry(version: int) -> np.dtype[Any]:
    return SEEN_ON if version == WITH_DAYS else SEEN


def _places(used: int, entry: np.dtype[Any]) -> int:
    """Room in the ring for such entries, beside `used` bytes of the other parts."""
    return max(_MIN_SEEN, min(_MAX_SEEN, (MAX_BYTES - used) // entry.itemsize))


def _used(
    header: int, delta: int, profile: int, adapter_bytes: int, places: int
) -> tuple[int, ...]:
    """Bytes of the parts of a record before the ring."""
    rest = IMPRESSIONS * IMPRESSION.itemsize, places * EVENT.itemsize
    return (header, delta, profile, adapter_bytes, *rest)


def _split(record: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The parts of a record by their sizes; the ring of seen items is the rest."""
    parts, at = [], 0
    for size in sizes:
        parts.append(record[at : at + size])
        at += size
    return [*parts, record[at:]]


def _padded(data: bytes, dtype: Any, places: int) -> NDArray[Any]:
    """`places` entries from bytes that may hold more, or fewer with trailing zeros cut off."""
    size = np.dtype(dtype).itemsize * places
    return np.frombuffer(data[:size].ljust(size, b"\0"), dtype)
