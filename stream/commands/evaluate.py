"""`innerloop evaluate`: a bundle against logged events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stream.commands.common import ConfigOption, SetOption, load_settings

if TYPE_CHECKING:
    from adapters.report import Report
    from stream.measuring import Measure

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(
    epilog="Example: innerloop evaluate --bundle model --events later.jsonl --items items.jsonl"
)
def evaluate(
    bundle: Annotated[
        str, typer.Option("--bundle", help="A bundle: a folder or any fsspec address.")
    ],
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
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", help="First event time to predict: RFC 3339 or ms. Default: after training."
        ),
    ] = None,
    horizon: Annotated[
        int,
        typer.Option("--horizon", min=1, max=100, help="The next positives that are relevant."),
    ] = 10,
    positions: Annotated[
        int | None,
        typer.Option("--positions", min=1, help="Lists judged at most. Default: all."),
    ] = None,
    label_delay: Annotated[
        float,
        typer.Option("--label-delay", min=0, help="Seconds until an event is known to anybody."),
    ] = 0.0,
    partitions: Annotated[
        int, typer.Option("--partitions", min=1, help="Partitions that users are spread over.")
    ] = 1,
    signal_delay: Annotated[
        float,
        typer.Option("--signal-delay", min=0, help="Seconds until other partitions know."),
    ] = 0.0,
    rebuilt: Annotated[
        bool,
        typer.Option("--rebuilt", help="Also lists of adapters rebuilt from the latest events."),
    ] = False,
    diversity: Annotated[
        list[float] | None,
        typer.Option(
            "--diversity",
            min=0,
            max=1,
            help="Also lists re-ranked for variety; repeatable. Default: ranking.diversity.",
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[
        bool,
        typer.Option("--repeats", help="Seen items may come again: ranking.exclude_seen=false."),
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="Draw quality by shots to this .svg, .png or .pdf file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Figures as JSON.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Predict every event, then learn from it, and compare with simple baselines.

    Earlier events of the files are history. Where all events were trained on, the part that
    training kept for its own test is used.
    """
    from stream import bundles
    from stream import picture as pictures
    from stream.commands.train import parse_until
    from stream.measuring import Measure, measure
    from stream.progress import reporter

    start = parse_until(from_)
    if picture is not None:
        pictures.check(picture)
    settings = load_settings(config, set_, ranking__exclude_seen=False if repeats else None)
    loaded = bundles.load(bundle)
    request = Measure(
        events=events,
        items=items,
        settings=settings,
        start=start,
        positions=positions,
        horizon=horizon,
        label_delay=label_delay,
        partitions=partitions,
        signal_delay=signal_delay,
        rebuilt=rebuilt,
        diversities=diversity,
    )
    with reporter() as shown:
        report = measure(loaded, request, shown)
    if picture is not None:
        pictures.save(report, picture, f"model {loaded.manifest.name}: quality by shots")
    _show(report, loaded.manifest.version, request, as_json)


def _show(report: Report, version: str, request: Measure, as_json: bool) -> None:
    from stream.commands.train import print_report
    from stream.tables import table

    if as_json:
        told = {"model": version, "protocol": request.protocol(), **report.to_dict()}
        typer.echo(json.dumps(told, indent=2))
        return
    typer.echo(f"model {version}")
    print_report(report)
    typer.echo("\nover all positions, at 10 where nothing else is said")
    typer.echo("\n".join(table(report.beyond(), indent="")))
