"""The demo's data: the shipped ratings in two parts by time, and what the two visitors like."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from adapters.signals import bucket_start
from adapters.types import ModelConfig
from stream import movietweetings
from stream.message_types import Field, Interaction, Item

TAIL = 8_000
"""Ratings at the end of the log that training does not see; about, since hours stay whole."""

LIKED = 7.0
"""Stars of ten from which a rating says that the film was liked."""

_WORD = re.compile(r"\w{4,}")
_COMMON_WORDS = frozenset({"with", "from", "this", "that", "your", "what", "when", "part", "movie"})


@dataclass(frozen=True, slots=True)
class Film:
    """What the terminal shows of an item."""

    title: str
    year: int
    genres: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.title} ({self.year})  {', '.join(self.genres)}"

    @property
    def words(self) -> set[str]:
        """The words of the title that can be a theme."""
        return set(_WORD.findall(self.title.casefold())) - _COMMON_WORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Taste:
    """A visitor, as data: which films to click, and a film that is still missing."""

    user: str
    likes: frozenset[str]  # genres that each clicked film has
    avoids: frozenset[str]  # genres that none has
    before: int  # year; films of the day are in everybody's list anyway
    missing: Film

    def suits(self, film: Film) -> bool:
        """Whether this visitor would click it."""
        genres = set(film.genres)
        return film.year < self.before and self.likes <= genres and not self.avoids & genres


ANNA = Taste(
    user="anna",
    likes=frozenset({"Horror"}),
    avoids=frozenset({"Comedy", "Animation", "Family", "Romance", "Action"}),
    before=2012,
    missing=Film("The Haunting of Hollow House", 2013, ("Horror", "Thriller")),
)
BEN = Taste(
    user="ben",
    likes=frozenset({"Animation", "Family"}),
    avoids=frozenset({"Horror", "Thriller", "Crime"}),
    before=2012,
    missing=Film("The Little Dragon's Big Adventure", 2013, ("Animation", "Comedy", "Family")),
)


class Films:
    """The shipped log: items, what came before `cut`, and the live part from there on."""

    def __init__(self, items: Sequence[Item], events: Sequence[Interaction]) -> None:
        self.items = list(items)
        self.events = list(events)
        first = self.events[-min(TAIL, len(self.events))].timestamp / 1e3
        hour = bucket_start(np.array([first]), ModelConfig().bucket)
        self.cut = float(hour[0])  # unix seconds of event time

    @classmethod
    def shipped(cls) -> Films:
        """The data that comes with Innerloop."""
        return cls(movietweetings.items(), movietweetings.events())

    @cached_property
    def tail(self) -> list[Interaction]:
        """The live part."""
        return [event for event in self.events if event.timestamp >= self.cut * 1e3]

    @cached_property
    def films(self) -> dict[str, Film]:
        """What to show, by item id."""
        return {item.item: _film(item) for item in self.items}

    def favourites(self, suits: Callable[[Film], bool], count: int) -> list[str]:
        """The films most often liked before `cut` among those that suit."""
        liked = Counter(
            event.item
            for event in self.events[: len(self.events) - len(self.tail)]
            if event.value is not None and event.value >= LIKED
        )
        known = ((item, n) for item, n in liked.most_common() if suits(self.films[item]))
        return [item for item, _ in known][:count]

    def add(self, item: Item) -> None:
        """Show this film too."""
        self.films[item.item] = _film(item)


def message(item: str, film: Film, timestamp: int) -> Item:
    """The item message of a film that appears at `timestamp` (ms of event time)."""
    return Item(
        id=item,
        timestamp=timestamp,
        item=item,
        fields=[
            Field(name="title", value=film.title),
            Field(name="year", value=film.year),
            Field(name="category", value=list(film.genres)),
        ],
    )


def on_theme(film: Film, clicks: Iterable[Film]) -> bool:
    """Whether a film has a genre of at least two clicks, or a word of one of their titles."""
    clicks = list(clicks)
    genres = Counter(genre for click in clicks for genre in click.genres)
    shared = {genre for genre, times in genres.items() if times >= min(2, len(clicks))}
    words = set[str]().union(*(click.words for click in clicks))
    return bool(shared & set(film.genres)) or bool(words & film.words)


def _film(item: Item) -> Film:
    values = {field.name: field.value for field in item.fields}
    year, genres = values.get("year"), values.get("category")
    return Film(
        title=str(values.get("title", item.item)),
        year=year if isinstance(year, int) else 0,
        genres=tuple(map(str, genres)) if isinstance(genres, list) else (),
    )
