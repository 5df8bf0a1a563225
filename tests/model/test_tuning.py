"""The backbone is tuned with the rest: gradients reach it, and what was trained is exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters import backbone, meta_train, towers, tuning
from adapters.backbone import Backbone
from adapters.meta_train import Trained
from adapters.outer_loop import Moment, Snapshot
from adapters.tuning import TunedTexts, Tuning
from adapters.types import Meta
from tests.model.test_meta_train import CONFIG, GROUPS, RECIPE, planted
from tests.unit.small_training import small_bert

WORDS = ("space", "wedding", "heist", "ghost")
TEXTS = [f"{'the film of the ' * (i % 3)}{WORDS[i % GROUPS]} number {i}" for i in range(80)]
KINDS = ("lora", "last_layers")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A BERT of two layers with random weights."""
    folder = tmp_path_factory.mktemp("home") / "bert"
    small_bert(folder, layers=2)
    return backbone.load(folder)


def texts_of(small: Backbone, kind: str, layers: int = 1, items: int = 32) -> TunedTexts:
    """The texts above, of which so many a batch are encoded with gradients."""
    how = Tuning(kind=kind, layers=layers, rank=4, items=items)  # type: ignore[arg-type]
    top = tuning.prepare(small, TEXTS, layers)
    return TunedTexts(top, how, backbone.encode(small, TEXTS))


def model(texts: TunedTexts, moved: float = 0.0) -> Meta:
    """A model with the backbone's tensors alone, moved at random from where they begin."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: value + moved * torch.randn(value.shape, generator=generator)
        for name, value in texts.start(generator).items()
    }
    return Meta(CONFIG, tensors)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_before_training_the_vectors_are_those_of_the_backbone(
    small: Backbone, kind: str, layers: int
) -> None:
    """Layers whose input is kept say the same as the whole, in any order and company."""
    texts = texts_of(small, kind, layers)
    rows = np.array([7, 79, 0, 3])
    expected = backbone.encode(small, [TEXTS[i] for i in rows])
    torch.testing.assert_close(texts.encode(model(texts), rows), expected, atol=2e-3, rtol=0)


def test_lora_adds_its_product_to_each_projection(small: Backbone) -> None:
    """The merged weight applied is the projection plus gain x up x down applied, to rounding."""
    texts = texts_of(small, "lora")
    meta = model(texts, moved=0.1)
    merged = tuning.merged(small.module, meta.tensors)
    assert sorted(merged) == [f"layers.1.attention.{name}.weight" for name in ("joint", "out")]
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    for name, weight in merged.items():
        stem = tuning.PREFIX + name.removesuffix(".weight")
        down, up = meta[f"{stem}.lora_down"], meta[f"{stem}.lora_up"]
        apart = x @ small.module.get_parameter(name).T + 2.0 * (x @ down.T) @ up.T
        torch.testing.assert_close(x @ weight.T, apart, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_says_what_was_trained(small: Backbone, tmp_path: Path, kind: str) -> None:
    """A backbone saved with the merged weights gives the vectors of training; its digest moved."""
    texts = texts_of(small, kind)
    meta = model(texts, moved=0.1)
    backbone.save(small, texts.weights(meta), tmp_path / "tuned")
    saved = backbone.load(tmp_path / "tuned")
    assert saved.sha != small.sha
    vectors = backbone.encode(saved, TEXTS)
    torch.testing.assert_close(texts.refresh(meta), vectors, atol=2e-3, rtol=0)
    assert (vectors - backbone.encode(small, TEXTS)).abs().max() > 0.05


def test_gradients_reach_the_products_and_nothing_else(small: Backbone) -> None:
    """At first only the zero half of a product is moved, then both; frozen weights have none."""
    texts = texts_of(small, "lora")
    meta = model(texts)
    leaves = {name: value.requires_grad_() for name, value in meta.tensors.items()}
    wanted = torch.randn(8, 32, generator=torch.Generator().manual_seed(2))
    for first in (True, False):
        loss = (texts.encode(meta, np.arange(8)) * wanted).sum()
        grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        assert all(bool(g.any()) for n, g in grads.items() if n.endswith("lora_up"))
        assert all(bool(g.any()) != first for n, g in grads.items() if n.endswith("lora_down"))
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf -= 0.1 * grads[name]
    assert all(p.grad is None for p in small.module.parameters())


def test_some_items_of_a_batch_are_fresh_and_the_rest_wait_for_a_refresh(small: Backbone) -> None:
    """A gradient runs to as many vectors as asked for; the others are as they were until due."""
    texts = texts_of(small, "last_layers", items=5)
    meta, before = model(texts, moved=0.1), texts.memory["text"].clone()
    rows, generator = torch.arange(80), torch.Generator().manual_seed(0)
    known = texts.step(meta, rows, 2, generator)
    changed = (known - before).abs().amax(1) > 1e-3
    assert int(changed.sum()) == 5
    torch.testing.assert_close(known[changed], texts.encode(meta, np.flatnonzero(changed)))
    texts.step(meta, rows, 2, generator)
    assert int(((texts.memory["text"] - before).abs().amax(1) > 1e-3).sum()) <= 10
    texts.step(meta, rows, 2, generator)  # the third one is due
    torch.testing.assert_close(texts.memory["text"], texts.encode(meta, np.arange(80)))


# -- in the outer loop --------------------------------------------------------------------------

LONG = replace(RECIPE, steps=60, silent=("item.id",), check_every=10, patience=None)


def features(texts: TunedTexts) -> towers.ItemFeatures:
    """The texts alone, no attributes."""
    none = torch.full((80, 1), -1)
    return towers.ItemFeatures(texts.memory["text"].clone(), none, none[:, 0])


def run(texts: TunedTexts | None, known: towers.ItemFeatures, **more: object) -> Trained:
    """The outer loop on planted tastes, a fifth of whose users says how good it is."""
    return meta_train.train(
        planted(users=400), known, CONFIG, tuned=texts, held_out=np.arange(0, 400, 3), **more
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_tuning_finds_what_the_texts_hide(
    small: Backbone, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where random vectors hide the word that tells the taste, held-out users gain from tuning."""
    monkeypatch.setitem(tuning.RATES, kind, 1.0)  # a BERT that knows nothing learns slowly
    texts = texts_of(small, kind, items=80)
    known = features(texts)
    off = run(None, known, recipe=LONG)
    tuned = run(texts, known, recipe=LONG)
    assert tuned.metrics["validation_loss"] < off.metrics["validation_loss"] - 0.02
    assert tuned.backbone is not None
    assert off.backbone is None
    assert not any(name.startswith(tuning.PREFIX) for name in tuned.meta.tensors)
    assert tuned.meta.tensors.keys() == off.meta.tensors.keys()


def test_a_tuned_run_goes_on_from_a_snapshot(small: Backbone) -> None:
    """Broken off between two refreshes and resumed, it ends with the same weights."""
    recipe = replace(LONG, steps=14)
    kept: list[Snapshot] = []

    def keep(moment: Moment, take: object) -> None:
        shot = take()  # type: ignore[operator]
        if moment == "step" and shot.facts["step"] == 13:
            kept.append(Snapshot({n: t.clone() for n, t in shot.tensors.items()}, shot.facts))

    def train(**more: object) -> Trained:
        texts = texts_of(small, "lora")
        return run(texts, features(texts), recipe=recipe, **more)

    whole, resumed = train(keep=keep), train(resume=kept[0]) if kept else None
    assert resumed is not None
    assert whole.backbone is not None
    assert resumed.backbone is not None
    for mine, other in (
        (resumed.backbone, whole.backbone),
        (resumed.meta.tensors, whole.meta.tensors),
    ):
        assert all(torch.equal(mine[name], other[name]) for name in other)


def test_what_is_made_of_texts_is_made_anew(small: Backbone) -> None:
    """With the tuned vectors come their own reduction and texts of profiles; the rest stays."""
    texts = texts_of(small, "lora")
    trained = run(texts, features(texts), recipe=replace(LONG, steps=2))
    other: Tensor = torch.nn.functional.normalize(torch.randn(80, 32), dim=-1)
    anew = meta_train.read_anew(trained, planted(users=400), other)
    assert torch.equal(anew.features.text, other)
    changed = {n for n, t in anew.meta.tensors.items() if not torch.equal(t, trained.meta[n])}
    assert changed == {"text.mean", "text.components"}
    expected = towers.fit_text_reduction(other, CONFIG.text_dim)["text.mean"]
    torch.testing.assert_close(anew.meta["text.mean"], expected)


def test_more_layers_than_there_are_is_refused(small: Backbone) -> None:
    """The message says how many there are."""
    with pytest.raises(ValueError, match="has 2 layers, 3 are to be tuned"):
        tuning.prepare(small, TEXTS, 3)
