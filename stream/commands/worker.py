"""`innerloop worker`."""

from __future__ import annotations

import signal
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


@app.command(epilog="Example: innerloop worker --bundle models/films --state-dir var/worker-1")
def worker(
    config: ConfigOption = None,
    set_: SetOption = None,
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
    bundle: Annotated[
        str | None, typer.Option(help="Folder of a model bundle, any fsspec address.")
    ] = None,
    state_dir: Annotated[
        str | None, typer.Option(help="Folder of this worker's RocksDB stores.")
    ] = None,
    worker_id: Annotated[
        str | None, typer.Option(help="Static member id; made once and kept if not given.")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Port of /metrics, /healthz and /readyz; 0 = any.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings as YAML and exit.")
    ] = False,
) -> None:
    """Adapt users and publish their lists until stopped by Ctrl-C or SIGTERM."""
    settings = load_settings(
        config,
        set_,
        kafka__bootstrap_servers=bootstrap_servers,
        kafka__prefix=prefix,
        model__bundle=bundle,
        state__dir=state_dir,
        worker_id=worker_id,
        http__port=http_port,
    )
    if print_config:
        from stream.config import to_yaml

        typer.echo(to_yaml(settings), nl=False)
        return
    from stream import assembly, log

    with assembly.worker(settings) as running:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: running.worker.stop())
        log.get("worker").info("listening", port=running.endpoint.port, id=running.worker_id)
        running.worker.run()
