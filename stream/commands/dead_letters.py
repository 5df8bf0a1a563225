"""`innerloop dead-letters`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

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
    from stream.dead_letters import Letter

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True)

ReasonOption = Annotated[
    str | None, typer.Option("--reason", help="Only those with this reason, such as not_json.")
]
_SHOWN = 4_096
"""Bytes or characters of a payload that are shown."""

_NAMED = 50
"""Letters sent back that are named one by one."""


@app.callback(epilog="Example: innerloop dead-letters list --reason unknown_action")
def dead_letters() -> None:
    """List what could not be used, show it, send it back."""


@app.command("list", epilog="Example: innerloop dead-letters list --reason unknown_action")
def list_(
    reason: ReasonOption = None,
    limit: Annotated[int, typer.Option(help="The newest, at most so many.", min=1)] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
) -> None:
    """List dead letters, oldest first: where, why, from where, and whether they were sent back."""
    settings = load_settings(
        config, set_, kafka__bootstrap_servers=bootstrap_servers, kafka__prefix=prefix
    )
    found = [x for x in _read(settings) if reason in (None, x.reason)]
    if as_json:
        for letter in found[-limit:]:
            _print_json(letter)
        return
    _print_table(found[-limit:])
    _print_sum(found, limit)


@app.command(epilog="Example: innerloop dead-letters show 0:17")
def show(
    place: Annotated[str, typer.Argument(help="PARTITION:OFFSET, as in the list.")],
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the original bytes to standard output, no more.")
    ] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
) -> None:
    """Show one dead letter: headers and payload, control characters and bytes made harmless."""
    settings = load_settings(
        config, set_, kafka__bootstrap_servers=bootstrap_servers, kafka__prefix=prefix
    )
    from stream.dead_letters import find, place_of

    letter = find(_read(settings), place_of(place))
    if raw:
        sys.stdout.buffer.write(letter.value or b"")
        return
    for line in _described(letter):
        typer.echo(line)


@app.command(
    "send-back", epilog="Example: innerloop dead-letters send-back --reason unknown_action"
)
def send_back(
    places: Annotated[
        list[str] | None, typer.Argument(help="PARTITION:OFFSET …", metavar="[PLACE]...")
    ] = None,
    reason: ReasonOption = None,
    all_: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Those too that were sent back before.")
    ] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
) -> None:
    """Send dead letters back to their topic, byte by byte, on the partition of their key.

    None is sent twice without --again: what was sent is marked in dead-letters in the same
    transaction. The worker judges a letter anew; if nothing has changed, it comes back.
    """
    from stream.errors import ConfigError

    if sum((bool(places), reason is not None, all_)) != 1:
        raise ConfigError(
            "send-back needs to know what", remedy="Name PARTITION:OFFSET, --reason or --all."
        )
    settings = load_settings(
        config, set_, kafka__bootstrap_servers=bootstrap_servers, kafka__prefix=prefix
    )
    _send_back(settings, places or [], reason, again=again)


# -- reading ----------------------------------------------------------------------------------


def _read(settings: Settings) -> list[Letter]:
    from stream.dead_letters import letters
    from stream.inspection import records

    return letters(records(settings, "dead_letters"))


def _print_table(found: list[Letter]) -> None:
    from stream.tables import age, printable, table

    now = time.time()
    rows = [("place", "age", "reason", "from", "key", "bytes", "sent back", "detail")]
    rows += [
        (
            x.name,
            age(now - x.timestamp / 1000),
            x.reason,
            f"{x.origin.topic}[{x.origin.partition}] {x.origin_offset}",
            printable(x.key)[:32],
            str(x.size),
            "yes" if x.sent_back else "",
            printable(x.detail),
        )
        for x in found
    ]
    for line in table(rows, indent="") if found else ():
        typer.echo(line)


def _print_sum(found: list[Letter], limit: int) -> None:
    from stream.dead_letters import counted

    sent = sum(letter.sent_back for letter in found)
    newest = f", the newest {limit} above" if len(found) > limit else ""
    parts = f": {counted(found)}; {sent} sent back" if found else ""
    typer.echo(f"{len(found)} dead letters{parts}{newest}")


def _print_json(letter: Letter) -> None:
    import orjson

    typer.echo(orjson.dumps(_plain(letter)).decode())


def _plain(letter: Letter) -> dict[str, Any]:
    """A letter in JSON's types; bytes that are no UTF-8 get escapes, `size` is the true one."""
    from stream.tables import printable

    return {
        "place": letter.name,
        "timestamp": letter.timestamp,
        "reason": letter.reason,
        "detail": letter.detail,
        "topic": letter.origin.topic,
        "partition": letter.origin.partition,
        "offset": letter.origin_offset,
        "produced": letter.produced,
        "key": None if letter.key is None else printable(letter.key),
        "size": letter.size,
        "sent_back": letter.sent_back,
    }


def _described(letter: Letter) -> list[str]:
    from stream.tables import instant, printable

    topic, partition = letter.origin
    lines = [
        f"dead letter {letter.name} of {instant(letter.timestamp)}"
        + (", sent back" if letter.sent_back else ""),
        f"  reason    {letter.reason}",
        f"  detail    {printable(letter.detail)}",
        f"  from      {topic}[{partition}] offset {letter.origin_offset}, "
        f"produced {instant(letter.produced)}",
        f"  key       {printable(letter.key)}",
    ]
    lines += [f"  header    {printable(k)}: {printable(v)}" for k, v in letter.headers]
    gone = ", left out: they were too many for a dead letter" if letter.left_out else ""
    return [*lines, f"  payload   {letter.size} bytes{gone}", *_payload(letter.value or b"")]


def _payload(value: bytes) -> list[str]:
    """Text as text, line by line; anything else as hexadecimal. The first 4 KiB of either."""
    from stream.dead_letters import dump
    from stream.tables import printable

    try:
        lines = [printable(line) for line in value.decode()[:_SHOWN].split("\n")]
    except UnicodeDecodeError:
        lines = list(dump(value[:_SHOWN]))
    more = ["… and so on; all of it with --raw"] if len(value) > _SHOWN else []
    return [f"    {line}" for line in [*lines, *more]]


# -- sending back -----------------------------------------------------------------------------


def _send_back(settings: Settings, places: list[str], reason: str | None, *, again: bool) -> None:
    """Take the transactional id, and only then read: two runs cannot send the same letter."""
    from contextlib import closing

    from stream.dead_letters import place_of
    from stream.errors import Fenced, Superseded
    from stream.kafka.producer import TransactionalProducer

    wanted = [place_of(text) for text in places]
    with closing(TransactionalProducer(settings, f"{settings.kafka.group_id}-dead-letters")) as own:
        own.init()
        chosen = _chosen(_read(settings), wanted, reason)
        new = [x for x in chosen if (again or not x.sent_back) and not x.left_out]
        try:
            _send(settings, own, new)
        except Fenced:
            raise Superseded from None
    bare = sum(x.left_out > 0 for x in chosen)
    before = len(chosen) - len(new) - bare
    kept = f"; {before} sent back before, left alone (--again sends them too)" if before else ""
    kept += f"; {bare} without payload: produce them anew from where they came" if bare else ""
    typer.echo(f"sent back: {len(new)} of {len(chosen)} dead letters{kept}")


def _chosen(found: list[Letter], wanted: list[Any], reason: str | None) -> list[Letter]:
    from stream.dead_letters import find

    if wanted:
        return [find(found, place) for place in dict.fromkeys(wanted)]
    return [letter for letter in found if reason in (None, letter.reason)]


def _send(settings: Settings, producer: Any, new: list[Letter]) -> None:
    from stream.dead_letters import Resend
    from stream.kafka.admin import Admin

    topics = {letter.origin.topic for letter in new}
    with Admin(settings.kafka) as admin:
        counts = {topic: len(admin.partitions(topic)) for topic in topics}
    resend = Resend(
        dead_letters=settings.kafka.topic("dead_letters"),
        partitions=counts,
        partitioner=settings.kafka.partitioner,
    )
    for sent in resend.send(producer, new):
        for letter in sent if len(new) <= _NAMED else ():
            event, _ = resend.messages(letter)
            typer.echo(f"{letter.name} {letter.reason} -> {event.topic}[{event.partition}]")
