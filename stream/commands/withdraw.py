"""`innerloop withdraw`: the challenger serves nobody any more."""

from __future__ import annotations

import typer

from stream.commands.common import (
    ConfigOption,
    PrefixOption,
    ServersOption,
    SetOption,
    load_settings,
)

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: innerloop withdraw")
def withdraw(
    config: ConfigOption = None,
    set_: SetOption = None,
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
) -> None:
    """End a canary: its users go back to the champion."""
    settings = load_settings(
        config, set_, kafka__bootstrap_servers=bootstrap_servers, kafka__prefix=prefix
    )
    from stream import promoting

    gone = promoting.withdraw(settings)
    typer.echo(f"{gone.version} is withdrawn: its {100 * gone.share:.4g}% of the users go back")
