"""Variety of lists: the re-ranker and the term in the outer loss do what their formulas say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adapters import meta_train, prediction_loss, towers
from adapters.diversity import diversify
from stream import config, recipes
from tests.model.test_meta_train import CONFIG, RECIPE, features_of, planted


def candidates(n: int = 3, size: int = 14) -> tuple[Tensor, Tensor, Tensor]:
    """Falling scores [n, size], rows [n, size] and unit texts [40, 4]."""
    g = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(40, 4, generator=g), dim=1)
    scores = torch.randn(n, size, generator=g).sort(descending=True).values
    return scores, torch.stack([torch.randperm(40, generator=g)[:size] for _ in range(n)]), texts


@pytest.mark.parametrize("diversity", [0.1, 0.4, 0.9])
def test_the_re_ranker_is_maximal_marginal_relevance(diversity: float) -> None:
    """Place by place it takes what loops over the published formula take."""
    scores, rows, texts = candidates()
    _, found = diversify(scores, rows, texts, 6, diversity)
    for user in range(3):
        own, left = scores[user], rows[user].tolist()
        scaled = (own - own.min()) / (own.max() - own.min())
        relevance = dict(zip(left, scaled.tolist(), strict=True))
        taken: list[int] = []
        for _ in range(6):
            value = {}
            for row in left:
                alike = max([0.0, *(float(texts[row] @ texts[other]) for other in taken)])
                value[row] = (1 - diversity) * relevance[row] - diversity * alike
            taken.append(max(left, key=value.__getitem__))
            left.remove(taken[-1])
        assert found[user].tolist() == taken


def test_a_scale_of_scores_changes_no_list() -> None:
    """The parameter means the same for a model whose scores are ten times as large."""
    scores, rows, texts = candidates()
    assert torch.equal(
        diversify(scores, rows, texts, 8, 0.3)[1],
        diversify(7 + 10 * scores, rows, texts, 8, 0.3)[1],
    )


def test_sameness_is_the_expected_similarity_of_two_draws() -> None:
    """The squared length of the mean vector is the sum over all pairs, hidden items left out."""
    scores, _, texts = candidates(3, 40)
    scores[:, 5:9] = -torch.inf
    chance = scores.softmax(1)
    expected = torch.einsum("mi,mj,ij->m", chance, chance, texts @ texts.T)
    torch.testing.assert_close(prediction_loss.sameness(scores, texts), expected)
    assert float(
        prediction_loss.sameness(torch.zeros(1, 3), texts[:1].expand(3, -1))
    ) == pytest.approx(1)


def test_the_loss_on_sameness_varies_what_users_get() -> None:
    """Ten steps with it leave a user of one group with items less alike than ten without."""
    log, features = planted(), features_of()
    groups = torch.nn.functional.one_hot(torch.arange(80) % 4, 12).float()
    features = replace(features, text=groups)  # the text tells the group that users stay in
    alike = []
    for weight in (0.0, 20.0):
        draw = replace(RECIPE.draw, batch=16)
        recipe = replace(RECIPE, steps=10, draw=draw, diversity_weight=weight)
        trained = meta_train.train(log, features, CONFIG, recipe=recipe)
        vectors = towers.item_vectors(trained.meta, trained.features)
        text = towers.reduce_text(trained.meta, groups)
        start = torch.zeros(1, 16) + vectors[::4].mean(0)  # a user of the first group
        alike.append(float(prediction_loss.sameness(start @ vectors.T, text)))
    assert alike[1] < 0.9 * alike[0]


def test_the_weight_of_sameness_is_a_setting() -> None:
    """One line of configuration turns the term on; it is off by default."""
    settings = config.load(None, {"learning.diversity_weight": 2.0})
    assert recipes.recipe(settings).diversity_weight == 2.0
    assert recipes.recipe(config.load(None, {})).diversity_weight == 0.0
