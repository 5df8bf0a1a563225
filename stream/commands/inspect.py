"""`innerloop inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

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
    from stream.message_encoding import Recommendation

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: innerloop inspect ann --bundle models/films")
def inspect(
    user: Annotated[str, typer.Argument(help="The user's id.", show_default=False)],
    config: ConfigOption = None,
    set_: SetOption = None,
    bootstrap_servers: ServersOption = None,
    prefix: PrefixOption = None,
    bundle: Annotated[
        str | None,
        typer.Option(
            help="The worker's model bundle, to read the adapter too. Default: the champion."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what is known of a user: shots, versions, support set, adapter, and the last list.

    Reads the user's partitions of the topics state and recommendations; workers may run meanwhile.
    """
    settings = load_settings(
        config,
        set_,
        kafka__bootstrap_servers=bootstrap_servers,
        kafka__prefix=prefix,
        model__bundle=bundle,
        model__follow=None if bundle is None else False,
    )
    from stream import inspection

    partition, value = inspection.required_record(settings, user)
    found = _described(settings, user, value)
    if as_json:
        import orjson

        typer.echo(orjson.dumps({"user": user, "partition": partition, **found}).decode())
        return
    for line in inspection.lines(user, partition, found):
        typer.echo(line)


def _described(settings: Settings, user: str, value: bytes) -> dict[str, Any]:
    """The record in words, with item titles, and the model's version where it is this bundle's."""
    from stream import inspection
    from stream.user_state import Layout, hash_id, support_events

    model, version = _model(settings, user)
    layout = Layout.of(model, repeats=settings.ranking.repeats)
    published = inspection.last_list(settings, user)
    listed = {} if published is None else {hash_id(e.item): e.item for e in published.items}
    hashes = {int(item) for item in support_events(layout.decode([value])).items.ravel() if item}
    names = inspection.item_names(settings, hashes | listed.keys())
    actions = model.actions or tuple(settings.messages.actions)
    found = inspection.describe(layout, value, actions, names)
    mine = version is not None and found["model_hash"] == f"{hash_id(version):016x}"
    return {
        **found,
        "model_version": version if mine else None,
        "list": None if published is None else _titled(published, names),
    }


def _titled(published: Recommendation, names: dict[int, str]) -> dict[str, Any]:
    """The list in plain types, with the titles of its items."""
    import msgspec

    from stream.user_state import hash_id

    plain: dict[str, Any] = msgspec.to_builtins(published)
    for entry in plain["items"]:
        entry["title"] = names.get(hash_id(entry["item"]))
    return plain


def _model(settings: Settings, user: str) -> tuple[ModelConfig, str | None]:
    """Configuration and version of the bundle that serves the user, or the defaults."""
    from adapters.types import ModelConfig
    from stream import assembly, first_model

    if settings.model.bundle is None and first_model.followed(settings).champion is None:
        return ModelConfig(), None
    loaded = assembly.load_bundle(settings, user)
    return loaded.meta.config, loaded.manifest.version
