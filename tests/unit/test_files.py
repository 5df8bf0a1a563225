"""Logs in files, and how they are loaded."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream import movietweetings
from stream.columns import to_columns
from stream.config import Messages, State
from stream.datasets import to_log
from stream.errors import DataError
from stream.files import expand, read_events, read_items, read_lines
from stream.loading import Outgoing, Selection, messages_of, paced, select, send
from stream.messages import Field, Forget, Interaction, Item, Ranking, User, encode

SETTINGS = Messages()
NOW = 1_700_000_000_000
EVENTS = [
    Interaction(id=f"e{n}", timestamp=NOW + n, user=f"u{n % 3}", item=f"i{n % 5}", type="click")
    for n in range(20)
]
LINES = b"\n".join(encode(event) for event in EVENTS)


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_jsonl_is_read_plain_or_compressed(tmp_path: Path, suffix: str) -> None:
    """Events come out as they went in, blank lines and a byte order mark do not matter."""
    data = b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\n") + b"\n"
    if suffix.endswith("gz"):
        data = gzip.compress(data)
    elif suffix.endswith("zst"):
        data = pa.Codec("zstd").compress(data, asbytes=True)
    path = _write(tmp_path / f"log{suffix}", data)
    assert list(read_events([path], SETTINGS)) == EVENTS


def test_a_folder_stands_for_its_files(tmp_path: Path) -> None:
    """Files of a folder are read in the order of their names; other files are left alone."""
    _write(tmp_path / "b.jsonl", LINES)
    _write(tmp_path / "a.jsonl", LINES)
    _write(tmp_path / "README.md", b"x")
    assert expand([tmp_path]) == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    """The error names file, line, field and remedy."""
    path = _write(tmp_path / "log.jsonl", LINES + b'\n{"event": "interaction", "id": 3}\n')
    with pytest.raises(DataError, match=r"log\.jsonl line 21: .*\$\.id.* --skip-bad") as raised:
        list(read_events([path], SETTINGS))
    assert raised.value.exit_code != 0


def test_bad_lines_can_be_passed_over(tmp_path: Path) -> None:
    """With a handler, bad lines are told and the others are read."""
    path = _write(tmp_path / "log.jsonl", b"x\n" + LINES + b"\n[]")
    told: list[DataError] = []
    assert list(read_events([path], SETTINGS, told.append)) == EVENTS
    assert [error.detail.split(":")[0].split()[-1] for error in told] == ["1", "22"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.jsonl.gz", gzip.compress(LINES)[:-20]),
        ("no.jsonl.zst", b"not zstd"),
        ("no.parquet", b"not parquet"),
        ("empty.parquet", b""),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, data: bytes) -> None:
    """A file that is cut off or is something else gives one clear error."""
    with pytest.raises(DataError, match=name):
        list(read_lines(_write(tmp_path / name, data)))


def test_missing_files_and_empty_folders_are_named(tmp_path: Path) -> None:
    """A path that leads nowhere gives one clear error."""
    with pytest.raises(DataError, match="No such file"):
        list(read_lines(tmp_path / "nowhere.jsonl"))
    with pytest.raises(DataError, match="holds no"):
        expand([tmp_path])


def test_parquet_with_nested_columns(tmp_path: Path) -> None:
    """Rows are messages, nulls are absent fields, a zoned timestamp column is event time."""
    when = datetime.fromtimestamp(NOW / 1000, UTC)
    table = pa.table(
        {
            "event": ["interaction", "ranking"],
            "id": ["e1", "e2"],
            "timestamp": pa.array([when, when], pa.timestamp("us", "UTC")),
            "user": ["u1", "u1"],
            "item": ["i1", None],
            "type": ["rating", None],
            "value": [4.0, None],
            "items": [None, ["i1", "i2"]],
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    first, second = read_events([tmp_path / "log.parquet"], SETTINGS)
    assert isinstance(first, Interaction)
    assert (first.timestamp, first.value) == (NOW, 4.0)
    assert second.timestamp == NOW


def test_parquet_items_with_nested_fields(tmp_path: Path) -> None:
    """A list of name and value is read as an item's fields."""
    row = {"event": "item", "id": "m", "timestamp": NOW, "item": "i"}
    fields = [{"name": "title", "value": "T"}]
    pq.write_table(pa.Table.from_pylist([{**row, "fields": fields}]), tmp_path / "items.parquet")
    assert list(read_items([tmp_path / "items.parquet"], SETTINGS)) == [
        Item(id="m", timestamp=NOW, item="i", fields=[Field(name="title", value="T")])
    ]


def test_parquet_with_a_column_of_json(tmp_path: Path) -> None:
    """A column of JSON text is read like JSONL."""
    table = pa.table({"message": [encode(e).decode() for e in EVENTS], "n": list(range(20))})
    pq.write_table(table, tmp_path / "log.parquet")
    assert list(read_events([tmp_path / "log.parquet"], SETTINGS)) == EVENTS


def test_parquet_times_without_zone_are_refused(tmp_path: Path) -> None:
    """A timestamp column without a zone could mean any hour, and is refused."""
    table = pa.table({"event": ["forget"], "timestamp": pa.array([0], pa.timestamp("ms"))})
    pq.write_table(table, tmp_path / "log.parquet")
    with pytest.raises(DataError, match="no time zone"):
        list(read_events([tmp_path / "log.parquet"], SETTINGS))


def test_columns_are_aligned_and_sorted_by_time() -> None:
    """Columns hold the interactions in order of event time, ids in order of appearance."""
    columns = to_columns(reversed(EVENTS), SETTINGS)
    assert len(columns) == 20
    assert columns.user_ids == ["u0", "u1", "u2"]
    assert columns.item_ids == ["i0", "i1", "i2", "i3", "i4"]
    np.testing.assert_array_equal(columns.users, np.arange(20) % 3)
    np.testing.assert_array_equal(columns.items, np.arange(20) % 5)
    np.testing.assert_allclose(np.diff(columns.times), 1e-3, rtol=1e-3)
    assert {columns.action_names[a] for a in columns.actions} == {"click"}
    np.testing.assert_array_equal(columns.values, 1.0)
    assert len(to_columns([], SETTINGS)) == 0
    assert columns.shown is None
    assert columns.told is None


def test_what_users_were_shown_and_told_stands_beside_the_columns() -> None:
    """Lists and profiles of users who act; the best item of a list last; unknown items too."""
    fields = [Field(name="category", value=["Drama"])]
    shown = [
        Ranking(id="r1", timestamp=NOW + 5, user="u1", items=["i1", "new", "i4"]),
        Ranking(id="r2", timestamp=NOW + 6, user="nobody", items=["i1"]),
    ]
    told = [
        User(id="p1", timestamp=NOW, user="u2", fields=fields),
        User(id="p2", timestamp=NOW, user="nobody", fields=fields),
    ]
    columns = to_columns([*shown, *told, *EVENTS], SETTINGS)
    assert columns.item_ids == ["i0", "i1", "i2", "i3", "i4", "new"]
    assert columns.shown is not None
    assert columns.shown.items.tolist() == [4, 5, 1]
    assert columns.shown.users.tolist() == [1, 1, 1]
    assert columns.told is not None
    assert columns.told.users.tolist() == [2]
    assert (columns.told.buckets >= 0).sum() == 1
    log = to_log(columns, ["i4", "i1", "i0", "i2", "i3"], State(feedback_window_s=7.0))
    assert log.shown is not None
    assert log.shown.items.tolist() == [0, -1, 1]
    assert log.shown.window == 7.0


def test_what_came_before_an_erasure_is_not_learned_from() -> None:
    """A user who was erased begins anew in the columns, too."""
    erased = Forget(id="f", timestamp=NOW + 10, user="u0")
    columns = to_columns([*EVENTS, erased], SETTINGS)
    assert len(columns) == 20 - 4
    first = columns.times[columns.users == columns.user_ids.index("u0")].min()
    assert first == (NOW + 12) / 1e3


def test_the_shipped_log_is_whole() -> None:
    """The shipped ratings and films are all there, sorted, with unique ids and known items."""
    events, items = movietweetings.events(), movietweetings.items()
    assert len(events) == 100_000
    assert len({event.id for event in events}) == 100_000
    assert {event.item for event in events} <= {item.item for item in items}
    times = [event.timestamp for event in events]
    assert times == sorted(times)
    assert events[0].id == "mt-12620-2171847"
    assert items[0].fields == [
        Field(name="title", value="Fantômas - À l'ombre de la guillotine"),
        Field(name="year", value=1913),
        Field(name="category", value=["Crime", "Drama"]),
    ]
    columns = to_columns(events[:1_000], Messages(actions=movietweetings.ACTIONS))
    assert columns.values.min() >= -1
    assert columns.values.max() == 1


# -- loading --------------------------------------------------------------------------------------


class Sink:
    """A producer into a list that refuses one key."""

    def __init__(self, refuses: bytes = b"") -> None:
        self.sent: list[bytes | None] = []
        self.failures: list[tuple[bytes | None, str]] = []
        self._refuses = refuses

    def produce(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        """Take one message."""
        self.sent.append(key)
        if key == self._refuses:
            self.failures.append((key, "refused"))

    def poll(self) -> int:
        """Nothing waits."""
        return 0


def _outgoing(times: Iterable[int]) -> Iterator[Outgoing]:
    return (Outgoing(t, str(t).encode(), b"") for t in times)


def test_files_are_loaded_as_they_are_under_their_users_key(tmp_path: Path) -> None:
    """The bytes of a line are sent unchanged, keyed by user or item."""
    line = json.dumps({**json.loads(encode(EVENTS[0])), "novel": 1}).encode()
    path = _write(tmp_path / "log.jsonl", line)
    assert list(messages_of(str(path), "events", SETTINGS)) == [Outgoing(NOW, b"u0", line)]
    assert next(messages_of("movietweetings", "items", SETTINGS)).key == b"mt-0002844"
    assert next(messages_of("movietweetings", "events", SETTINGS)).key == b"mt-12620"


def test_a_selection_is_by_event_time_and_number() -> None:
    """The start is included, the end is not, and the limit counts what is sent."""
    chosen = select(_outgoing(range(10)), Selection(start=3, end=8, limit=4))
    assert [message.time for message in chosen] == [3, 4, 5, 6]


def test_a_replay_keeps_the_pace_of_event_time() -> None:
    """At speed 60, a minute of event time takes a second; a late one goes out at once."""
    now = 0.0
    naps: list[float] = []

    def nap(seconds: float) -> None:
        nonlocal now
        now += seconds
        naps.append(seconds)

    due = [now for _ in paced(_outgoing([0, 60_000, 30_000, 120_000]), 60.0, nap, lambda: now)]
    assert due == pytest.approx([0, 1, 1, 2])
    assert max(naps) <= 0.1


def test_loading_stops_when_a_message_is_not_delivered() -> None:
    """A failed delivery ends the load instead of being buried under the rest."""
    sink = Sink(refuses=b"2")
    assert send(_outgoing(range(10)), "events", sink, lambda sent: None) == 3
    assert sink.failures == [(b"2", "refused")]


def test_a_bad_line_says_how_much_was_sent_before(tmp_path: Path) -> None:
    """After a bad line the user knows where to go on from."""
    path = _write(tmp_path / "log.jsonl", LINES + b"\nx")
    messages = messages_of(str(path), "events", SETTINGS)
    with pytest.raises(DataError, match=r"line 21.*20 messages before it were sent"):
        send(messages, "events", Sink(), lambda sent: None)
