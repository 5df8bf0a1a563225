"""The log that comes with Innerloop: 100,000 film ratings of 2013, as events and items.

MovieTweetings by Simon Dooms, MIT licence, see stream/data/movietweetings.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from importlib.resources import files

from stream.config import Action
from stream.errors import DataError
from stream.message_types import Field, Interaction, Item

ACTIONS = {"rating": Action(weight=1.0, graded=True, neutral=5.0, scale=5.0)}
"""What a rating of 0 to 10 says: 10 is +1, 0 is -1."""

_TITLE = re.compile(r"(?P<title>.*?)\s*\((?P<year>\d{4})\)")


def events() -> list[Interaction]:
    """All ratings, sorted by (time, user, item); times are ms of event time. Raises `DataError`."""
    rows = sorted(
        (int(seconds), int(user), item, int(rating))
        for user, item, rating, seconds in _rows("ratings.dat")
    )
    return [
        Interaction(
            id=f"mt-{user}-{item}",
            timestamp=seconds * 1_000,
            user=f"mt-{user}",
            item=f"mt-{item}",
            type="rating",
            value=float(rating),
        )
        for seconds, user, item, rating in rows
    ]


def items() -> list[Item]:
    """All films: title, year, and genres as `category`; the timestamp is the year's beginning.

    Years before 1970 stand as 1970, before which there are no timestamps. Raises `DataError`.
    """
    return [_item(*row) for row in _rows("movies.dat")]


def _item(number: str, heading: str, genres: str) -> Item:
    match = _TITLE.fullmatch(heading)
    title, year = (match["title"], int(match["year"])) if match else (heading, 1970)
    begin = datetime(max(year, 1970), 1, 1, tzinfo=UTC)
    return Item(
        id=f"mt-{number}",
        timestamp=int(begin.timestamp()) * 1_000,
        item=f"mt-{number}",
        fields=[
            Field(name="title", value=title),
            Field(name="year", value=year),
            Field(name="category", value=[genre for genre in genres.split("|") if genre]),
        ],
    )


def _rows(name: str) -> list[list[str]]:
    path = files("stream") / "data" / "movietweetings" / name
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{name}: {error.strerror}", remedy="Install Innerloop again, its data is missing."
        ) from None
    return [line.split("::") for line in text.splitlines() if line]
