"""The tables of docs/configuration.md, written from the settings themselves.

`python -m stream.config_docs docs/configuration.md` writes what stands between the two marks anew.
"""

from __future__ import annotations

import argparse
import json
import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from stream.config import Action, Settings, default_actions

BEGIN = "<!-- settings: written by `make docs` -->"
END = "<!-- end of settings -->"

_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_DEFAULTS = {
    "state.dir": "`innerloop` in the user's state folder",
    "model.registry": "`innerloop/models` in the user's data folder",
    "monitor.dir": "`innerloop/monitor` in the user's state folder",
    "messages.actions": "the table below",
}


def sections(
    model: type[BaseModel] = Settings, name: str = ""
) -> Iterator[tuple[str, type[BaseModel], dict[str, FieldInfo]]]:
    """Dotted name, class and own settings of every section, in the order of declaration."""
    nested = {k: f.annotation for k, f in model.model_fields.items() if _is_section(f)}
    yield name, model, {k: f for k, f in model.model_fields.items() if k not in nested}
    for key, kind in nested.items():
        yield from sections(cast(type[BaseModel], kind), f"{name}.{key}".lstrip("."))


def settings() -> dict[str, FieldInfo]:
    """Every setting by its dotted name."""
    return {
        f"{section}.{name}".lstrip("."): field
        for section, _, fields in sections()
        for name, field in fields.items()
    }


def variable(name: str) -> str:
    """The environment variable of a dotted name."""
    return "INNERLOOP_" + name.replace(".", "__").upper()


def render(text: str) -> str:
    """`text` with new tables between the marks. Raises `ValueError` when a mark is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{BEGIN} or {END} is missing")
    return f"{before}{BEGIN}\n\n{_tables()}\n{END}{after}"


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _tables() -> str:
    return "\n\n".join([*(_section(*section) for section in sections()), _actions()]) + "\n"


def _section(name: str, model: type[BaseModel], fields: dict[str, FieldInfo]) -> str:
    title = f"`{name}`" if name else "Top level"
    head = ["| setting | default | accepts | meaning |", "|---|---|---|---|"]
    rows = [_row(f"{name}.{key}".lstrip("."), field) for key, field in fields.items()]
    return "\n".join([f"### {title}", "", (model.__doc__ or "").strip(), "", *head, *rows])


def _row(name: str, field: FieldInfo) -> str:
    return f"| `{name}` | {_default(name, field)} | {_accepts(field)} | {field.description or ''} |"


def _default(name: str, field: FieldInfo) -> str:
    if name in _DEFAULTS:
        return _DEFAULTS[name]
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    return "unset" if value in (None, "", {}) else f"`{json.dumps(value).strip(chr(34))}`"


def _accepts(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(item, key):,}"
        for item in field.metadata
        for key, sign in _SIGNS.items()
        if getattr(item, key, None) is not None
    ]
    return ", ".join([_type(field.annotation), *bounds])


def _type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join("unset" if k is type(None) else _type(k) for k in get_args(kind))
    if get_origin(kind) is dict:
        return f"names to {_type(get_args(kind)[1])}"
    names: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "yes or no"}
    return names.get(kind, re.sub(r"(?<!^)(?=[A-Z])", " ", kind.__name__).lower())


def _actions() -> str:
    names = list(Action.model_fields)
    meanings = [f"- `{name}`: {Action.model_fields[name].description}" for name in names]
    rows = [
        f"| `{action}` | {' | '.join(_cell(getattr(value, name)) for name in names)} |"
        for action, value in default_actions().items()
    ]
    head = [f"| action | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    return "\n".join(["### Actions", "", *head, *rows, "", *meanings])


def _cell(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value:g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tables of a document anew."""
    parser = argparse.ArgumentParser(prog="python -m stream.config_docs")
    parser.add_argument("document", type=Path)
    document: Path = parser.parse_args(arguments).document
    document.write_text(render(document.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
