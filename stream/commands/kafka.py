"""`innerloop kafka`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: innerloop kafka --data ./kafka-data")
def kafka(
    brokers: Annotated[int, typer.Option(help="1, or 3 for replicated topics.")] = 1,
    port: Annotated[
        int, typer.Option(help="Of the first broker; the others follow.", min=0, max=65_533)
    ] = 9092,
    data: Annotated[
        Path | None, typer.Option(help="Keep topics in this folder. Default: gone at the end.")
    ] = None,
    heap: Annotated[int, typer.Option(help="Memory of a broker, in MB.", min=128)] = 512,
) -> None:
    """Run Apache Kafka on this machine for development, until Ctrl-C.

    It needs neither Java nor Docker. Where KAFKA_BOOTSTRAP_SERVERS names a broker, that one is
    checked and nothing is started. Port 0 takes any free ones.
    """
    servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if servers:
        _check(servers)
        return
    if brokers not in (1, 3):
        raise typer.BadParameter("1 or 3", param_hint="--brokers")
    _serve(brokers, port or None, data, heap)


def _check(servers: str) -> None:
    from stream.config import Kafka
    from stream.kafka.admin import Admin

    with Admin(Kafka(bootstrap_servers=servers)) as admin:
        found = admin.cluster()
    typer.echo(
        f"KAFKA_BOOTSTRAP_SERVERS names {servers}: cluster {found.id} answers with "
        f"{found.brokers} broker(s). Nothing was started."
    )


def _serve(brokers: int, port: int | None, data: Path | None, heap: int) -> None:
    from stream import kafka_install
    from stream.embedded_kafka import EmbeddedKafka

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    cluster = EmbeddedKafka(brokers=brokers, port=port, data=data, heap_mb=heap)
    kafka_install.install(kafka_install.report)
    cluster.start()
    try:
        typer.echo(f"Kafka is ready: {cluster.bootstrap_servers}")
        typer.echo(f"export KAFKA_BOOTSTRAP_SERVERS={cluster.bootstrap_servers}")
        typer.echo("Stop it with Ctrl-C." + ("" if data else " Its topics are gone then."))
        sys.stdout.flush()
        while not stop.wait(1.0):
            cluster.check_alive()
    finally:
        cluster.stop()
    typer.echo("Kafka has stopped.")
