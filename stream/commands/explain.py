"""`innerloop explain`."""

from __future__ import annotations

from collections.abc import Iterator
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
    from adapters.types import ModelConfig
    from stream.config import Settings
    from stream.explaining import Explainer, Explanation
    from stream.message_encoding import Recommendation

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_EVENTS = 8
"""Events that are printed of an item."""


@app.command(epilog="Example: innerloop explain ann film-7 --bundle models/films")
def explain(
    user: Annotated[str, typer.Argument(help="The user's id.", show_default=False)],
    item: Annotated[
        str | None,
        typer.Argument(help="An item's id. Default: the top of the user's list.", metavar="[ITEM]"),
    ] = None,
    top: Annotated[int, typer.Option(help="Items of the list, where no item is named.", min=1)] = 5,
    bundle: Annotated[
        str | None, typer.Option(help="The worker's model bundle. Default: the champion.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
) -> None:
    """Say what moved an item in a user's list: experts, and the user's own events behind them.

    Takes the record from state, the signals and the items from their topics and the model from the
    bundle, and computes with the worker's own functions. What an event does is found by leaving it
    out. Columns "moved" are over what the average item of the list for new users moved.
    """
    settings = load_settings(
        config,
        set_,
        kafka__bootstrap_servers=bootstrap_servers,
        kafka__prefix=prefix,
        model__bundle=bundle,
        model__follow=None if bundle is None else False,
    )
    from stream import assembly, inspection
    from stream.explaining import Explainer
    from stream.replica import Replica

    loaded = assembly.load_bundle(settings, user)
    _, value = inspection.required_record(settings, user)
    published = inspection.last_list(settings, user)
    replica = Replica(settings, loaded)
    replica.follow_signals(_last_time(replica.serving.meta.config, value))
    explainer = Explainer(settings, replica.serving)
    wanted = [item] if item else _top(explainer, user, value, published, top)
    found = explainer.explain(user, value, wanted)
    if as_json:
        _print_json(user, published, found)
        return
    titles = dict(zip(replica.serving.table.ids, replica.serving.table.titles, strict=True))
    typer.echo(_headline(settings, user, published))
    ranks = {e.item: e.rank for e in published.items} if published is not None else {}
    for line in _story(found[0], titles, ranks) if item else _overview(found, titles, ranks):
        typer.echo(line)


def _last_time(model: ModelConfig, value: bytes) -> float:
    """Unix seconds of the user's last event."""
    from stream.user_state import Layout

    return float(Layout.of(model).decode([value])["last_time"][0]) / 1000


def _top(
    explainer: Explainer, user: str, value: bytes, published: Recommendation | None, top: int
) -> list[str]:
    """The best of the published list that the catalogue still has, or of the list as of now."""
    if published is not None:
        known = [e.item for e in published.items if explainer.serving.table.row(e.item) >= 0]
        if known:
            return known[:top]
    return explainer.best(explainer.view(user, value), top)[0]


def _headline(settings: Settings, user: str, published: Recommendation | None) -> str:
    from stream.tables import instant, printable

    if published is None:
        return f"user {printable(user)}: no list in {settings.kafka.topic('recommendations')}"
    cause = published.caused_by
    why = f", caused by event {printable(cause.event_id)}" if cause else ""
    return (
        f"user {printable(user)}: {published.shots} shots; {published.strategy} list of "
        f"{instant(published.generated_at)}{why}, model {published.model_version}"
    )


# -- several items, or one ------------------------------------------------------------------------


def _overview(
    found: list[Explanation], titles: dict[str, str], ranks: dict[str, int]
) -> Iterator[str]:
    """The top of the list: what moved each item most, and the event that speaks most for it."""
    from stream.tables import table

    rows = [("place", "score", "item", "moved most by", "event that speaks most for it")]
    for one in found:
        best = max(one.events, key=lambda event: event.moved, default=None)
        speaks = "" if best is None or best.moved <= 0 else _event(best.item, titles)
        place = str(ranks.get(one.item) or one.place or "-")
        rows.append((place, f"{one.score:.3f}", _named(one), one.why, speaks))
    yield from table(rows)


def _story(one: Explanation, titles: dict[str, str], ranks: dict[str, int]) -> Iterator[str]:
    """One item: its place, the experts, and the events for and against it."""
    from stream.tables import instant, table

    yield f"item {_named(one)}: {_standing(one, ranks.get(one.item))}"
    yield ""
    parts: list[tuple[str, ...]] = [("expert", "adds", "new user", "moved")]
    parts += [(p.expert, *map(_signed, (p.adds, p.new_user, p.moved))) for p in one.parts]
    parts.append(("sum", *map(_signed, _sums(one))))
    yield from table(parts)
    yield ""
    events = [("moved", "event", "", "item", "mostly through")]
    for e in one.events[:_EVENTS]:
        item = _event(e.item, titles)
        events.append(
            (_signed(e.moved), instant(e.time), f"{e.action} {e.value:+.2f}", item, e.why)
        )
    yield from table(events)
    if len(one.events) > _EVENTS:
        yield f"  and {len(one.events) - _EVENTS} events that matter less"


def _sums(one: Explanation) -> tuple[float, float, float]:
    rows = [(p.adds, p.new_user, p.moved) for p in one.parts]
    adds, new, moved = (sum(column) for column in zip(*rows, strict=True))
    return adds, new, moved


def _standing(one: Explanation, rank: int | None) -> str:
    listed = f"place {rank} of the list" if rank else "not in the list"
    if one.not_ranked is not None:
        return f"{listed}; not ranked now: {one.not_ranked}; its score would be {one.score:.3f}"
    near = f", nearest to interest {one.interest + 1}" if one.interest else ""
    return f"{listed}, {one.place} of {one.of} by relevance, score {one.score:.3f}, {one.why}{near}"


def _named(one: Explanation) -> str:
    from stream.tables import printable

    return printable(f"{one.title} ({one.item})" if one.title != one.item else one.item)


def _event(item: str, titles: dict[str, str]) -> str:
    from stream.tables import printable

    title = titles.get(item, item)
    return printable(f"{title} ({item})" if title != item else item)


def _signed(number: float) -> str:
    return f"{number:+8.3f}"


def _print_json(user: str, published: Recommendation | None, found: list[Explanation]) -> None:
    from dataclasses import asdict

    import msgspec
    import orjson

    plain = None if published is None else msgspec.to_builtins(published)
    said = {"user": user, "list": plain, "items": [asdict(one) for one in found]}
    typer.echo(orjson.dumps(said).decode())
