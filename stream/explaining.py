"""Why an item stands where it does in a user's list: experts, and the events behind them.

Scores are made by the functions that the worker calls. What an event is worth is found by leaving
it out: the model's start steps through the support set without it, and the item is scored again.

Letters in shape comments: m items, s events of the support set, E parts of a score
(the experts, and the features of the second look where the model takes one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from adapters import adapter, interplay, ranking
from adapters.types import UserView
from stream import user_state
from stream.config import Settings
from stream.errors import UnknownItem
from stream.recommend import Recommender
from stream.serving import Serving
from stream.user_layout import copied
from stream.user_state import Events, Layout, Records

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

WORDS = {
    "encoder": "nearer to the taste learned step by step",
    "near": "like something that was clicked",
    "text": "reads like what was clicked",
    "popularity": "popular lately",
    "age": "recent",
    "covisit_prior": "liked by those who liked these",
    "covisit_stream": "picked with these in the last days",
    "repeat": "clicked before",
    "return": "people come back to it",
    "taken": "clicked before, and people come back to it",
    "shown": "shown and passed over",
    interplay.NAME: "how all of this goes together",
}
"""Parts of a score in words; a name stands for all that begin with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one expert adds to an item's score."""

    expert: str
    adds: float  # for this user
    new_user: float  # for a user nobody has seen
    moved: float  # the difference, over that of the average item of the list for new users


@dataclass(frozen=True, slots=True, kw_only=True)
class Influence:
    """What one event of the support set does to an item's score."""

    time: int  # ms
    action: str
    value: float
    item: str  # id, or the hash where the catalogue does not have it
    moved: float  # over what it does to the average item of the list for new users
    why: str  # the expert through which most of it comes, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """An item in the eyes of a user."""

    item: str
    title: str
    place: int | None  # 1 = the best of the whole catalogue; None = not ranked
    of: int  # items that are ranked for this user
    not_ranked: str | None  # why not, in words
    score: float
    interest: int  # which of the user's interests is nearest, 0 = the first
    why: str  # the expert that moved it most, in words
    parts: tuple[Part, ...]
    events: tuple[Influence, ...]  # the strongest first, for and against


class Explainer:
    """Scores and their causes for single users, with the worker's own functions."""

    def __init__(self, settings: Settings, serving: Serving) -> None:
        self.serving = serving
        self._recommender = Recommender(settings, serving, lambda: 0.0)
        self._layout = Layout.of(serving.meta.config, repeats=settings.ranking.repeats)
        self._model = user_state.hash_id(serving.version)
        self._names = ranking.names(serving.meta)
        self._actions = serving.meta.config.actions
        self._words = [WORDS[_group(name)] for name in self._names]

    # -- what the worker computes -------------------------------------------------------------

    def rows(self, items: Sequence[str]) -> Ints:
        """Rows [m] of item ids. Raises `UnknownItem`."""
        rows = np.array([self.serving.table.row(item) for item in items], np.int64)
        if (rows < 0).any():
            raise UnknownItem(items[int(np.argmin(rows))])
        return rows

    @torch.inference_mode()
    def view(self, user: str, value: bytes | None) -> UserView:
        """What ranking knows of a user with this record; None = of one nobody has seen."""
        if value is not None:
            return self._recommender.view(self._record(value), self._recommender.control([user]))
        meta = self.serving.meta
        return ranking.empty_view(meta, adapter.read(meta, adapter.init(meta, 1)))

    @torch.inference_mode()
    def contributions(self, view: UserView, items: Sequence[str]) -> Floats:
        """What each expert adds to the scores of these items for one user: [m, E]."""
        return np.asarray(self._contributions(view, self.rows(items))[0])

    def reasons(self, moved: Floats) -> list[str]:
        """In words, the expert that moved each of m items most, by `moved` [m, E].

        What all of them say together is no reason that anybody could follow.
        """
        words = [word for word in dict.fromkeys(self._words) if word != WORDS[interplay.NAME]]
        own = np.array(self._words)
        summed = np.stack([moved[:, own == word].sum(1) for word in words], 1)
        return [words[place] for place in summed.argmax(1).tolist()]

    @torch.inference_mode()
    def best(self, view: UserView, count: int | None = None) -> tuple[list[str], list[float]]:
        """Ids and scores of the items that are ranked for one user, best first."""
        prepared = self.serving.prepared()
        ranked = ranking.rank_prepared(self.serving.meta, prepared, view, count or prepared.size)
        pairs = zip(ranked.items[0].tolist(), ranked.scores[0].tolist(), strict=True)
        found = [(self.serving.table.ids[row], score) for row, score in pairs if row >= 0]
        return [item for item, _ in found], [score for _, score in found]

    def _record(self, value: bytes) -> Records:
        """The record, its adapter made anew where another model, or none, has written it."""
        record = self._layout.decode([value])
        if user_state.has_adapter(record)[0] and record["model"][0] == self._model:
            return record
        return self._stepped(record, user_state.support_events(record))

    # -- causes -------------------------------------------------------------------------------

    @torch.inference_mode()
    def explain(self, user: str, value: bytes, items: Sequence[str]) -> list[Explanation]:
        """Each of these items for the user with this record. Raises `UnknownItem`."""
        rows, view, new = self.rows(items), self.view(user, value), self.view(user, None)
        baseline = self.rows(self.best(new, _BASELINE)[0])
        both = np.concatenate([rows, baseline])
        adds, unseen = (self._contributions(v, both)[0] for v in (view, new))
        moved = _over(adds - unseen, len(rows))
        events, steps = self._influences(user, value, both, len(rows))
        places = {item: place for place, item in enumerate(self.best(view)[0], 1)}
        vectors = self.serving.table.catalogue().vectors[torch.from_numpy(rows)]
        nearest = (view.interests[0] @ vectors.T).argmax(0).tolist()
        return [
            Explanation(
                item=item,
                title=self.serving.table.titles[rows[i]],
                place=places.get(item),
                of=len(places),
                not_ranked=None if item in places else self._why_not(view, int(rows[i])),
                score=float(adds[i].sum()),
                interest=int(nearest[i]),
                why=self.reasons(moved[i : i + 1])[0],
                parts=self._parts(adds[i], unseen[i], moved[i]),
                events=self._told(events, steps[:, i]),
            )
            for i, item in enumerate(items)
        ]

    def _contributions(self, view: UserView, rows: Ints) -> Floats:
        """[n, m, E] of n users."""
        places = torch.from_numpy(rows).to(self.serving.device).expand(len(view.shots), -1)
        prepared = self.serving.prepared()
        found = ranking.contributions(self.serving.meta, prepared, view, places)
        return np.asarray(found.cpu())

    def _parts(self, adds: Floats, new: Floats, moved: Floats) -> tuple[Part, ...]:
        columns = zip(self._names, adds.tolist(), new.tolist(), moved.tolist(), strict=True)
        return tuple(Part(expert=n, adds=a, new_user=b, moved=c) for n, a, b, c in columns)

    def _influences(self, user: str, value: bytes, rows: Ints, count: int) -> tuple[Events, Floats]:
        """Events of the support set, and what each does to the first `count` rows: [s, m, E]."""
        record = self._layout.decode([value])
        past = user_state.support_events(record)
        records = self._without_each(record, past)
        view = self._recommender.view(records, self._recommender.control([user] * len(records)))
        found = self._contributions(view, rows)
        return past, _over(found[:1] - found[1:], count)

    def _without_each(self, record: Records, past: Events) -> Records:
        """The record rebuilt from its support set, and then without each event of it: [s + 1]."""
        s = past.mask.shape[1]
        columns = {f.name: np.repeat(getattr(past, f.name), s + 1, 0) for f in fields(Events)}
        columns["mask"] &= ~np.eye(s + 1, s, k=-1, dtype=np.bool_)
        chosen = Events(**columns)
        empty = np.repeat(copied(record), s + 1)
        empty["support"] = np.zeros((), empty["support"].dtype)
        empty["shots"] -= np.uint64(s)
        return self._stepped(user_state.fold_events(empty, chosen), chosen)

    def _stepped(self, records: Records, events: Events) -> Records:
        """The records with the adapter that follows from these events."""
        meta, serving = self.serving.meta, self.serving
        block = serving.block(events, serving.rows(events))
        start = serving.start(user_state.profile_buckets(records))
        if not events.mask.shape[1]:
            return self._layout.set_adapter(records, start)
        state = adapter.advance(meta, start, block, serving.table.catalogue().vectors)
        return self._layout.set_adapter(records, state)

    def _told(self, past: Events, moved: Floats) -> tuple[Influence, ...]:
        """The events in words, by `moved` [s, E]; the one that matters most first."""
        total = moved.sum(1)
        signed = moved * np.sign(total)[:, None]
        reasons = self.reasons(signed) if len(moved) else []
        order = np.argsort(-np.abs(total), kind="stable").tolist()
        return tuple(
            Influence(
                time=int(past.times[0, i]),
                action=self._action(int(past.actions[0, i])),
                value=float(past.values[0, i]),
                item=self._item(past.items[0, i]),
                moved=float(total[i]),
                why=reasons[i],
            )
            for i in order
        )

    def _action(self, place: int) -> str:
        return self._actions[place] if place < len(self._actions) else "unknown"

    def _item(self, hashed: np.uint64) -> str:
        row = int(self.serving.table.rows_of(np.array([hashed], np.uint64))[0])
        return self.serving.table.ids[row] if row >= 0 else f"#{int(hashed):016x}"

    def _why_not(self, view: UserView, row: int) -> str:
        """Why an item of the catalogue is not ranked."""
        if not view.repeats and bool((view.seen == row).any()):
            return "the user has acted on it, and ranking.exclude_seen is on"
        if not bool(self.serving.table.catalogue().alive[row]):
            return "it was deleted, or the model knows it and the topic of items does not"
        return "it appears after the hour up to which signals count"


_BASELINE = 20
"""Items of the list for new users that effects are measured against."""


def _group(name: str) -> str:
    """The longest of the WORDS that a part's name begins with."""
    return max((word for word in WORDS if name.startswith(word)), key=len)


def _over(change: Floats, count: int) -> Floats:
    """What the first `count` items changed by, over the average of the others: [.., count, E]."""
    first, others = change[..., :count, :], change[..., count:, :]
    return np.asarray(first - others.mean(-2, keepdims=True) if others.shape[-2] else first)
