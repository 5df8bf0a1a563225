"""`innerloop replay`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
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
    from export.bundle import Bundle
    from stream.comparing import Finding
    from stream.config import Settings
    from stream.kafka.admin import Admin
    from stream.kafka.reader import LogReader
    from stream.ports import TopicPartition
    from stream.replaying import Replayed, Replayer
    from stream.verifying import Verified

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: innerloop replay --verify --state-dir var/worker-1")
def replay(
    verify: Annotated[
        bool, typer.Option("--verify", help="Restore the changelogs and compare byte by byte.")
    ] = False,
    from_events: Annotated[
        bool, typer.Option("--from-events", help="Compute state from the log of events anew.")
    ] = False,
    state_dir: Annotated[
        list[Path] | None,
        typer.Option(help="With --verify: compare the stores of this stopped worker too."),
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option(help="With --from-events: the worker's model bundle. Default: the champion."),
    ] = None,
    adapters: Annotated[
        bool,
        typer.Option(help="With --from-events: compare adapters too. Off after a change of model."),
    ] = True,
    config: ConfigOption = None,
    set_: SetOption = None,
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
) -> None:
    """Prove that state follows from the log. Changes nothing; exits with 1 on a difference.

    --verify restores state and signals of every partition into fresh stores and compares them with
    the newest value of each key in the log. --from-events takes all events through the learner once
    more and compares support sets, counts, versions and, within a tolerance, adapters.
    """
    from stream.errors import ConfigError

    if verify == from_events:
        raise ConfigError("replay does one of two things", remedy="Say --verify or --from-events.")
    settings = load_settings(
        config,
        set_,
        kafka__bootstrap_servers=bootstrap_servers,
        kafka__prefix=prefix,
        model__bundle=bundle,
        model__follow=None if bundle is None else False,
    )
    same = _verify(settings, state_dir or []) if verify else _from_events(settings, adapters)
    if not same:
        raise typer.Exit(1)


# -- --verify ---------------------------------------------------------------------------------


def _verify(settings: Settings, state_dirs: list[Path]) -> bool:
    """Compare partition by partition, and say what was found."""
    from stream.verifying import lines

    count = records = differences = 0
    for found in _verified(settings, state_dirs):
        for line in lines(found):
            typer.echo(line)
        count, records = count + 1, records + found.records
        differences += found.differences
    end = f"{differences} keys differ" if differences else "byte-identical"
    typer.echo(f"replay --verify: {count} partitions, {records} records, {end}")
    return not differences


def _verified(settings: Settings, state_dirs: list[Path]) -> Iterator[Verified]:
    """Each partition. The state folders stay locked until the last one. Raises `StateError`."""
    from stream import assembly
    from stream.kafka.reader import LogReader
    from stream.store import SharedResources
    from stream.verifying import Place, lock, verify

    with ExitStack() as stack:
        for folder in state_dirs:
            stack.enter_context(closing(lock(folder)))
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="innerloop-replay-"))
        reader = stack.enter_context(closing(LogReader(settings.kafka)))
        place = Place(
            scratch=Path(scratch),
            state_dirs=state_dirs,
            identity=assembly.store_identity(settings),
            shared=SharedResources(settings.state.cache_mb, settings.state.write_buffer_mb),
            max_idle_s=settings.state.forget_within_s,
        )
        partitions = _changelogs(settings)
        ends = reader.end_offsets([tp for each in partitions for tp in each.values()])
        for number, changelogs in enumerate(partitions):
            yield verify(reader, number, changelogs, place, ends)


def _changelogs(settings: Settings) -> list[dict[str, TopicPartition]]:
    """The changelogs of each partition. Raises `TopicError`."""
    from stream.kafka.admin import Admin

    roles = ("state", "signals")
    with Admin(settings.kafka) as admin:
        topics = [admin.partitions(settings.kafka.topic(role)) for role in roles]
    return [dict(zip(roles, pair, strict=True)) for pair in zip(*topics, strict=True)]


# -- --from-events ----------------------------------------------------------------------------


def _from_events(settings: Settings, adapters: bool) -> bool:
    """Compute and compare partition by partition, and say what was found."""
    from stream import assembly
    from stream.comparing import Report, Verdict

    report = Report()
    for findings in _replayed(settings, assembly.load_bundle(settings), adapters):
        report.take(findings)
    for line in report.lines():
        typer.echo(line)
    differ = report.verdicts[Verdict.DIFFERS]
    end = f"{differ} differ" if differ else "agree"
    typer.echo(f"replay --from-events: {report.users} users, {end}")
    return not differ


def _replayed(settings: Settings, bundle: Bundle, adapters: bool) -> Iterator[Iterator[Finding]]:
    """What was found about the users of each partition."""
    from stream import inspection
    from stream.kafka.admin import Admin
    from stream.kafka.reader import LogReader
    from stream.replaying import Replayer
    from stream.replica import Replica

    replica = Replica(settings, bundle)
    with Admin(settings.kafka) as admin, closing(LogReader(settings.kafka)) as reader:
        events = admin.partitions(settings.kafka.topic("events"))
        replayer = Replayer(
            settings,
            replica.serving,
            partitions=len(events),
            known_since=replica.known_since,
            condemned=_condemned(settings),
        )
        served = bool(inspection.standing(settings).versions)
        refreshed = served and settings.model.refresh_within_days > 0
        for tp in events:
            state, replayed, cut = _partition(settings, replayer, admin, reader, tp)
            yield replayer.compare(state, replayed, cut=cut, adapters=adapters, refreshed=refreshed)


def _partition(
    settings: Settings, replayer: Replayer, admin: Admin, reader: LogReader, tp: TopicPartition
) -> tuple[dict[bytes, bytes], Replayed, bool]:
    """Records of `state`, users as the log makes them, and whether retention has cut the log.

    `state` holds the events before `until`, and perhaps some of those before `end`.
    """
    from stream.inspection import newest_values
    from stream.ports import TopicPartition

    group = settings.kafka.group_id
    start = reader.start_offsets([tp])[tp]
    until = max(start, admin.committed(group, [tp]).get(tp, start))
    state = newest_values(reader, TopicPartition(settings.kafka.topic("state"), tp.partition))
    end = max(start, admin.committed(group, [tp]).get(tp, start))
    if start > 0:
        typer.echo(
            f"{tp.topic}[{tp.partition}] begins at offset {start}: retention has cut it, and users "
            "who began before that are not compared"
        )
    replayed = replayer.replay(reader.read({tp: start}, {tp: end}), until)
    typer.echo(f"{tp.topic}[{tp.partition}]: replayed to offset {until}, {len(state)} records")
    return state, replayed, start > 0


def _condemned(settings: Settings) -> set[tuple[int, int]]:
    """Partition and offset of events that workers gave up on."""
    from stream.dead_letters import letters
    from stream.inspection import records
    from stream.message_checks import Reason

    topic = settings.kafka.topic("events")
    return {
        (letter.origin.partition, letter.origin_offset)
        for letter in letters(records(settings, "dead_letters"))
        if letter.reason == Reason.UNPROCESSABLE and letter.origin.topic == topic
    }
