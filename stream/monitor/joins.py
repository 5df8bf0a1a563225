"""What users do, joined with the lists that they had when they did it.

Events and lists come from two topics, and neither waits for the other. So an event is held back
until the lists of its partition have come some seconds further than the event, or until none has
come for so long (an idle source does not hold the others up: Akidau et al., "The Dataflow Model",
2015). Then the list in force is the newest one that was published before the event, by the records'
own times; where there is none, or it has expired, rankers serve `_cold`, and so do we.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass

from adapters.cohorts import cohort_of
from stream.config import Settings
from stream.message_checks import COLD_KEY
from stream.message_encoding import Recommendation
from stream.messages import Interaction, Ranking, evidence
from stream.monitor.control import STRATEGIES, Halves, Key
from stream.monitor.memory import Impression, Listed, Memory, Remembered, hashed, newest_before
from stream.monitor.windows import Group, Sums, Window, note_wait

SETTLE_S = 2.0
"""How far the lists of a partition must have come beyond an event before it is judged."""

MOST_HELD = 100_000
"""Events that are held back; beyond it the oldest are judged at once."""

_COLD_LISTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """An event that waits to be judged."""

    time: float  # of its record
    read: float  # when it was read, unix seconds
    offset: int
    user: int
    event: Interaction | Ranking


class Join:
    """Follows lists and events of any number of partitions; figures go to `window` and `halves`."""

    def __init__(
        self, settings: Settings, window: Window, halves: Halves, kinds: Mapping[int, str]
    ) -> None:
        """`kinds` are the categories of items, by hash; it may grow."""
        self._settings = settings
        self._window, self._halves, self._kinds = window, halves, kinds
        self._memory = Memory(settings.monitor.max_users)
        self._cold: defaultdict[int, deque[Listed]] = defaultdict(lambda: deque(maxlen=_COLD_LISTS))
        self._held: defaultdict[int, deque[_Held]] = defaultdict(deque)
        self._reached: dict[int, tuple[float, float]] = {}  # newest list's time, and when read
        self.unjudged: Counter[str] = Counter()

    @property
    def users(self) -> int:
        """Users who are remembered."""
        return len(self._memory)

    @property
    def held(self) -> int:
        """Events that wait to be judged."""
        return sum(map(len, self._held.values()))

    # -- what comes in --------------------------------------------------------------------------

    def published(
        self, partition: int, time: float, key: str, found: Recommendation | None, now: float
    ) -> None:
        """A record of `recommendations`; None = the user's list is gone."""
        self._reached[partition] = (max(time, self._reached.get(partition, (time, 0))[0]), now)
        if found is None:
            self._memory.forget(hashed(key))
            return
        new = self._listed(time, found)
        if key == COLD_KEY:
            self._cold[partition].append(new)
            return
        known = self._memory.of(hashed(key))
        self._count_list(known.lists[-1] if known.lists else None, new)
        known.lists.append(new)

    def happened(
        self, partition: int, offset: int, time: float, event: Interaction | Ranking, now: float
    ) -> None:
        """An accepted event of `events`."""
        held = _Held(time=time, read=now, offset=offset, user=hashed(event.user), event=event)
        self._held[partition].append(held)

    def forgotten(self, user: str) -> None:
        """A user asked to be erased: nothing is remembered, nothing that waits is judged."""
        erased = hashed(user)
        self._memory.forget(erased)
        for partition, queue in self._held.items():
            self._held[partition] = deque(held for held in queue if held.user != erased)

    def left(self, partition: int) -> None:
        """The partition is another monitor's now."""
        self._held.pop(partition, None)
        self._cold.pop(partition, None)
        self._reached.pop(partition, None)

    def settle(self, now: float) -> None:
        """Judge what has waited long enough; `now` is the wall clock."""
        overflow = self.held - MOST_HELD
        for partition, queue in self._held.items():
            while queue and (overflow > 0 or self._ready(partition, queue[0], now)):
                self._judge(partition, queue.popleft())
                overflow -= 1

    # -- judging --------------------------------------------------------------------------------

    def _ready(self, partition: int, held: _Held, now: float) -> bool:
        time, read = self._reached.get(partition, (0.0, 0.0))
        return time >= held.time + SETTLE_S or now - max(read, held.read) >= SETTLE_S

    def _judge(self, partition: int, held: _Held) -> None:
        known = self._memory.of(held.user)
        answer = known.answer_to(held.offset)
        if answer is not None:
            note_wait(self._window.at(answer.time), max(0.0, answer.time - held.time))
        if isinstance(held.event, Ranking):
            self._show(known, held, held.event)
        else:
            self._act(known, partition, held, held.event)

    def _show(self, known: Remembered, held: _Held, event: Ranking) -> None:
        """Count the shown items that the list in force has among its first K."""
        current = known.before(held.time)
        if current is None:
            self.unjudged["shown_without_list"] += 1
            return
        places = set(current.items)
        for item in map(hashed, event.items):
            if item in places:
                known.shown.append(Impression(held.time, item, current.group))
                self._window.add(held.time, current.group, Sums(shown=1))

    def _act(self, known: Remembered, partition: int, held: _Held, event: Interaction) -> None:
        item = hashed(event.item)
        if self._weak(event):
            self.unjudged["weak"] += 1
            return
        self._click(known, held.time, item)
        repeated = self._settings.ranking.exclude_seen and item in known.acted
        known.acted.append(item)
        if repeated:
            self.unjudged["repeated"] += 1
            return
        self._note_taste(held.time, item)
        current = self._in_force(known, partition, held)
        if current is None:
            self.unjudged["no_list"] += 1
            return
        self._hit_or_miss(held, current, item)

    def _weak(self, event: Interaction) -> bool:
        said = evidence(event.type, event.value, self._settings.messages)
        return said <= self._settings.monitor.weak_evidence

    def _click(self, known: Remembered, time: float, item: int) -> None:
        """The first action on an item that was shown, within the feedback window."""
        since = time - self._settings.state.feedback_window_s
        for shown in known.shown:
            if shown.item == item and not shown.clicked and since <= shown.time <= time:
                shown.clicked = True
                self._window.add(shown.time, shown.group, Sums(clicked=1))
                return

    def _note_taste(self, time: float, item: int) -> None:
        bucket = self._window.at(time)
        bucket.clicks[item] += 1
        kind = self._kinds.get(item)
        if kind is not None:
            bucket.kinds[kind] += 1

    def _in_force(self, known: Remembered, partition: int, held: _Held) -> Listed | None:
        """The list that a ranker would have served; None where that is not known.

        A user without a list may be new, or may have got his before this monitor began. The list
        that answers the event tells: it is a new user's where it says that this was his first.
        """
        own = known.before(held.time)
        if own is not None and own.expires > held.time:
            return own
        first = known.since(held.time)
        is_new = first is not None and first.shots == 1 and first.cause == held.offset
        return newest_before(self._cold[partition], held.time) if own or is_new else None

    def _hit_or_miss(self, held: _Held, current: Listed, item: int) -> None:
        hit = item in current.items
        self._window.add(held.time, current.group, Sums(judged=1, hits=int(hit)))
        group = current.group
        if group.strategy in STRATEGIES:
            self._halves.note(held.time, Key(group.strategy, group.model, held.user), hit)

    # -- lists ----------------------------------------------------------------------------------

    def _listed(self, time: float, found: Recommendation) -> Listed:
        first = found.items[: self._settings.monitor.k]
        return Listed(
            time=time,
            expires=found.expires_at / 1000,
            group=Group(found.strategy, cohort_of(found.shots), found.model_version),
            shots=found.shots,
            items=array("Q", (hashed(entry.item) for entry in first)),
            cause=-1 if found.caused_by is None else found.caused_by.offset,
        )

    def _count_list(self, before: Listed | None, new: Listed) -> None:
        sums = Sums(lists=1)
        if before is not None and new.items:
            fresh = sum(item not in before.items for item in new.items)
            sums = Sums(lists=1, compared=1, new_items=fresh / len(new.items))
        self._window.add(new.time, new.group, sums)
        self._window.listed(new.time, new.items)
