"""Events and items in files: JSONL, plain or compressed, and Parquet, in the message format.

Files are streamed: memory is bounded by a chunk of a megabyte or a batch of rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stream import config
from stream.errors import DataError
from stream.message_checks import Limits, Refused, Skipped
from stream.message_types import Event, Item
from stream.messages import read_event, read_item

_CHUNK = 1 << 20  # bytes read at once
_LONGEST_LINE = 64 << 20  # bytes; a longer one is no JSONL
_ROWS = 8_192  # Parquet rows read at once
_COMPRESSION = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
_SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", *_COMPRESSION)
M = TypeVar("M")

OnBad = Callable[[DataError], None]
"""Told about a line that cannot be used, which is then passed over."""

OnProgress = Callable[[float], None]
"""Told now and then which share of a file has been read, 0 to 1."""


class Line(NamedTuple):
    """A message in a file: its line, or the row of a Parquet file, counted from 1."""

    path: Path
    number: int
    value: bytes


def read_events(
    paths: Iterable[Path], settings: config.Messages, on_bad: OnBad | None = None
) -> Iterator[Event]:
    """The events of files in file order; ignored actions are left out.

    A line the worker would refuse raises `DataError`, or goes to `on_bad`. "Future" means after
    now.
    """
    return _read(paths, settings, read_event, on_bad)


def read_items(
    paths: Iterable[Path], settings: config.Messages, on_bad: OnBad | None = None
) -> Iterator[Item]:
    """The items of files in file order. Raises as `read_events` does."""
    return _read(paths, settings, read_item, on_bad)


def read_lines(path: Path, on_progress: OnProgress | None = None) -> Iterator[Line]:
    """The messages of a file as bytes, unchecked. Raises `DataError`."""
    reader = _parquet if path.suffix == ".parquet" else _jsonl
    try:
        yield from reader(path, on_progress or (lambda share: None))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except pa.ArrowException as error:
        raise DataError(
            f"{path}: {error}", remedy="Check that the file is whole and is what its name says."
        ) from None


def expand(paths: Iterable[Path]) -> list[Path]:
    """Files as they are, folders as the JSONL and Parquet files inside. Raises `DataError`."""
    result: list[Path] = []
    for path in paths:
        if not path.is_dir():
            result.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES)
        if not inside:
            raise DataError(f"{path} holds no JSONL or Parquet file")
        result.extend(inside)
    return result


def now_ms() -> int:
    """The wall clock in ms."""
    return time.time_ns() // 1_000_000


def bad_line(line: Line, refused: Refused) -> DataError:
    """The error for a message that the worker would refuse."""
    return DataError(
        f"{line.path} line {line.number}: {refused.detail.rstrip('.')}",
        remedy="Correct the line (docs/messages.md), or pass over such lines with --skip-bad.",
    )


def _read(
    paths: Iterable[Path],
    settings: config.Messages,
    read: Callable[[bytes, Limits], M],
    on_bad: OnBad | None,
) -> Iterator[M]:
    limits = Limits.of(settings, now_ms())
    for path in expand(paths):
        for line in read_lines(path):
            try:
                yield read(line.value, limits)
            except Skipped:
                continue
            except Refused as refused:
                if on_bad is None:
                    raise bad_line(line, refused) from None
                on_bad(bad_line(line, refused))


# -- JSONL --------------------------------------------------------------------------------------


def _jsonl(path: Path, on_progress: OnProgress) -> Iterator[Line]:
    number, rest = 0, b""
    for chunk in _chunks(path, on_progress):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            raise DataError(
                f"{path} line {number + len(lines) + 1} is longer than {_LONGEST_LINE >> 20} MiB",
                remedy="Write one JSON object a line.",
            )
        for number, line in enumerate(lines, number + 1):  # noqa: B020  # goes on counting
            if line.strip():
                yield Line(path, number, line.strip())
    if rest.strip():
        yield Line(path, number + 1, rest.strip())


def _chunks(path: Path, on_progress: OnProgress) -> Iterator[bytes]:
    size = max(path.stat().st_size, 1)
    with path.open("rb") as raw, _decompressed(path, raw) as stream:
        first = True
        while chunk := stream.read(_CHUNK):
            yield chunk.removeprefix(b"\xef\xbb\xbf") if first else chunk
            first = False
            on_progress(min(raw.tell() / size, 1.0))


@contextmanager
def _decompressed(path: Path, raw: object) -> Iterator[pa.NativeFile]:
    kind = _COMPRESSION.get(path.suffix)
    with pa.PythonFile(raw, mode="r") as file:
        if kind is None:
            yield file
            return
        with pa.CompressedInputStream(file, kind) as stream:
            yield stream


# -- Parquet ------------------------------------------------------------------------------------


def _parquet(path: Path, on_progress: OnProgress) -> Iterator[Line]:
    with pq.ParquetFile(path) as file:
        column = _json_column(file.schema_arrow)
        total = max(file.metadata.num_rows, 1)
        number = 0
        for batch in file.iter_batches(_ROWS, columns=[column] if column else None):
            values = _texts(batch) if column else _rows(path, batch)
            for number, value in enumerate(values, number + 1):  # noqa: B020  # goes on counting
                if value:
                    yield Line(path, number, value)
            on_progress(number / total)


def _json_column(schema: pa.Schema) -> str | None:
    """The column that holds messages as JSON text, if the file is of that kind."""
    names = schema.names if len(schema.names) == 1 else ["message", "value"]
    if "event" in schema.names:
        return None
    return next((n for n in names if n in schema.names and _is_text(schema.field(n).type)), None)


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)
    return any(test(kind) for test in (*tests, pa.types.is_large_binary))


def _texts(batch: pa.RecordBatch) -> list[bytes | None]:
    return [v.encode() if isinstance(v, str) else v for v in batch.column(0).to_pylist()]


def _rows(path: Path, batch: pa.RecordBatch) -> list[bytes]:
    """Rows as JSON objects; nulls are left out, a timestamp column becomes milliseconds."""
    names = batch.schema.names
    if "timestamp" in names and pa.types.is_timestamp(batch.schema.field("timestamp").type):
        at = names.index("timestamp")
        batch = batch.set_column(at, "timestamp", _milliseconds(path, batch.column(at)))
    return [
        orjson.dumps({k: v for k, v in row.items() if v is not None}, default=str)
        for row in batch.to_pylist()
    ]


def _milliseconds(path: Path, column: pa.Array) -> pa.Array:
    if column.type.tz is None:
        raise DataError(
            f"{path}: column `timestamp` has no time zone",
            remedy="Write it as a timestamp in UTC, or as an integer of milliseconds.",
        )
    return pc.cast(pc.cast(column, pa.timestamp("ms", "UTC"), safe=False), pa.int64())
