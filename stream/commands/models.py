"""`innerloop models`: what serves, and what served before."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from stream.commands.common import (
    ConfigOption,
    PrefixOption,
    ServersOption,
    SetOption,
    load_settings,
)

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: innerloop models --json")
def models(
    as_json: Annotated[bool, typer.Option("--json", help="All figures, as JSON.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
) -> None:
    """List champion, challenger and earlier champions: since when, why, and what the gate said.

    Earlier ones are those whose records the compacted topic still holds, and the champion's parent.
    """
    settings = load_settings(
        config, set_, kafka__bootstrap_servers=bootstrap_servers, kafka__prefix=prefix
    )
    from stream import model_tables
    from stream.inspection import standing
    from stream.tables import table

    found = standing(settings)
    if as_json:
        typer.echo(json.dumps(model_tables.models_json(found), indent=2))
        return
    if found == type(found)():
        typer.echo("no model has been promoted yet")
        return
    for line in table(model_tables.model_rows(found), indent=""):
        typer.echo(line)
