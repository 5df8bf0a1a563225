"""What a batch does to the users it touches: forget, show, step, fold; all users at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from adapters import adapter, own_weights
from adapters.signals import previous_items
from adapters.types import State
from stream import showing, user_state
from stream.config import Settings
from stream.item_encoder import attribute_buckets
from stream.message_types import Forget, Interaction, User
from stream.message_types import Ranking as Shown
from stream.messages import DecodedBatch, evidence_of
from stream.own_steps import OwnWeights
from stream.ports import PartitionStore
from stream.rounds import Round, rounds
from stream.serving import MILLISECONDS, Serving
from stream.user_layout import copied, has_adapter, picked, put
from stream.user_state import Events, Layout, Records

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass
class Users:
    """The users of a batch; `records` changes as the batch is worked through."""

    partitions: Ints  # [n]
    names: list[str]  # [n]
    records: Records  # [n]
    cause: Ints  # [n] place in the batch of the newest event that a list answers, -1 = none
    newest: Ints  # [n] place in the batch of the newest event of any kind that changed the record
    forgotten: Bools  # [n] erased in this batch
    touched: dict[int, list[Ints]] = field(default_factory=lambda: defaultdict(list))
    steps: int = 0
    refused: int = 0
    duplicates: int = 0
    too_many: int = 0  # beyond messages.max_per_minute
    damaged: int = 0  # users whose stored record nobody can read: they begin anew


@dataclass(frozen=True)
class _Interactions:
    """The interactions of a batch in columns [m], in the order in which they came."""

    owner: Ints  # place of the user in `Users`
    place: Ints  # place of the record in the batch
    items: NDArray[np.uint64]
    actions: Ints  # place in ModelConfig.actions
    values: NDArray[np.float32]
    times: Ints  # ms
    ids: NDArray[np.uint64]


class _Profile(NamedTuple):
    """A profile in a batch."""

    owner: int  # place of the user in `Users`
    place: int  # of the record in the batch
    event: User


class Learner:
    """Takes the events of a batch to the records of its users."""

    def __init__(self, settings: Settings, serving: Serving) -> None:
        self._settings = settings
        self._serving = serving
        self._layout = Layout.of(serving.meta.config, repeats=settings.ranking.repeats)
        own = own_weights.active(serving.meta)
        self._own = OwnWeights(settings, serving) if own else None
        self._model = xxhash.xxh3_64_intdigest(serving.version.encode())
        known = {name: i for i, name in enumerate(serving.meta.config.actions)}
        names = list(settings.messages.actions)
        self._action_place = {name: i for i, name in enumerate(names)}
        self._model_action = np.array([known.get(name, len(known)) for name in names], np.int64)

    # -- load ---------------------------------------------------------------------------------

    def load(self, batch: DecodedBatch, stores: dict[int, PartitionStore]) -> tuple[Users, Ints]:
        """The users of a batch, and the user of each accepted event [a]."""
        index: dict[tuple[int, str], int] = {}
        records = batch.records
        owner = np.fromiter(
            (
                index.setdefault((records[place].partition, event.user), len(index))
                for event, place in zip(batch.accepted, batch.places, strict=True)
            ),
            np.int64,
            len(batch.accepted),
        )
        n = len(index)
        stored = _stored(index, stores)
        damaged = [i for i, record in enumerate(stored) if self._layout.damaged(record)]
        for i in damaged:
            stored[i] = None
        users = Users(
            partitions=np.fromiter((p for p, _ in index), np.int64, n),
            names=[user for _, user in index],
            records=copied(self._layout.decode(stored)),
            cause=np.full(n, -1),
            newest=np.full(n, -1),
            forgotten=np.zeros(n, np.bool_),
            damaged=len(damaged),
        )
        return users, owner

    def changed(self, users: Users) -> list[tuple[int, bytes | None]]:
        """Places in `users` of records that changed, and the records; None = nothing is left."""
        places = np.flatnonzero(users.newest >= 0)
        values = self._layout.encode(picked(users.records, places))
        shown = users.records["impressions"]["item"].any(1)
        told = users.records["profile"].any(1)
        gone = (users.records["shots"] == 0) & ~shown & ~told
        return [
            (i, None if gone[i] else value)
            for i, value in zip(places.tolist(), values, strict=True)
        ]

    def refreshed(self, stored: Sequence[bytes]) -> Records:
        """The records [n] with adapters of this model and their next version, without an event."""
        records = self._layout.decode(stored)
        new = self._layout.set_adapter(records, self._state(records))
        new["state_version"] += np.uint64(1)
        new["model"] = self._model
        return new

    # -- learn --------------------------------------------------------------------------------

    def learn(self, batch: DecodedBatch, users: Users, owner: Ints) -> None:
        """Work through the events of the batch; `users` holds what became of them."""
        alive = self._forget(batch, users, owner)
        events = self._columns(batch, owner, alive)
        late = self._tell(batch, users, owner, alive, events)
        parts = rounds(events.owner, self._settings.batch.max_events_per_user)
        learned = [self._round(users, events, part) for part in parts]
        self._keep(users, late)
        self._show(batch, users, owner, alive, events, learned)
        self._stamp(batch, users)

    def _forget(self, batch: DecodedBatch, users: Users, owner: Ints) -> Bools:
        """Erase users; events [a] that came before their erasure are not alive."""
        alive = np.ones(len(owner), np.bool_)
        for i, event in enumerate(batch.accepted):
            if isinstance(event, Forget):
                user = owner[i]
                users.forgotten[user] = True
                users.records[user] = self._layout.decode([None])[0]
                users.newest[user] = batch.places[i]
                alive[: i + 1] &= owner[: i + 1] != user
        return alive

    def _tell(
        self, batch: DecodedBatch, users: Users, owner: Ints, alive: Bools, events: _Interactions
    ) -> list[_Profile]:
        """Keep profiles that came before their user's first event in the batch; return the rest.

        A user who has done nothing yet gets a list in answer to the newest one.
        """
        told = [
            _Profile(int(owner[i]), batch.places[i], event)
            for i, event in enumerate(batch.accepted)
            if isinstance(event, User) and alive[i]
        ]
        first = np.full(len(users.names), len(batch.records))
        np.minimum.at(first, events.owner, events.place)
        self._keep(users, [one for one in told if one.place < first[one.owner]])
        for one in told:
            if first[one.owner] == len(batch.records) and not users.records["shots"][one.owner]:
                users.cause[one.owner] = one.place
        return [one for one in told if one.place > first[one.owner]]

    def _keep(self, users: Users, told: list[_Profile]) -> None:
        """Put profiles into the records, of each user the last one."""
        last = {one.owner: one for one in told}
        if not last:
            return
        rows = np.fromiter(last, np.int64, len(last))
        buckets = attribute_buckets([one.event.fields for one in last.values()])
        times = np.array([one.event.timestamp for one in last.values()], np.int64)
        before = picked(users.records, rows)
        put(users.records, rows, user_state.fold_profiles(before, buckets, times))
        np.maximum.at(users.newest, rows, [one.place for one in last.values()])

    def _show(
        self,
        batch: DecodedBatch,
        users: Users,
        owner: Ints,
        alive: Bools,
        events: _Interactions,
        learned: list[Ints],
    ) -> None:
        """Keep what users were shown until their next event tells what they made of it."""
        shown = {i: e for i, e in enumerate(batch.accepted) if isinstance(e, Shown) and alive[i]}
        at = np.fromiter(shown, np.int64, len(shown))
        place = np.asarray(batch.places, np.int64)[at]
        lists = showing.Lists(owner[at], place, list(shown.values()))
        np.maximum.at(users.newest, lists.owner, place)
        done = np.sort(np.concatenate([np.zeros(0, np.int64), *learned]))
        acts = showing.Acts(events.owner, events.place, events.items, events.times).part(done)
        showing.settle(users.records, lists, acts, self._settings.state.feedback_window_s)

    def _columns(self, batch: DecodedBatch, owner: Ints, alive: Bools) -> _Interactions:
        chosen = [
            (i, event)
            for i, event in enumerate(batch.accepted)
            if type(event) is Interaction and alive[i]
        ]
        m = len(chosen)
        index = np.fromiter((i for i, _ in chosen), np.int64, m)
        actions = np.fromiter((self._action_place[e.type] for _, e in chosen), np.int64, m)
        raw = np.fromiter((np.nan if e.value is None else e.value for _, e in chosen), float, m)
        return _Interactions(
            owner=owner[index],
            place=np.asarray(batch.places, np.int64)[index],
            items=np.fromiter((user_state.hash_id(e.item) for _, e in chosen), np.uint64, m),
            actions=self._model_action[actions],
            values=evidence_of(actions, raw, self._settings.messages),
            times=np.fromiter((e.timestamp for _, e in chosen), np.int64, m),
            ids=np.fromiter((user_state.hash_id(e.id) for _, e in chosen), np.uint64, m),
        )

    # -- one round ----------------------------------------------------------------------------

    def _round(self, users: Users, events: _Interactions, part: Round) -> Ints:
        """The next events of some users: step, count for everybody, fold. Which were learned."""
        before = picked(users.records, part.users)
        block = self._arranged(users, events, part, before)
        rows = self._serving.rows(block)
        self._observe(users, part, block, rows, before)
        state = self._state(before)
        repeats = self._settings.ranking.repeats
        after = user_state.fold_events(before, block, repeats=repeats)
        learned = block.mask.any(1)
        done = self._layout.set_adapter(after, self._step(users, state, block, rows))
        if self._own is not None:
            self._own.step(done, before, state, block, rows)
        done["model"] = self._model  # or else the user's next round would rebuild it
        put(users.records, part.users[learned], picked(done, np.flatnonzero(learned)))
        places = np.where(block.mask, events.place[part.events], -1).max(1)
        users.cause[part.users] = np.maximum(users.cause[part.users], places)
        return part.events[block.mask]

    def _arranged(
        self, users: Users, events: _Interactions, part: Round, before: Records
    ) -> Events:
        """The events of a round [n, t]; duplicates and what is too many are masked and counted."""
        columns: dict[str, Any] = {
            name: getattr(events, name)[part.events]
            for name in ("items", "actions", "values", "times", "ids")
        }
        columns["actions"] = columns["actions"].astype(np.uint8)
        again = user_state.duplicate_mask(before, columns["ids"], part.mask)
        mask, most = part.mask & ~again, self._settings.messages.max_per_minute
        users.duplicates += int(again.sum())
        if most is not None:
            many = user_state.excess_mask(before, columns["times"], mask, most)
            users.too_many += int(many.sum())
            mask &= ~many
        return Events(**columns, mask=mask)

    def _step(self, users: Users, state: State, block: Events, rows: Ints) -> State:
        meta = self._serving.meta
        tensors = self._serving.block(block, rows)
        vectors = self._serving.table.catalogue().vectors
        new = adapter.advance(meta, state, tensors, vectors)
        new, refused = adapter.guard(state, new)
        users.refused += int(refused.sum())
        users.steps += int((block.mask & (rows >= 0)).sum())
        return new

    def _state(self, records: Records) -> State:
        """The adapters of these users: stored, new, or rebuilt from the support set."""
        device = self._serving.device
        stored = self._layout.adapter_state(records, device)
        has = torch.from_numpy(has_adapter(records)).to(device)
        outdated = user_state.needs_rebuild(records, self._model)
        usable = has & ~torch.from_numpy(outdated).to(device)
        begins = ~usable.cpu().numpy()
        state = self._serving.start(user_state.profile_buckets(records, begins))
        if bool(usable.any()):
            state = adapter.chosen(usable, stored, state)
        return self._rebuilt(state, records, np.flatnonzero(outdated))

    def _rebuilt(self, state: State, records: Records, users: Ints) -> State:
        """Step the new model's start through the support sets of `users`; the count goes on."""
        if not len(users):
            return state
        past = user_state.support_events(picked(records, users))
        block = self._serving.block(past, self._serving.rows(past))
        chosen = torch.from_numpy(users).to(self._serving.device)
        counts = torch.from_numpy(records["shots"][users].astype(np.int64))
        vectors = self._serving.table.catalogue().vectors
        new = adapter.rebuilt(self._serving.meta, block, counts, vectors)
        return {k: v.index_copy(0, chosen, new[k].to(v.dtype)) for k, v in state.items()}

    def _observe(
        self, users: Users, part: Round, block: Events, rows: Ints, before: Records
    ) -> None:
        """Count the events for everybody, partition by partition."""
        support = before["support"]
        width = int((support["item"] != 0).sum(1).max(initial=0))
        past = self._serving.table.rows_of(support["item"][:, :width])
        values = np.where(block.mask, block.values, 0)
        previous = previous_items(past, support["value"][:, :width], rows, values, block.mask)
        times = block.times / MILLISECONDS
        partitions = users.partitions[part.users]
        for partition in np.unique(partitions).tolist():
            mine = block.mask & (partitions == partition)[:, None]
            delta = self._serving.signals.observe(
                partition, rows[mine], block.values[mine], times[mine], previous[mine]
            )
            users.touched[partition].append(delta.rows)

    # -- versions -----------------------------------------------------------------------------

    def _stamp(self, batch: DecodedBatch, users: Users) -> None:
        """Give changed records their next version; the model's only where an adapter is its own."""
        np.maximum(users.newest, users.cause, out=users.newest)
        changed = np.flatnonzero(users.newest >= 0)
        if not len(changed):
            return
        offsets = np.array([batch.records[i].offset for i in users.newest[changed]], np.int64)
        model = users.records["model"][changed]
        stamped = user_state.stamp(picked(users.records, changed), offsets, self._model)
        stamped["model"] = np.where(users.cause[changed] >= 0, stamped["model"], model)
        put(users.records, changed, stamped)


def _stored(
    index: dict[tuple[int, str], int], stores: dict[int, PartitionStore]
) -> list[bytes | None]:
    members: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
    for (partition, user), place in index.items():
        members[partition].append((place, user_state.user_key(user.encode())))
    stored: list[bytes | None] = [None] * len(index)
    for partition, keys in members.items():
        values = stores[partition].get_many([key for _, key in keys])
        for (place, _), value in zip(keys, values, strict=True):
            stored[place] = value
    return stored
