"""`innerloop train`: logged events to a model bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stream.commands.common import ConfigOption, SetOption, load_settings

if TYPE_CHECKING:
    from adapters.report import Report
    from stream.errors import DataError
    from stream.training import Outcome, Request

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3_600.0, "": 1.0}


@app.command(
    epilog="Example: innerloop train --events movietweetings --items movietweetings --out model"
)
def train(
    events: Annotated[
        list[str],
        typer.Option(
            "--events",
            "-e",
            help="JSONL or Parquet files, folders, or `movietweetings`.",
            show_default=False,
        ),
    ],
    items: Annotated[
        list[str],
        typer.Option(
            "--items", "-i", help="Items, in the same kinds of files.", show_default=False
        ),
    ],
    out: Annotated[
        str,
        typer.Option("--out", "-o", help="The bundle: a folder or any fsspec address."),
    ],
    budget: Annotated[
        str | None,
        typer.Option(
            help="At most so much time for the outer loop, such as 30s, 5m or 1h. "
            "Default: until held-out users gain nothing more."
        ),
    ] = None,
    backbone: Annotated[
        Path | None,
        typer.Option(help="Folder of a BERT; default: the packaged all-MiniLM-L6-v2."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the model.")] = "innerloop",
    until: Annotated[
        str | None, typer.Option(help="Leave out events from this time on: RFC 3339 or ms.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every draw.", min=0)] = 0,
    runs: Annotated[
        Path | None, typer.Option(help="Where the folders of runs are; default: user data.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Folder of a run that was broken off: go on from its last checkpoint."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Pass over lines the worker would refuse.")
    ] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Meta-train item tower and adapter, fit the experts, and write a bundle.

    The figures that are printed come from users and events that the encoder never saw. A run
    that was broken off goes on with --resume and the same options.
    """
    seconds, end = None if budget is None else parse_duration(budget), parse_until(until)
    settings = load_settings(config, set_)
    from stream.training import Request

    request = Request(
        events=events,
        items=items,
        out=out,
        settings=settings,
        name=name,
        budget_s=seconds,
        until=end,
        backbone=backbone,
        seed=seed,
        on_bad=_pass_over if skip_bad else None,
    )
    outcome = _run(request, runs, resume)
    print_report(outcome.report)
    _say_saved(outcome, out)


def parse_duration(text: str) -> float:
    """Seconds of `30s`, `5m`, `1h`, `500ms` or `30`. Raises `ConfigError`."""
    from stream.errors import ConfigError

    number = text.rstrip("hms")
    unit = text[len(number) :]
    try:
        seconds = float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        seconds = -1.0
    if not 0 < seconds < 1e7:
        raise ConfigError(f"{text!r} is no duration", remedy="Write it as 30s, 5m or 1h.")
    return seconds


def parse_until(text: str | None) -> float | None:
    """Unix seconds of a time in RFC 3339 or ms. Raises `ConfigError`."""
    from stream.errors import ConfigError
    from stream.message_checks import Refused, parse_time

    if text is None:
        return None
    try:
        return parse_time(text) / 1e3
    except Refused:
        raise ConfigError(
            f"{text!r} is no time",
            remedy="Write it as 2013-03-01T00:00:00Z or in ms since the epoch.",
        ) from None


def print_report(report: Report) -> None:
    """The table and the verdict, on standard output."""
    from stream.measuring import verdict

    lines = report.table()
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    cohort = ""
    for line in lines:
        if cohort and line[0] != cohort:
            typer.echo("")
        cohort = line[0]
        cells = zip(line, widths, strict=True)
        typer.echo("  ".join(cell.ljust(width) for cell, width in cells).rstrip())
    typer.echo("\n" + verdict(report))


def _run(request: Request, runs: Path | None, resume: Path | None) -> Outcome:
    from stream import run_folder
    from stream.curves import Curves, writers
    from stream.errors import DataError
    from stream.progress import reporter
    from stream.training import train as run

    began, where = time.monotonic(), resume or runs
    try:
        folder = run_folder.resume(resume) if resume else run_folder.create(runs, request.name)
        where = folder.path
        facts = {"seed": request.seed, **request.settings.learning.model_dump()}
        with (
            reporter() as shown,
            folder.unless_begun(),
            Curves(writers(folder.path, folder.step, facts, shown.say)) as curves,
        ):
            outcome = run(request, shown, curves.step, folder)
            curves.report(outcome.report)
        seconds = {**outcome.metrics["seconds"], "all": time.monotonic() - began}
        version = outcome.bundle.manifest.version
        folder.finish({"version": version, **outcome.metrics, "seconds": seconds})
    except OSError as error:
        raise DataError(
            f"{error.filename or where}: {error.strerror or error}",
            remedy="Free some space, or name other folders with --out and --runs.",
        ) from None
    peak = outcome.metrics["peak_memory_mb"]
    typer.echo(f"{seconds['all']:.0f} s, at most {peak:,.0f} MB of memory", err=True)
    typer.echo(f"curves: tensorboard --logdir {folder.path}", err=True)
    return outcome


def _say_saved(outcome: Outcome, out: str) -> None:
    from stream.measuring import beats_popularity

    if not beats_popularity(outcome.report):
        typer.echo("warning: not clearly better than popularity; bring more events", err=True)
    typer.echo(f"saved {outcome.bundle.manifest.version} to {out}")


def _pass_over(error: DataError) -> None:
    typer.echo(f"passed over: {error.detail}", err=True)
