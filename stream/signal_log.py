"""The signals of a partition, between the accumulators and the records that stand for them.

Read `items` before `signals`: an item without a row cannot be counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from adapters.signals import NeighbourDelta, Signals
from stream.ports import PartitionStore, Put, Record
from stream.shared_signals import SharedSignals
from stream.signal_records import (
    COUNTER,
    NEIGHBOURS,
    SignalCodec,
    counter_keys,
    neighbour_keys,
)
from stream.user_state import hash_id

Ints = NDArray[np.int64]
Pairs = Iterable[tuple[bytes, bytes]]


class SignalLog:
    """Writes what users of own partitions did, reads what those of all partitions did."""

    def __init__(self, signals: SharedSignals) -> None:
        self._signals = signals
        self._places = signals.places
        self._codec = SignalCodec(signals.config)

    def puts(self, signals: Signals, rows: Ints, folded: NeighbourDelta | None) -> list[Put]:
        """The counters of `rows` [r] and the neighbour lists of a fold, as full values."""
        ids = self._places.ids
        values = self._codec.encode_counters(signals.counts[rows], signals.times[rows])
        keys = counter_keys(ids[row] for row in rows.tolist())
        counters = list(map(Put, keys, values))
        return counters if folded is None else counters + self._neighbours(folded)

    def recall(self, partition: int, store: PartitionStore) -> None:
        """Begin anew with what a restored store holds."""
        self._signals.forget(partition)
        self._take(partition, dict(store.scan(COUNTER)), dict(store.scan(NEIGHBOURS)))

    def take(self, records: Sequence[Record]) -> None:
        """Take over what the owners of other partitions wrote; the newest record of a key wins."""
        found: dict[int, dict[bytes, dict[bytes, bytes]]] = defaultdict(lambda: defaultdict(dict))
        for record in records:
            if record.key and record.value:
                found[record.partition][record.key[:1]][record.key] = record.value
        for partition, kinds in found.items():
            self._take(partition, kinds[COUNTER], kinds[NEIGHBOURS])

    def _neighbours(self, folded: NeighbourDelta) -> list[Put]:
        places, known = self._places, folded.items >= 0
        hashes = places.hashes_of(np.maximum(folded.items, 0))
        items = np.where(known, hashes, np.uint64(0))
        values = self._codec.encode_neighbours(items, folded.weights, folded.times)
        return list(map(Put, neighbour_keys(places.ids[r] for r in folded.rows.tolist()), values))

    def _take(
        self, partition: int, counters: dict[bytes, bytes], neighbours: dict[bytes, bytes]
    ) -> None:
        signals, places = self._signals.of(partition), self._places
        if counters:
            rows = places.find(_hashes(counters))
            counts, times, usable = self._codec.decode_counters(list(counters.values()))
            good = usable & (rows >= 0)
            signals.set_counters(rows[good], counts[good], times[good])
        if neighbours:
            rows = places.find(_hashes(neighbours))
            hashes, weights, times, usable = self._codec.decode_neighbours(
                list(neighbours.values())
            )
            items = np.where(hashes != 0, places.find(hashes), -1)
            good = usable & (rows >= 0)
            signals.set_neighbours(rows[good], items[good], weights[good], times[good])


def _hashes(keys: Iterable[bytes]) -> NDArray[np.uint64]:
    """Hashes [r] of the item ids behind the type byte."""
    return np.array([hash_id(key[1:]) for key in keys], np.uint64)
