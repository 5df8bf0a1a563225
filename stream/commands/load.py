"""`innerloop load`: files to topics."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stream.commands.common import (
    ConfigOption,
    PrefixOption,
    ServersOption,
    SetOption,
    load_settings,
)

if TYPE_CHECKING:
    from stream.config import Settings
    from stream.errors import DataError
    from stream.files import OnProgress
    from stream.kafka.producer import BulkProducer
    from stream.loading import Role, Selection

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_PLAIN_EVERY_S = 5.0
_SHOWN_BAD_LINES = 10


@app.command(epilog="Example: innerloop load log.jsonl.zst --topic events --speed 60")
def load(
    files: Annotated[
        list[str],
        typer.Argument(
            help="JSONL (.gz, .zst too) or Parquet files, folders, or `movietweetings`.",
            metavar="FILE",
            show_default=False,
        ),
    ],
    topic: Annotated[
        Literal["events", "items"] | None,
        typer.Option("--topic", "-t", help="Where to. `movietweetings` alone goes to both."),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(help="Replay by event time, so many times as fast. Default: no pause.", min=0),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Send at most so many.", min=1)] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="Event time to begin with: RFC 3339 or ms.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Event time to end before: RFC 3339 or ms.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Pass over lines the worker would refuse.")
    ] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
) -> None:
    """Send events or items from files to Kafka.

    Event time stays as it is in the message; the record's timestamp is now. Every line is checked
    as the worker would check it.
    """
    from stream.loading import Selection

    settings = load_settings(
        config, set_, kafka__bootstrap_servers=bootstrap_servers, kafka__prefix=prefix
    )
    roles = _roles(files, topic)
    selection = Selection(
        start=_time("--from", from_), end=_time("--until", until), limit=limit, speed=speed or None
    )
    _load(settings, files, roles, selection, skip_bad=skip_bad)


def _roles(files: list[str], topic: Role | None) -> tuple[Role, ...]:
    from stream.errors import ConfigError
    from stream.loading import SHIPPED

    if topic is not None:
        return (topic,)
    if files == [SHIPPED]:
        return ("items", "events")
    raise ConfigError("load needs to know where to", remedy="Say --topic events or --topic items.")


def _time(option: str, text: str | None) -> int | None:
    from stream.errors import ConfigError
    from stream.message_checks import Refused, parse_time

    if text is None:
        return None
    try:
        return parse_time(text)
    except Refused:
        raise ConfigError(
            f"{option} {text}", remedy="Write it as 2013-03-01T00:00:00Z or in ms since the epoch."
        ) from None


def _load(
    settings: Settings,
    files: list[str],
    roles: tuple[Role, ...],
    selection: Selection,
    *,
    skip_bad: bool,
) -> None:
    from stream.kafka.admin import Admin
    from stream.kafka.producer import BulkProducer

    with Admin(settings.kafka) as admin:
        for role in roles:
            admin.partitions(settings.kafka.topic(role))
    producer = BulkProducer(settings)
    try:
        for role in roles:
            _load_role(settings, files, role, selection, producer, skip_bad=skip_bad)
    finally:
        producer.close()


def _load_role(
    settings: Settings,
    files: list[str],
    role: Role,
    selection: Selection,
    producer: BulkProducer,
    *,
    skip_bad: bool,
) -> None:
    from itertools import chain

    from stream.loading import messages_of, paced, select, send

    topic, began, bad = settings.kafka.topic(role), time.monotonic(), _BadLines()
    with _progress(f"{role} to {topic}") as (on_sent, on_progress):
        sources = (
            messages_of(f, role, settings.messages, bad if skip_bad else None, on_progress)
            for f in files
        )
        messages = select(chain.from_iterable(sources), selection)
        if selection.speed is not None:
            messages = paced(messages, selection.speed, _nap(producer))
        try:
            sent = send(messages, topic, producer, on_sent)
        finally:
            producer.flush()
    _check_delivery(producer, sent)
    seconds = time.monotonic() - began
    passed = f", {bad.count} bad lines passed over" if bad.count else ""
    typer.echo(f"{sent} {role} to {topic} in {seconds:.1f} s{passed}")


def _nap(producer: BulkProducer) -> Callable[[float], None]:
    def nap(seconds: float) -> None:
        producer.poll()
        time.sleep(seconds)

    return nap


def _check_delivery(producer: BulkProducer, sent: int) -> None:
    from stream.errors import DeliveryFailed

    if producer.failures:
        key, why = producer.failures[0]
        shown = (key or b"").decode(errors="replace")
        raise DeliveryFailed(f"{len(producer.failures)} of {sent}, first key {shown!r}: {why}")


class _BadLines:
    """Counts lines that are passed over and shows the first ones."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, error: DataError) -> None:
        self.count += 1
        if self.count <= _SHOWN_BAD_LINES:
            typer.echo(f"passed over: {error.detail}", err=True)


@contextmanager
def _progress(label: str) -> Iterator[tuple[Callable[[int], None], OnProgress]]:
    """A bar on a terminal, a line every 5 s elsewhere: callbacks for messages and share of file."""
    if not sys.stderr.isatty():
        yield _plain_lines(label), lambda share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[sent]}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None, sent="")
        yield (
            lambda sent: bar.update(task, sent=f"{sent:,}"),
            lambda share: bar.update(task, total=1.0, completed=share),
        )


def _plain_lines(label: str) -> Callable[[int], None]:
    said = time.monotonic()

    def on_sent(sent: int) -> None:
        nonlocal said
        if time.monotonic() - said >= _PLAIN_EVERY_S:
            said = time.monotonic()
            typer.echo(f"{label}: {sent} sent", err=True)

    return on_sent
