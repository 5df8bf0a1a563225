"""`innerloop rollback`: the model that served before serves again."""

from __future__ import annotations

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


@app.command(epilog="Example: innerloop rollback --reason 'clicks fell by a tenth'")
def rollback(
    reason: Annotated[
        str | None, typer.Option("--reason", help="Why, in your words; goes on the record.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
) -> None:
    """Publish the champion's parent again. A second rollback undoes the first.

    Workers move their users back as at any change of the model. A challenger stays.
    """
    settings = load_settings(
        config, set_, kafka__bootstrap_servers=bootstrap_servers, kafka__prefix=prefix
    )
    from stream.commands.promote import say
    from stream.files import now_ms
    from stream.promoting import roll_back
    from stream.succession import Asked

    say(roll_back(settings, Asked(at=now_ms(), note=reason)))
