"""Settings reach the outer loop, and what they leave out is left out."""

from __future__ import annotations

import pytest

from stream import recipes
from stream.config import Settings, load


def settings(**changes: object) -> Settings:
    """Default settings with changes, dots written as two underscores."""
    return load(None, {name.replace("__", "."): value for name, value in changes.items()})


def test_the_defaults_are_those_of_the_recipe() -> None:
    """Settings nobody touched change nothing."""
    usual = recipes.Recipe()
    assert recipes.recipe(settings()) == usual
    model = recipes.model_config(settings().learning, ("click",))
    assert model == recipes.ModelConfig(actions=("click",))


@pytest.mark.parametrize(
    ("name", "value", "left_out"),
    [
        ("learning__item_features", "text", "item.id"),
        ("learning__item_features", "id", "item.text"),
    ],
)
def test_what_items_are_known_by(name: str, value: str, left_out: str) -> None:
    """Text alone or id alone: the tensors of the other are zero in training and after it."""
    assert left_out in recipes.recipe(settings(**{name: value})).silent


def test_repeat_consumption_trains_on_repeats() -> None:
    """Where lists may hold what was taken before, the next item may be such a one."""
    assert recipes.recipe(settings(ranking__exclude_seen=False)).draw.repeat
    assert not recipes.recipe(settings()).draw.repeat


@pytest.mark.parametrize("kind", ["gru", "sasrec", "maml"])
def test_the_adapter_is_chosen_by_name(kind: str) -> None:
    """One line of configuration changes the adapter."""
    assert recipes.model_config(settings(learning__kind=kind).learning, ()).kind == kind
