"""What every command shares: the options that lead to settings, logging, output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stream.config import Settings

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file with settings.", envvar="INNERLOOP_CONFIG"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="NAME=VALUE", help="Any setting, such as batch.max_events=500."
    ),
]
ServersOption = Annotated[
    str | None,
    typer.Option("--bootstrap-servers", "-b", help="Kafka brokers, host:port[,host:port]."),
]
PrefixOption = Annotated[
    str | None, typer.Option("--prefix", help="Put in front of topic and group names.")
]


def load_settings(
    config: Path | None = None, set_: list[str] | None = None, **flags: Any
) -> Settings:
    """Settings from flags, environment, file and defaults, with logging configured.

    `flags` maps dotted names with `__` for the dot (`kafka__prefix`) to values; None = not given.
    Raises `ConfigError`.
    """
    from stream import config as configuration
    from stream.log import configure

    given = {k.replace("__", "."): v for k, v in flags.items() if v is not None}
    settings = configuration.load(config, {**configuration.parse_overrides(set_ or []), **given})
    configure(settings.log)
    return settings
