"""Further pretraining: it learns what texts of items have in common, and knows when to stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from adapters import backbone, pretrain, tokens
from adapters.backbone import Backbone, BackboneError
from adapters.pretrain import ItemTexts, PretrainRecipe
from tests.unit.small_training import small_bert

SIDES = (
    ["red", "blue", "green", "black", "white", "pink", "grey", "gold"],
    ["dog", "cat", "cow", "pig", "hen", "fox", "owl", "bee"],
)
RECIPE = PretrainRecipe(steps=120, learning_rate=3e-3, head_scale=1.0, check_every=20, batch=32)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A one-layer BERT with random weights."""
    folder = tmp_path_factory.mktemp("home") / "bert"
    small_bert(folder)
    return backbone.load(folder)


def planted(size: int = 240, seed: int = 0, *, rule: bool = True) -> ItemTexts:
    """Titles of two colours and rests of two animals; by rule the colours tell the animals."""
    rng = np.random.default_rng(seed)
    pairs, others = (np.sort(rng.integers(0, 8, (size, 2)), 1) for _ in range(2))
    rests = [" ".join(SIDES[1][i] for i in pair) for pair in (pairs if rule else others)]
    titles = [" ".join(SIDES[0][i] for i in pair) for pair in pairs]
    whole = [f"{title}. {rest}" for title, rest in zip(titles, rests, strict=True)]
    return ItemTexts(whole=whole, titles=titles, rests=rests)


def found(model: Backbone, texts: ItemTexts) -> float:
    """Share of titles whose nearest rest is their own."""
    pairs = sorted(set(zip(texts.titles, texts.rests, strict=True)))
    one, other = (backbone.encode(model, side) for side in zip(*pairs, strict=True))
    return float(((one @ other.T).argmax(1) == torch.arange(len(pairs))).float().mean())


def test_it_learns_what_titles_say_of_the_rest(small: Backbone, tmp_path: Path) -> None:
    """The loss of held-out items falls, and most titles find their rest; few did before."""
    before = {name: value.clone() for name, value in small.module.state_dict().items()}
    made = pretrain.pretrain(small, planted(), RECIPE)
    assert made.metrics["validation_loss"] < 0.8 * made.metrics["loss_before"]
    backbone.save(small, made.weights, tmp_path / "made")
    assert found(small, planted()) < 0.3
    assert found(backbone.load(tmp_path / "made"), planted()) > 0.6
    assert all(torch.equal(value, before[n]) for n, value in small.module.state_dict().items())
    assert torch.equal(made.weights["words.weight"], before["words.weight"])


def test_it_stops_where_held_out_items_gain_nothing(small: Backbone) -> None:
    """Texts that follow no rule end the run early, with the weights of the best check."""
    recipe = replace(RECIPE, steps=2_000, learning_rate=2e-2, check_every=10, patience=2)
    figures = pretrain.pretrain(small, planted(80, rule=False), recipe).metrics
    assert figures["steps"] == figures["best_step"] + 20 < 2_000
    assert figures["stopped_early"] == 1


def test_a_budget_of_time_ends_the_run(small: Backbone) -> None:
    """Without a number of steps the clock alone ends it."""
    recipe = replace(RECIPE, steps=None, budget_s=0.5, patience=10**6)
    figures = pretrain.pretrain(small, planted(), recipe).metrics
    assert figures["steps"] >= 1
    assert figures["seconds"] < 30


def test_the_same_seed_gives_the_same_weights(small: Backbone) -> None:
    """A run by steps is reproducible, and another seed gives other weights."""
    recipe = replace(RECIPE, steps=3)
    one, two, other = (
        pretrain.pretrain(small, planted(), recipe, seed=seed).weights for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["layers.0.up.weight"], other["layers.0.up.weight"])


def test_half_precision_learns_the_same(small: Backbone) -> None:
    """With products in bfloat16, here forced on the CPU, losses are finite and about the same."""
    recipe = replace(RECIPE, steps=30)
    whole, half = (
        pretrain.pretrain(small, planted(), replace(recipe, half=half)) for half in (False, True)
    )
    assert all(torch.isfinite(value).all() for value in half.weights.values())
    assert half.weights["layers.0.up.weight"].dtype == torch.float32
    assert half.metrics["validation_loss"] == pytest.approx(
        whole.metrics["validation_loss"], rel=0.1
    )


def test_tokens_are_hidden_as_bert_hides_them(small: Backbone) -> None:
    """About 15% are asked for, one at least in every text, never a special one or padding."""
    texts = planted(400)
    corpus = pretrain._Corpus.of(small.tokenizer, texts)
    plain = tokens.pad(corpus.whole, np.arange(400))
    shown, hidden, answers = pretrain._hide(corpus, plain, 0.15, np.random.default_rng(0))
    assert hidden.any(1).all()
    assert not np.isin(answers, corpus.special).any()
    assert not hidden[plain.mask == 0].any()
    assert (shown.ids[~hidden] == plain.ids[~hidden]).all()
    assert (answers == plain.ids[hidden]).all()
    assert 0.7 < (shown.ids[hidden] == corpus.mask).mean() < 0.9
    open_ = (plain.mask == 1) & ~np.isin(plain.ids, corpus.special)
    assert 0.15 < hidden.sum() / open_.sum() < 0.35  # short texts: the one at least is more


def test_equal_texts_are_no_contrast() -> None:
    """Rows that are alike are left out of each other's softmax; the own row never is."""
    one = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), dim=-1)
    none, alike = torch.zeros(3, 3, dtype=torch.bool), torch.zeros(3, 3, dtype=torch.bool)
    alike[0, 1] = alike[1, 0] = True
    strict, fair = (float(pretrain.contrast(one, one, mask, 0.05)) for mask in (none, alike))
    assert fair < 1e-3 < strict


def test_items_without_a_title_or_a_rest_are_read_all_the_same(small: Backbone) -> None:
    """Where no item has both, the hidden tokens alone are learned from."""
    whole = planted().whole
    texts = ItemTexts(whole=whole, titles=whole, rests=[""] * len(whole))
    figures = pretrain.pretrain(small, texts, replace(RECIPE, steps=20)).metrics
    assert figures["loss_contrast"] == 0
    assert figures["validation_loss"] < figures["loss_before"]


def test_too_few_texts_are_refused(small: Backbone) -> None:
    """A handful of items is nothing to adapt to."""
    empty = ItemTexts(whole=[""] * 99 + ["x"], titles=[""] * 100, rests=[""] * 100)
    with pytest.raises(ValueError, match="only 1 items have a text"):
        pretrain.pretrain(small, empty, RECIPE)


def test_a_rate_that_is_far_too_high_is_refused(small: Backbone) -> None:
    """Weights that are no numbers are an error, and not a backbone."""
    with pytest.raises(ValueError, match="not finite"):
        pretrain.pretrain(small, planted(), replace(RECIPE, steps=20, learning_rate=1e30))


def test_a_tokenizer_without_mask_is_refused(small: Backbone) -> None:
    """It cannot hide tokens, and the message says what it lacks."""
    bare = replace(
        small, tokenizer=Tokenizer.from_str('{"model": {"type": "BPE", "vocab": {}, "merges": []}}')
    )
    with pytest.raises(BackboneError, match=r"\[MASK\]"):
        pretrain.pretrain(bare, planted(), RECIPE)
