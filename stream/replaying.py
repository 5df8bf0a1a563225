"""The log of `events` once more, through the functions that the worker calls.

The users of a partition come out as the log makes them, to be compared with their records in
`state` (`stream.comparing`). Lists and shared signals are left out: records do not depend on them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from stream.comparing import Circumstances, Finding, judge
from stream.config import Settings
from stream.learning import Learner
from stream.message_types import Interaction
from stream.messages import Decoded, Event, decode_events
from stream.ports import Put, Record
from stream.serving import Serving
from stream.testing_store import MemoryStore
from stream.user_state import USER, Layout, hash_id, user_key


@dataclass(slots=True, kw_only=True)
class Replayed:
    """The users of a partition as the log makes them."""

    store: MemoryStore = field(default_factory=MemoryStore)
    moving: set[bytes] = field(default_factory=set)  # with events after those that were replayed
    late: set[bytes] = field(default_factory=set)  # not all of their items were as they are now
    newest: int = 0  # ms of event time

    def records(self) -> dict[bytes, bytes]:
        """Records by user id."""
        return {key[len(USER) :]: value for key, value in self.store.records.items()}


class Replayer:
    """Takes the events of partitions through the learner."""

    def __init__(
        self,
        settings: Settings,
        serving: Serving,
        *,
        partitions: int,
        known_since: Mapping[str, int],
        condemned: Collection[tuple[int, int]] = (),
    ) -> None:
        """`partitions` is the number of those of `events`.

        `known_since` maps items to the time (ms) from which on they were as they are now;
        `condemned` are partition and offset of events that became dead letters `unprocessable`.
        """
        self._settings = settings
        self._serving = serving
        self._learner = Learner(settings, serving)
        self._layout = Layout.of(serving.meta.config, repeats=settings.ranking.repeats)
        self._partitions = partitions
        self._known_since = known_since
        self._condemned = frozenset(condemned)

    def replay(self, batches: Iterable[Sequence[Record]], until: int) -> Replayed:
        """The users of one partition after its records before offset `until`."""
        found, size = Replayed(), self._settings.batch.max_events
        for batch in batches:
            found.moving |= {r.key for r in batch if r.key and r.offset >= until}
            due = [r for r in batch if r.offset < until]
            for at in range(0, len(due), size):
                self._take(due[at : at + size], found)
        return found

    def compare(
        self,
        state: Mapping[bytes, bytes],
        replayed: Replayed,
        *,
        cut: bool,
        adapters: bool = True,
        refreshed: bool = False,
    ) -> Iterator[Finding]:
        """Every user of a partition; `state` maps user ids to records.

        `cut` says that retention has deleted the beginning of the log; `adapters` whether to
        compare these too; `refreshed` that users may have had lists without an event.
        """
        known = Circumstances(
            layout=self._layout,
            model=hash_id(self._serving.version),
            ttl_days=self._settings.state.ttl_days,
            newest=replayed.newest,
            cut=cut,
            moving=frozenset(replayed.moving),
            late=frozenset(replayed.late),
            adapters=adapters,
            refreshed=refreshed,
        )
        expected = replayed.records()
        for user in sorted(expected.keys() | state.keys()):
            yield judge(user, expected.get(user), state.get(user), known)

    @torch.inference_mode()
    def _take(self, records: Sequence[Record], found: Replayed) -> None:
        """What `Pipeline.process` does to the records of users."""
        kept = [r for r in records if (r.partition, r.offset) not in self._condemned]
        if not kept:
            return
        batch = decode_events(
            kept, self._settings.messages, self._partitions, self._settings.kafka.partitioner
        )
        users, owner = self._learner.load(batch, {kept[0].partition: found.store})
        self._learner.learn(batch, users, owner)
        self._serving.signals.forget(kept[0].partition)
        changed = self._learner.changed(users)
        found.store.apply([Put(user_key(users.names[i].encode()), v) for i, v in changed], {})
        self._note(batch, found)

    def _note(self, batch: Decoded[Event], found: Replayed) -> None:
        """Event time, and users whose items cannot be taken as they were."""
        for place, event in zip(batch.places, batch.accepted, strict=True):
            found.newest = max(found.newest, event.timestamp)
            if isinstance(event, Interaction):
                since = self._known_since.get(event.item)
                if since is None or since > batch.records[place].timestamp:
                    found.late.add(event.user.encode())
