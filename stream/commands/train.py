"""`innerloop train`: logged events to a model bundle."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
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
    from adapters.report import Report
    from adapters.team import Team
    from stream.errors import DataError
    from stream.training import Outcome, Request
    from stream.training_data import FromKafka


class Start(StrEnum):
    """Where the outer loop begins."""

    PARENT = "parent"
    BASE = "base"


app = typer.Typer(rich_markup_mode=None, add_completion=False)

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "": 1.0}
_SOURCES = "Name --events and --items, or say --from-kafka."


@app.command(
    epilog="Example: innerloop train --events movietweetings --items movietweetings --out model"
)
def train(
    out: Annotated[
        str,
        typer.Option("--out", "-o", help="The bundle: a folder or any fsspec address."),
    ],
    events: Annotated[
        list[str] | None,
        typer.Option(
            "--events", "-e", help="JSONL or Parquet files, folders, or `movietweetings`."
        ),
    ] = None,
    items: Annotated[
        list[str] | None,
        typer.Option("--items", "-i", help="Items, in the same kinds of files."),
    ] = None,
    from_kafka: Annotated[
        bool, typer.Option("--from-kafka", help="Read the topics `events` and `items`.")
    ] = False,
    window: Annotated[
        str | None,
        typer.Option(
            help="With --from-kafka: event time before the newest event, such as 30d or 12h. "
            "Default: all that the topic holds."
        ),
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(
            help="The model that goes before: an address, `champion` or `none`. Its counters go "
            "on. Default: with --from-kafka the champion, if there is one."
        ),
    ] = None,
    start: Annotated[
        Start, typer.Option(help="Weights to begin with: the parent's, or the base's untrained.")
    ] = Start.PARENT,
    experts_only: Annotated[
        bool,
        typer.Option(
            "--experts-only",
            help="Keep what the parent has learned, and fit the experts' weights to the newest "
            "events: seconds.",
        ),
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            help="At most so much time for the outer loop, such as 30s, 5m or 1h. "
            "Default: until held-out users gain nothing more."
        ),
    ] = None,
    pretrain: Annotated[
        str | None,
        typer.Option(
            help="Train the backbone further on the items' texts, at most so long, and keep it "
            "where that helps. Default: no."
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
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Meta-train item tower and adapter, fit the experts, and write a bundle.

    From files, or with --from-kafka from the topics that workers read. The figures that are
    printed come from users and events that the encoder never saw. With --experts-only the parent's
    item tower and adapter stay, and only the experts follow the stream. A run that was broken off
    goes on with --resume and the same options.
    """
    seconds, end = None if budget is None else parse_duration(budget), parse_until(until)
    kafka = _source(from_kafka, window, events, items)
    _refuse_time(experts_only, budget, pretrain)
    settings = load_settings(
        config,
        set_,
        kafka__bootstrap_servers=bootstrap_servers,
        kafka__prefix=prefix,
        learning__pretrain_s=None if pretrain is None else parse_duration(pretrain),
        learning__steps=0 if experts_only else None,
    )
    from stream.training import Request

    request = Request(
        events=events or (),
        items=items or (),
        kafka=kafka,
        parent=parent,
        start=start.value,
        out=out,
        settings=settings,
        name=name,
        budget_s=seconds,
        until=end,
        backbone=backbone,
        seed=seed,
        on_bad=_pass_over if skip_bad else None,
    )
    outcome = _run_together(request, runs, resume)
    if outcome is not None:
        print_report(outcome.report)
        _say_saved(outcome, out)


def _source(
    from_kafka: bool, window: str | None, events: list[str] | None, items: list[str] | None
) -> FromKafka | None:
    """The topics, or None for files. Raises `ConfigError` for both or neither."""
    from stream.errors import ConfigError
    from stream.training_data import FromKafka

    if from_kafka:
        if events or items:
            raise ConfigError("--from-kafka reads no files", remedy=_SOURCES)
        return FromKafka(length_s=None if window is None else parse_duration(window))
    if window is not None:
        raise ConfigError("--window is that of a topic", remedy="Say --from-kafka, or --until.")
    for name, given in (("--events", events), ("--items", items)):
        if not given:
            raise ConfigError(f"{name} is missing", remedy=_SOURCES)
    return None


def _refuse_time(experts_only: bool, budget: str | None, pretrain: str | None) -> None:
    from stream.errors import ConfigError

    for name, given in (("--budget", budget), ("--pretrain", pretrain)):
        if experts_only and given is not None:
            raise ConfigError(
                f"--experts-only trains nothing that {name} gives time to",
                remedy="Leave one of the two out.",
            )


def parse_duration(text: str) -> float:
    """Seconds of `30s`, `5m`, `1h`, `30d`, `500ms` or `30`. Raises `ConfigError`."""
    from stream.errors import ConfigError

    number = text.rstrip("dhms")
    unit = text[len(number) :]
    try:
        seconds = float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise ConfigError(f"{text!r} is no duration", remedy="Write it as 30s, 5m, 1h or 30d.")
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


def _run_together(request: Request, runs: Path | None, resume: Path | None) -> Outcome | None:
    """The training, or a part in that of the first process where torchrun started several."""
    from stream.preparing import choose_device
    from stream.processes import joined
    from stream.progress import Reporter
    from stream.training_loop import follow

    with joined(choose_device(request.settings.model.device)) as (team, device):
        if team.leads:
            return _run(request, runs, resume, team, device)
        follow(request, Reporter(), team, device)
        return None


def _run(
    request: Request, runs: Path | None, resume: Path | None, team: Team, device: str
) -> Outcome:
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
            outcome = run(request, shown, curves.step, folder, team, device)
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
