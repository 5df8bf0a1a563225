"""`innerloop monitor`."""

from __future__ import annotations

import logging
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

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_CHATTY = ("faust", "mode", "aiokafka", "stream.monitor.app")
"""Loggers that tell of every part that starts, and of every attempt that fails."""


@app.command(epilog="Example: innerloop monitor --port 6066 --set monitor.retrain_cron='0 3 * * *'")
def monitor(
    config: ConfigOption = None,
    set_: SetOption = None,
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
    folder: Annotated[
        str | None, typer.Option("--dir", help="Folder of this monitor's id and runs.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of /, /status, /metrics and /healthz; 0 = any.")
    ] = None,
) -> None:
    """Watch how lists fare online, the lag and the drift, and retrain on a schedule.

    It runs beside the workers, in a consumer group of its own, until Ctrl-C or SIGTERM. Nothing
    depends on it; it may be killed and started at any time.
    """
    settings = load_settings(
        config,
        set_,
        kafka__bootstrap_servers=bootstrap_servers,
        kafka__prefix=prefix,
        monitor__dir=folder,
        monitor__port=port,
    )
    if settings.log.level != "debug":
        _quieten()
    _watch(settings)


def _quieten() -> None:
    from stream.log import Seldom

    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(Seldom(_CHATTY))


def _watch(settings: Settings) -> None:
    from stream import state_dir
    from stream.monitor.app import Application
    from stream.monitor.outside import Outside
    from stream.monitor.retraining import Retraining
    from stream.monitor.runs import Claims

    own = settings.monitor.dir
    with closing(state_dir.lock_state_dir(own, kind="monitor", flag="--dir")):
        identity = state_dir.worker_id(own, kind="monitor")
        with closing(Outside(settings)) as outside:
            retraining = Retraining(settings, identity, Claims(settings))
            retraining.resume()
            Application(settings, identity, outside, retraining).run()
