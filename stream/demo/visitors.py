"""Two new users with different tastes, and a new film: what their lists make of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from stream.demo.films import ANNA, BEN, Film, Films, Taste, message, on_theme
from stream.demo.replica import Replica
from stream.demo.score import TOP
from stream.demo.screen import Screen
from stream.demo.stage import WorkerProcess
from stream.demo.traffic import Exchange, Seen
from stream.demo.watch import read
from stream.errors import InnerloopError
from stream.message_types import Interaction

CLICKS = 3
NEW_ON_THEME = 3
"""Places of the top 10 that have to be new and on theme after three clicks."""

SHARED_AT_MOST = 5
"""Places of the top 10 that the two visitors may share."""

_WAIT_S = 20.0
_GENRES = 3


class ListMissing(InnerloopError):
    """A list did not come. Read the worker's log, which is named above."""

    exit_code = 9


class EventTime:
    """Event time that goes on where the log ends, in step with the clock."""

    def __init__(self, newest: int) -> None:
        self._offset = newest - time.time_ns() // 1_000_000

    def now(self) -> int:
        """Milliseconds."""
        return time.time_ns() // 1_000_000 + self._offset


@dataclass
class Visitor:
    """A new user and the films of his lists, best first."""

    taste: Taste
    clicks: list[str] = field(default_factory=list)
    first: list[str] = field(default_factory=list)
    list: list[str] = field(default_factory=list)


@dataclass
class Visit:
    """Acts 4 and 5; what did not happen is in `missed`."""

    screen: Screen
    films: Films
    exchange: Exchange
    replica: Replica
    clock: EventTime
    visitors: tuple[Visitor, Visitor] = field(default_factory=lambda: (Visitor(ANNA), Visitor(BEN)))
    missed: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)

    # -- act 4 --------------------------------------------------------------------------------

    def meet(self) -> None:
        """Show the list for unseen users, then let both visitors click three films each."""
        cold = self.exchange.cold(_WAIT_S)
        if cold is None:
            raise ListMissing("the list for users nobody has seen")
        start = [entry.item for entry in cold.items]
        self.screen.say(f"Before the first click both have the list for new users ({TOP} best):")
        self._show(start, [""] * TOP, start)
        for visitor in self.visitors:
            visitor.first = visitor.list = start
            for item in self.films.favourites(visitor.taste.suits, CLICKS):
                self._click(visitor, item)
        self._check_lists()

    def _click(self, visitor: Visitor, item: str, *, quiet: bool = False) -> None:
        """One click: the new list with what moved, and why."""
        user, before = visitor.taste.user, visitor.list
        self.replica.follow(self.clock.now() / 1e3)
        was = self.replica.view(user if visitor.clicks else None)
        seen = self._send(visitor, item)
        visitor.clicks.append(item)
        visitor.list = [entry.item for entry in seen.list.items]
        if quiet:
            return
        self._say_click(visitor, item, seen)
        compared = list(dict.fromkeys([*before, *visitor.list]))
        old = self.replica.contributions(was, compared)
        new = self.replica.contributions(self.replica.view(user), compared)
        why = dict(zip(compared, self.replica.reasons(old, new), strict=True))
        self._show(visitor.list, [why[i] for i in visitor.list[:TOP]], before)

    def _send(self, visitor: Visitor, item: str) -> Seen:
        user, number = visitor.taste.user, len(visitor.clicks) + 1
        event = Interaction(
            id=f"{user}-{number}", timestamp=self.clock.now(), user=user, item=item, type="click"
        )
        self.exchange.send(event)
        seen = self.exchange.wait_for(event, _WAIT_S)
        if seen is None:
            raise ListMissing(f"after click {number} of {user}")
        return seen

    def _say_click(self, visitor: Visitor, item: str, seen: Seen) -> None:
        name, age = visitor.taste.user, 1000 * (seen.age or 0.0)
        self.screen.say()
        self.screen.say(
            f"{name} clicks {self._named(item)}; the new list is there {age:.0f} ms later:"
        )

    def _show(self, items: Sequence[str], why: Sequence[str], before: Sequence[str]) -> None:
        old = {item: place for place, item in enumerate(before)}
        rows = []
        for place, item in enumerate(items[:TOP]):
            rise = old.get(item, len(before)) - place
            mark = "new" if item not in old else f"+{rise}" if rise > 0 else ""
            reason = why[place] if mark else ""
            rows.append((f"{place + 1:>2}", mark, self._named(item), reason))
        self.screen.table(rows)

    def _named(self, item: str) -> str:
        film: Film = self.films.films[item]
        return f"{film.title} ({film.year}), {' '.join(film.genres[:_GENRES])}"

    def _check_lists(self) -> None:
        self.screen.say()
        for visitor in self.visitors:
            found, name = self._new_on_theme(visitor), visitor.taste.user
            said = f"{name}: {found} of the top {TOP} are new and on theme after {CLICKS} clicks"
            self._expect(found >= NEW_ON_THEME, said, f"at least {NEW_ON_THEME}")
        both = [set(v.list[:TOP]) for v in self.visitors]
        shared = len(both[0] & both[1])
        said = f"the two lists share {shared} of {TOP}"
        self._expect(shared <= SHARED_AT_MOST, said, f"at most {SHARED_AT_MOST}")

    def _new_on_theme(self, visitor: Visitor) -> int:
        clicks = [self.films.films[item] for item in visitor.clicks]
        fresh = [i for i in visitor.list[:TOP] if i not in visitor.first[:TOP]]
        return sum(on_theme(self.films.films[item], clicks) for item in fresh)

    # -- act 5 --------------------------------------------------------------------------------

    def release(self, worker: WorkerProcess) -> None:
        """Add a film that suits the first visitor; both click once more."""
        fan, other = self.visitors
        item = message("new-film", fan.taste.missing, self.clock.now())
        count = read(worker.get("/metrics")).items
        began = time.monotonic()
        self.exchange.send_items([item])
        self.films.add(item)
        self.replica.serving.table.upsert([item])
        seconds = self._ranked_after(worker, count, began)
        self.screen.say(
            f"New on the topic items: {self._named(item.item)}. "
            f"The worker read it and ranks it {1000 * seconds:.0f} ms later."
        )
        ranks = []
        for visitor in (fan, other):
            self._click(visitor, self._next(visitor), quiet=True)
            ranks.append(self._say_rank(visitor, item.item))
        name = fan.taste.user
        self._expect(ranks[0] is not None, f"the new film is in {name}'s list", "in it")
        higher = ranks[0] is not None and (ranks[1] is None or ranks[0] < ranks[1])
        self._expect(higher, f"{other.taste.user}'s list has it lower or not at all", "so")

    def _next(self, visitor: Visitor) -> str:
        wanted = self.films.favourites(visitor.taste.suits, len(visitor.clicks) + 1)
        return wanted[-1]

    def _ranked_after(self, worker: WorkerProcess, count: float, began: float) -> float:
        while read(worker.get("/metrics")).items <= count:
            worker.check()
            if time.monotonic() - began > _WAIT_S:
                raise ListMissing("with the new film")
            time.sleep(0.01)
        return time.monotonic() - began

    def _say_rank(self, visitor: Visitor, item: str) -> int | None:
        name, clicked = visitor.taste.user, self.films.films[visitor.clicks[-1]].title
        rank = visitor.list.index(item) + 1 if item in visitor.list else None
        place = f"at place {rank}" if rank else f"not among {len(visitor.list)}"
        self.screen.say(f"{name} clicks {clicked}: the new film is {place}.")
        return rank

    def _expect(self, well: bool, said: str, wanted: str) -> None:
        self.results.append(said)
        self.screen.say(f"{'ok' if well else 'NOT OK'}: {said} (expected: {wanted})")
        if not well:
            self.missed.append(said)
