"""`innerloop promote`: a bundle, or the challenger, takes the champion's place."""

from __future__ import annotations

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
    from stream.config import Settings
    from stream.gate_data import Source
    from stream.promoting import Promotion
    from stream.releases import Release
    from stream.succession import Gate

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: innerloop promote var/bundle --from-kafka --canary 5%")
def promote(
    bundle: Annotated[
        str | None, typer.Argument(help="A bundle: a folder or any fsspec address.")
    ] = None,
    challenger: Annotated[
        bool, typer.Option("--challenger", help="Promote the challenger that serves a share now.")
    ] = False,
    canary: Annotated[
        str | None,
        typer.Option(
            "--canary", metavar="SHARE", help="Serve a share of the users only, such as 5%."
        ),
    ] = None,
    from_kafka: Annotated[
        bool, typer.Option("--from-kafka", help="Judge on the topics of events and items.")
    ] = False,
    window: Annotated[
        str | None,
        typer.Option(
            "--window", help="With --from-kafka: event time before the newest event, such as 30d."
        ),
    ] = None,
    events: Annotated[
        list[str] | None,
        typer.Option(
            "--events", "-e", help="Judge on these files, folders, or `movietweetings` instead."
        ),
    ] = None,
    items: Annotated[
        list[str] | None,
        typer.Option("--items", "-i", help="Items, in the same kinds of files."),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="First event time that is judged: RFC 3339 or ms. Default: after both trainings.",
        ),
    ] = None,
    positions: Annotated[
        int, typer.Option("--positions", min=500, help="Lists judged at most.")
    ] = 10_000,
    force: Annotated[
        bool, typer.Option("--force", help="Promote against the gate; say why with --reason.")
    ] = False,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Why, in your words; goes on the record.")
    ] = None,
    online: Annotated[
        Path | None,
        typer.Option("--online", help="With --challenger: hit rates of users by model, as JSON."),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
) -> None:
    """Judge a model against the champion and simple baselines, and publish it if it passes.

    The verdict with its figures goes into the bundle's manifest and on the topic `models`, which
    workers follow. A bundle that was judged against the champion before needs no data.
    """
    _require_one(bundle, challenger)
    _require_sense(challenger, canary, force, reason, online)
    share, source = _share(canary), _source(from_kafka, window, events, items)
    start = _time(from_)
    settings = load_settings(
        config, set_, kafka__bootstrap_servers=bootstrap_servers, kafka__prefix=prefix
    )
    if bundle is None:
        _promote_challenger(settings, force, reason, online)
        return
    from stream.promoting import Promotion

    asked = Promotion(
        bundle=bundle,
        settings=settings,
        source=source,
        start=start,
        positions=positions,
        share=share,
        force=force,
        note=reason,
    )
    _promote(asked)


# -- options ------------------------------------------------------------------------------------


def _require_one(bundle: str | None, challenger: bool) -> None:
    from stream.errors import ConfigError

    if (bundle is not None) == challenger:
        raise ConfigError(
            "promote needs to know what", remedy="Name a bundle, or say --challenger."
        )


def _require_sense(
    challenger: bool, canary: str | None, force: bool, reason: str | None, online: Path | None
) -> None:
    from stream.errors import ConfigError

    if force and not reason:
        raise ConfigError("--force is on the record", remedy="Say why with --reason.")
    if challenger and canary is not None:
        raise ConfigError(
            "--canary makes a challenger, --challenger promotes it", remedy="Say one of them."
        )
    if online is not None and not challenger:
        raise ConfigError("--online is about the challenger", remedy="Say --challenger too.")


def _share(text: str | None) -> float | None:
    """0.05 of `5%` or `0.05`. Raises `ConfigError`."""
    from stream.errors import ConfigError

    if text is None:
        return None
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ConfigError(f"--canary {text} is no share of the users", remedy="Write it as 5%.")
    return share


def _source(
    from_kafka: bool, window: str | None, events: list[str] | None, items: list[str] | None
) -> Source | None:
    """What to judge on, None = the verdict in the manifest. Raises `ConfigError`."""
    from stream.commands.train import parse_duration
    from stream.errors import ConfigError

    if bool(events) != bool(items) or (from_kafka and events):
        raise ConfigError(
            "a slice comes from --from-kafka, or from --events with --items",
            remedy="Say one of both.",
        )
    if window is not None and not from_kafka:
        raise ConfigError("--window is one of the topics", remedy="Say --from-kafka too.")
    from stream.gate_data import FromFiles, FromKafka

    if from_kafka:
        return FromKafka(length_s=None if window is None else parse_duration(window))
    return FromFiles(events=events, items=items) if events and items else None


def _time(text: str | None) -> float | None:
    from stream.commands.train import parse_until

    return parse_until(text)


# -- doing it -----------------------------------------------------------------------------------


def _promote(asked: Promotion) -> None:
    from stream.progress import reporter
    from stream.promoting import promote as run

    with reporter() as shown:
        release = run(asked, shown, _print_verdict)
    say(release)


def _promote_challenger(
    settings: Settings, force: bool, note: str | None, online: Path | None
) -> None:
    from stream import inspection, promoting
    from stream.files import now_ms
    from stream.online import compared, read_rates
    from stream.succession import Asked

    if online is not None:
        typer.echo(compared(read_rates(online), inspection.standing(settings)))
    why = Asked(at=now_ms(), force=force, note=note)
    say(promoting.promote_challenger(settings, why))


def _print_verdict(gate: Gate) -> None:
    from stream.model_tables import verdict_lines

    for line in verdict_lines(gate):
        typer.echo(line)


def say(release: Release) -> None:
    """Print where it lies; then, last and so the outcome of a scheduled run, what serves now."""
    from stream.model_tables import why

    share = "" if release.role == "champion" else f" of {100 * release.share:.4g}% of the users"
    before = "" if release.parent is None else f"; the champion before: {release.parent.version}"
    if release.role == "challenger" and release.parent is not None:
        before = f"; the champion stays {release.parent.version}"
    typer.echo(f"bundle: {release.bundle}")
    typer.echo(f"{release.version} is the {release.role}{share} ({why(release)}){before}")
