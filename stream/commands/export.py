"""`innerloop export`: a smaller or faster encoder for a bundle, within a stated loss."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from stream.commands.common import ConfigOption, SetOption, load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.exporting import Exported

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(
    epilog="Example: innerloop export model --items items.jsonl --events log.jsonl --out fast"
)
def export(
    bundle: Annotated[
        str, typer.Argument(help="A bundle that `train` wrote: a folder or any fsspec address.")
    ],
    items: Annotated[
        list[str],
        typer.Option(
            "--items",
            "-i",
            help="Its items: JSONL or Parquet files, folders, or `movietweetings`.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="Write a bundle with the variant that is chosen."),
    ] = None,
    budget: Annotated[
        str, typer.Option(help="What may be lost: of nDCG@10 with --events, else of neighbours.")
    ] = "1%",
    variants: Annotated[
        str | None,
        typer.Option(
            help="Names, separated by commas, or `all`. Default: those without training.",
            show_default=False,
        ),
    ] = None,
    events: Annotated[
        list[str] | None,
        typer.Option(
            "--events", "-e", help="Events to compare lists on; see `evaluate`.", show_default=False
        ),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", help="First event time to predict: RFC 3339 or ms. Default: after training."
        ),
    ] = None,
    recovery: Annotated[
        str, typer.Option(help="At most so much time to teach each pruned encoder.")
    ] = "3m",
    rounds: Annotated[
        int, typer.Option(help="Rounds of measuring speed, in turns.", min=1, max=1_000)
    ] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Figures as JSON.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Make variants of a bundle's encoder, print their figures, and write the best as a bundle.

    The best is the fastest among --variants that loses at most --budget and whose vectors depend
    on their text alone; of those within 5% of its speed, the smallest. fp32 is always measured.
    """
    from stream.commands.train import parse_duration, parse_until

    seconds, start, share = parse_duration(recovery), parse_until(from_), parse_share(budget)
    names = parse_variants(variants)
    settings = load_settings(config, set_)
    from export.choice import choose
    from export.prune import Recovery
    from stream import bundles, exporting
    from stream.progress import reporter

    loaded = bundles.load(bundle)
    request = exporting.Request(
        items=items,
        settings=settings,
        variants=names,
        events=events or (),
        start=start,
        recovery=Recovery(budget_s=seconds),
        rounds=rounds,
    )
    with reporter() as shown, exporting.export(loaded, request, shown) as made:
        _show(made, as_json)
        if out is not None:
            with bundles.refusals():
                best = choose([each.row for each in made if each.row.variant in names], share)
            chosen = next(each for each in made if each.row is best)
            saved = exporting.save(chosen, out)
            _say_saved(best.variant, saved.manifest.version, out)


def parse_share(text: str) -> float:
    """A share of `1%` or `0.01`. Raises `ConfigError`."""
    from stream.errors import ConfigError

    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"--budget {text!r} is no share", remedy="Write it as 1% or 0.01.")
    return share


def parse_variants(text: str | None) -> tuple[str, ...]:
    """Names of variants. Raises `ConfigError` for one that does not exist."""
    from export import variants
    from stream.errors import ConfigError

    if text is None:
        return variants.QUICK
    names = tuple(variants.VARIANTS) if text == "all" else tuple(text.replace(" ", "").split(","))
    for name in names:
        if name not in variants.VARIANTS:
            raise ConfigError(
                f"--variants: there is no variant {name!r}",
                remedy=f"Choose among {', '.join(variants.VARIANTS)}, or `all`.",
            )
    return names


def _show(made: Sequence[Exported], as_json: bool) -> None:
    from export.choice import table
    from stream import tables

    rows = [each.row for each in made]
    if as_json:
        typer.echo(json.dumps({"variants": [row.to_dict() for row in rows]}, indent=2))
        return
    typer.echo("\n".join(tables.table(table(rows), indent="")))


def _say_saved(variant: str, version: str, out: str) -> None:
    typer.echo(f"chose {variant}: saved {version} to {out}", err=True)
