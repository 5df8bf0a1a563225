"""`innerloop demo`."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: innerloop demo --budget 30s")
def demo(
    budget: Annotated[str, typer.Option(help="Time for training, such as 30s or 2m.")] = "30s",
    dir_: Annotated[
        Path | None,
        typer.Option("--dir", help="Keep the model and the worker's log here. Default: the cache."),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="End after the summary, on a terminal too.")
    ] = False,
) -> None:
    """See it work: broker, training, live traffic, two new users, a new film.

    Needs nothing to be running; where KAFKA_BOOTSTRAP_SERVERS names a broker, that one is used,
    with topics of the demo's own that are gone at the end. On a terminal traffic goes on until
    Ctrl-C. Exits with 1 when something of what it is to show did not happen.
    """
    began = time.monotonic()
    import platformdirs

    from stream.commands.common import load_settings
    from stream.commands.train import parse_duration
    from stream.demo import stage
    from stream.demo.screen import Screen

    load_settings(log__level="error")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    screen, seconds = Screen(), parse_duration(budget)
    folder = dir_ or platformdirs.user_cache_path("innerloop") / "demo"
    with stage.broker() as starting:
        from stream.demo import acts  # takes a while, and so does the broker

        plan = acts.Plan(
            folder=folder, budget_s=seconds, endless=screen.terminal and not once, began=began
        )
        missed = acts.run(plan, screen, starting)
    if missed:
        raise typer.Exit(1)


def _interrupt(*_: object) -> None:
    """Unwind once; a second Ctrl-C does not disturb the cleaning up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
