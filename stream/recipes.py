"""From settings to what the outer loop trains."""

from __future__ import annotations

from dataclasses import replace

from adapters.meta_train import Recipe
from adapters.pretrain import PretrainRecipe
from adapters.tuning import Tuning
from adapters.types import ModelConfig
from stream import config

_SILENT: dict[str, tuple[str, ...]] = {
    "all": (),
    "text": ("item.id",),
    "id": ("item.text", "item.attribute", "item.dense", "text.components"),
}
"""Tensors of an item that each choice of `learning.item_features` leaves out."""


def model_config(learning: config.Learning, actions: tuple[str, ...]) -> ModelConfig:
    """The model that these settings ask for."""
    return ModelConfig(
        kind=learning.kind,
        interests=learning.interests,
        first_order=learning.first_order,
        decay=learning.decay,
        user_delta=learning.user_delta and learning.inner_loop and learning.experts,
        actions=actions,
    )


def recipe(settings: config.Settings, device: str = "cpu") -> Recipe:
    """The outer loop that these settings ask for on this device."""
    learning, usual = settings.learning, Recipe()
    mixed = {"auto": device.startswith("cuda"), "always": True, "never": False}
    return replace(
        usual,
        steps=learning.steps,
        learning_rate=learning.learning_rate,
        weight_decay=learning.weight_decay,
        averaging=learning.averaging,
        patience=learning.patience,
        few_weight=learning.few_weight,
        diversity_weight=learning.diversity_weight,
        inner_loop=learning.inner_loop,
        mixed=mixed[learning.mixed_precision],
        silent=_SILENT[learning.item_features],
        draw=replace(
            usual.draw,
            batch=learning.batch,
            horizon=learning.horizon,
            repeat=settings.ranking.repeats,
        ),
    )


def pretraining(learning: config.Learning) -> PretrainRecipe | None:
    """The further pretraining of the backbone that these settings ask for; None = none."""
    if learning.pretrain_s is None and learning.pretrain_steps is None:
        return None
    return PretrainRecipe(
        steps=learning.pretrain_steps,
        budget_s=learning.pretrain_s,
        learning_rate=learning.pretrain_rate,
        contrast=learning.pretrain_contrast,
    )


def tuning(learning: config.Learning) -> Tuning | None:
    """What these settings ask to tune of the backbone; None = nothing."""
    if learning.tune_backbone == "off":
        return None
    return Tuning(
        kind=learning.tune_backbone,
        layers=learning.tune_layers,
        rank=learning.tune_rank,
        items=learning.tune_items,
    )
