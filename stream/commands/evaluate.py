"""`innerloop evaluate`: a bundle against logged events."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from stream.commands.common import ConfigOption, SetOption, load_settings

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
    as_json: Annotated[bool, typer.Option("--json", help="Figures as JSON.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Predict every event, then learn from it, and compare with simple baselines.

    Earlier events of the files are history. Where all events were trained on, the part that
    training kept for its own test is used.
    """
    from stream import bundles
    from stream.commands.train import parse_until, print_report
    from stream.measuring import Measure, measure
    from stream.progress import reporter

    start = parse_until(from_)
    settings = load_settings(config, set_)
    loaded = bundles.load(bundle)
    with reporter() as shown:
        report = measure(
            loaded, Measure(events=events, items=items, settings=settings, start=start), shown
        )
    if as_json:
        figures = {"model": loaded.manifest.version, **report.to_dict()}
        typer.echo(json.dumps(figures, indent=2))
    else:
        typer.echo(f"model {loaded.manifest.version}")
        print_report(report)
