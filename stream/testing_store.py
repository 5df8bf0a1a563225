"""The in-memory twin of a partition's store, for tests of workers and of users' own code."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from stream.ports import Put


class MemoryStore:
    """`stream.ports.PartitionStore` in a dict."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.offsets: dict[str, int] = {}
        self.is_restored = False
        self.closed = False
        self.deleted: set[bytes] = set()
        """Keys whose bytes would still lie in files: deleted and not erased yet."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of `keys`, in their order."""
        return [self.records.get(key) for key in keys]

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All records whose key starts with `prefix`, in key order."""
        yield from sorted(pair for pair in self.records.items() if pair[0].startswith(prefix))

    def offset(self, changelog: str) -> int:
        """Offset of the last record applied from this changelog, -1 at first."""
        return self.offsets.get(changelog, -1)

    def apply(self, puts: Iterable[Put], offsets: Mapping[str, int]) -> None:
        """All puts and offsets, or nothing when one of them cannot be taken."""
        records, deleted = dict(self.records), set(self.deleted)
        for key, value in puts:
            if value is None:
                records.pop(key, None)
                deleted.add(key)
            else:
                records[key] = value
        self.records, self.deleted = records, deleted
        self.offsets = {**self.offsets, **offsets}

    def erase(self, keys: Collection[bytes] | None = None) -> int:
        """What was deleted under these keys, or at all, is gone; how much that was."""
        gone = self.deleted if keys is None else self.deleted & set(keys)
        self.deleted = self.deleted - gone
        return len(gone)

    def restored(self) -> None:
        """The store has everything its changelogs hold, and follows them from now on."""
        self.is_restored = True

    def clear(self) -> None:
        """Delete all records and offsets."""
        self.records, self.offsets, self.is_restored = {}, {}, False
        self.deleted = set()

    def close(self) -> None:
        """The records stay, as they would on a disk."""
        self.closed = True
