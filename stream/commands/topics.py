"""`innerloop topics`."""

from __future__ import annotations

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
    from stream.topics import Problem

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True)


@app.callback(epilog="Example: innerloop topics create, then innerloop topics check")
def topics() -> None:
    """Create the topics, or check existing ones."""


@app.command(epilog="Example: innerloop topics create --partitions 8")
def create(
    partitions: Annotated[
        int | None, typer.Option(help="Of events, state, signals, recommendations. Fixed for good.")
    ] = None,
    replication: Annotated[int | None, typer.Option(help="Copies of every partition.")] = None,
    alter: Annotated[
        bool, typer.Option("--alter", help="Also correct the settings of existing topics.")
    ] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
) -> None:
    """Create the topics that are missing, with the settings the worker needs."""
    from stream import topics

    settings = load_settings(
        config,
        set_,
        kafka__bootstrap_servers=bootstrap_servers,
        kafka__prefix=prefix,
        kafka__partitions=partitions,
        kafka__replication=replication,
    )
    made = topics.create(settings, alter=alter)
    typer.echo(f"created: {', '.join(made)}" if made else "all topics exist")
    _report(topics.check(settings))


@app.command(epilog="Example: innerloop topics check")
def check(
    config: ConfigOption = None,
    set_: SetOption = None,
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
) -> None:
    """Say what is wrong with the topics; exits non-zero when something is."""
    from stream import topics

    settings = load_settings(
        config, set_, kafka__bootstrap_servers=bootstrap_servers, kafka__prefix=prefix
    )
    _report(topics.check(settings))
    typer.echo(f"all topics are right; events has {topics.require(settings)} partitions")


def _report(problems: list[Problem]) -> None:
    for problem in problems:
        typer.echo(f"{problem}. {problem.remedy}", err=True)
    if problems:
        raise typer.Exit(3)
