"""What a training reads: from files, or a window of the topics that stays the same when resumed."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from numpy.typing import NDArray

from adapters import episodes
from adapters.episodes import Log
from stream import config, datasets, files, window
from stream.columns import Columns
from stream.errors import DataError, ResumeError
from stream.item_encoder import ItemRows
from stream.messages import Item, encode
from stream.parents import Parent
from stream.progress import Reporter
from stream.run_folder import About, RunFolder
from stream.window import Left, Window

if TYPE_CHECKING:
    from stream.training import Request

ITEMS_FILE = "items.jsonl.gz"
"""In the folder of a run from Kafka."""

_HELD_OUT = b"held out\0"
"""Put before a user's id when it is hashed: other shares of users are drawn otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FromKafka:
    """Train on the topics of `kafka` in the settings."""

    length_s: float | None = None  # of event time before the newest event; None = all


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What was read; rows of `log` are places in `items`, its users places in `columns`."""

    columns: Columns
    items: list[Item]
    log: Log
    messages: config.Messages
    window: Window | None = None  # None = files
    left: Left | None = None  # what workers would not take either


def read(request: Request, reporter: Reporter, folder: RunFolder | None = None) -> Data:
    """Events and items of a training.

    A run that goes on reads the window that its folder holds. Raises `DataError`, and
    `ResumeError` where that window is another one than the one that is asked for.
    """
    if request.kafka is None:
        return _from_files(request, reporter)
    with reporter.phase("read events and items") as advance:
        measured = _window(request, request.kafka, folder)
        taken = window.take(request.settings, measured, lambda share: advance(share, ""))
        datasets.require_enough(taken.columns, measured.events.topic)
        items = same_items(taken.items, folder, request)
        log = datasets.to_log(taken.columns, [i.item for i in items], request.settings.state)
    data = Data(
        columns=taken.columns,
        items=items,
        log=log,
        messages=request.settings.messages,
        window=measured,
        left=taken.left,
    )
    _say_size(reporter, data)
    _say_left(reporter, taken.left)
    return data


def held_out(data: Data, share: float, seed: int) -> NDArray[np.int64]:
    """Users that are kept from the encoder, numbers of the log.

    From files by the seed. From Kafka by a hash of their ids, the same ones in every training: a
    model that goes on from its parent has then not met them through it either.
    """
    if data.window is None:
        return episodes.draw_users(data.log, share, seed)
    hashes = [xxhash.xxh3_64_intdigest(_HELD_OUT + u.encode()) for u in data.columns.user_ids]
    return np.flatnonzero(np.array(hashes, np.float64) < share * 2.0**64)


def about(request: Request, data: Data, rows: ItemRows, parent: Parent | None) -> About:
    """What the run depends on, and a digest of all that was read."""
    log, digest = data.log, xxhash.xxh3_128()
    columns = (log.users, log.items, log.actions, log.values, log.times)
    for column in (*columns, rows.hashes, rows.content, rows.created, rows.text, rows.dense):
        digest.update(b"" if column is None else np.ascontiguousarray(column).tobytes())
    first, last = (datetime.fromtimestamp(log.times[i], UTC).isoformat() for i in (0, -1))
    return About(
        name=request.name,
        events=list(request.events),
        items=list(request.items),
        seed=request.seed,
        budget_s=request.budget_s,
        first=first,
        last=last,
        interactions=len(log),
        users=len(np.unique(log.users)),
        catalogue=len(rows),
        data_digest=digest.hexdigest(),
        window=None if data.window is None else data.window.to_dict(),
        parent=None if parent is None else parent.to_dict(),
    )


# -- sources ------------------------------------------------------------------------------------


def _from_files(request: Request, reporter: Reporter) -> Data:
    settings = request.settings
    messages = datasets.messages_for([*request.events, *request.items], settings.messages)
    with reporter.phase("read events and items"):
        items = datasets.read_items(request.items, messages, request.on_bad)
        columns = datasets.read_events(request.events, messages, request.on_bad, request.until)
        log = datasets.to_log(columns, [item.item for item in items], settings.state)
    data = Data(columns=columns, items=items, log=log, messages=messages)
    _say_size(reporter, data)
    return data


def _window(request: Request, source: FromKafka, folder: RunFolder | None) -> Window:
    """The window as it is now, or the one with which the run began. Raises `ResumeError`."""
    kept = None if folder is None else folder.before("window")
    if kept is None:
        return window.measure(request.settings, source.length_s, request.until)
    began = Window.from_dict(kept)
    topic = request.settings.kafka.topic("events")
    for name, before, now in (
        ("window", began.length_s, source.length_s),
        ("until", began.until, request.until),
        ("topic", began.events.topic, topic),
    ):
        if before != now:
            raise ResumeError(f"{name} was {before or 'unset'}, now it is {now or 'unset'}")
    return began


def same_items(items: list[Item], folder: RunFolder | None, request: Request) -> list[Item]:
    """The items of the run's beginning, kept in its folder.

    `items` is compacted: an item that has changed since is no longer there as it was.
    """
    if not items:
        topic = request.settings.kafka.topic("items")
        raise DataError(f"{topic} holds no items", remedy="Send some, as docs/messages.md says.")
    if folder is None:
        return items
    path = folder.path / ITEMS_FILE
    if not path.exists():
        _write_items(path, items)
        return items
    return list(files.read_items([path], request.settings.messages))


def _write_items(path: Path, items: Sequence[Item]) -> None:
    draft = path.with_name(f".{path.name}")
    with gzip.open(draft, "wb", compresslevel=1) as out:
        out.writelines(encode(item) + b"\n" for item in items)
    draft.replace(path)


# -- words --------------------------------------------------------------------------------------


def _say_size(reporter: Reporter, data: Data) -> None:
    first, last = (datetime.fromtimestamp(data.log.times[i], UTC) for i in (0, -1))
    reporter.say(
        f"{len(data.columns):,} interactions of {len(data.columns.user_ids):,} users with "
        f"{len(data.columns.item_ids):,} items, {first:%Y-%m-%d} to {last:%Y-%m-%d}; "
        f"{len(data.items):,} items in the catalogue"
    )


def _say_left(reporter: Reporter, left: Left) -> None:
    """What was read and is not learned from, where there is any."""
    told = [f"{count:,} {name.replace('_', ' ')}" for name, count in left.counts().items() if count]
    if told:
        reporter.say(f"left out: {', '.join(told)}")
