"""`innerloop forget`."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

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
    from stream.kafka.reader import LogReader
    from stream.message_types import Forget
    from stream.ports import TopicPartition

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: innerloop forget ann --wait")
def forget(
    user: Annotated[str, typer.Argument(help="The user's id.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the record is gone from state.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.", min=0)] = 60.0,
    config: ConfigOption = None,
    set_: SetOption = None,
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
) -> None:
    """Erase a user: record, list, and all that is known. It cannot be undone.

    Sends a forget event; the worker of the user's partition erases. What others did is kept, and
    what this user added to counts of items has no name in it.
    """
    settings = load_settings(
        config, set_, kafka__bootstrap_servers=bootstrap_servers, kafka__prefix=prefix
    )
    from stream.forgetting import request
    from stream.kafka.reader import LogReader
    from stream.tables import printable

    event = request(user, settings.messages, time.time())
    question = f"Erase all that is known of {printable(user)}?"
    if not yes and sys.stdin.isatty() and not typer.confirm(question):
        typer.echo("nothing was sent")
        raise typer.Exit(1)
    with closing(LogReader(settings.kafka)) as reader:
        events, state = _partitions(settings, user)
        starts = reader.end_offsets([events, state])
        _send(settings, event)
        typer.echo(f"sent: {event.id} to {events.topic}[{events.partition}]")
        if wait:
            _wait(reader, event, (events, state), starts, timeout)


def _partitions(settings: Settings, user: str) -> tuple[TopicPartition, TopicPartition]:
    """The user's own partition of `events` and of `state`."""
    from stream.kafka.admin import Admin
    from stream.murmur2 import partition_of

    kafka, key = settings.kafka, user.encode()
    with Admin(kafka) as admin:
        events = admin.partitions(kafka.topic("events"))
        state = admin.partitions(kafka.topic("state"))
    place = partition_of(key, len(events), kafka.partitioner)
    return events[place], state[place]


def _send(settings: Settings, event: Forget) -> None:
    from stream.errors import DeliveryFailed
    from stream.kafka.producer import BulkProducer
    from stream.message_encoding import encode

    with closing(BulkProducer(settings)) as producer:
        producer.produce(settings.kafka.topic("events"), event.user.encode(), encode(event))
        producer.flush()
        if producer.failures:
            raise DeliveryFailed(producer.failures[0][1])


def _wait(
    reader: LogReader,
    event: Forget,
    where: tuple[TopicPartition, TopicPartition],
    starts: dict[TopicPartition, int],
    timeout: float,
) -> None:
    from stream.errors import NotErased
    from stream.forgetting import Watch

    began = time.monotonic()
    watch = Watch(reader=reader, event=event, events=where[0], state=where[1], starts=starts)
    found = watch.wait(timeout)
    if found is None:
        raise NotErased(f"{where[1].topic}[{where[1].partition}], {timeout:.0f} s")
    typer.echo(f"erased after {time.monotonic() - began:.1f} s: {found}")
