"""The network of the second look: what it computes, what it finds, and when it is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters import evaluate, experts, fit_interplay, fit_rerank, interplay, ranking, rerank
from adapters.features import prepare
from adapters.looks import Looks, ndcg, sums
from adapters.types import Catalogue, Meta, ModelConfig, Shared, UserView
from export import bundle_tensors
from tests.model import planted

SIZE = 200


def world() -> tuple[Meta, UserView, Catalogue, Shared]:
    """A model with a random second look and network, 40 users and what they can be shown."""
    settings, generator = planted.config(), torch.Generator().manual_seed(7)
    meta, size = planted.model(settings), len(rerank.names(settings))
    weight = torch.randn(size, rerank.CIRCUMSTANCES, generator=generator)
    network = interplay.new_tensors(size, rerank.HEARD, generator)
    network[interplay.SAY] *= 20
    tensors = {**meta.tensors, **rerank.with_weights(weight), **network}
    catalogue, shared = planted.catalogue(settings, SIZE), planted.shared(settings, SIZE)
    return replace(meta, tensors=tensors), planted.view(settings, 40, SIZE), catalogue, shared


def looks(users: int, *, together: bool) -> Looks:
    """Requests at which one of 16 candidates is taken; if `together`, where two numbers agree."""
    generator = torch.Generator().manual_seed(5)
    n = users * 4
    values = torch.randn(n, 16, len(rerank.names(ModelConfig())), generator=generator)
    utility = 3 * values[..., 0] * values[..., 1] if together else values[..., 0]
    taken = (utility - torch.rand(n, 16, generator=generator).log().neg().log()).argmax(1)
    context = torch.zeros(n, rerank.HEARD)
    context[:, 0] = 1.0
    return Looks(
        values=values,
        hits=torch.nn.functional.one_hot(taken, 16).bool(),
        known=torch.ones(n, 16, dtype=torch.bool),
        relevant=torch.ones(n, dtype=torch.int64),
        context=context,
        users=torch.arange(users).repeat_interleave(4),
        recency=torch.ones(n, dtype=torch.float64),
    )


def fitted(found: Looks, seed: int = 0) -> dict[str, Tensor]:
    """The network that is fitted to these requests, or none."""
    return fit_interplay.fit(found, fit_rerank.solve, 0.5, seed)


def part(found: Looks, network: dict[str, Tensor]) -> Tensor:
    """What the network adds to the candidates' scores."""
    return interplay.added(Meta(ModelConfig(), network), found.values, found.context)


def test_its_part_is_what_the_formula_says() -> None:
    """Numbers are clipped to the range of the fit, read by units, and the units summed."""
    meta = Meta(
        ModelConfig(),
        {
            interplay.LOW: torch.tensor([0.0, -1.0]),
            interplay.HIGH: torch.tensor([2.0, 1.0]),
            interplay.READ: torch.tensor([[1.0, 1.0], [-1.0, 0.5]]),
            interplay.TOLD: torch.tensor([[0.5], [0.25]]),
            interplay.SAY: torch.tensor([3.0, -2.0]),
        },
    )
    told = interplay.circumstances(meta, torch.tensor([[1.0]]))
    assert told is not None
    values = torch.tensor([[[5.0, 1.0, -3.0], [0.5, -9.0, 0.0]]])  # [1, F, 3 items]
    # clipped: (2, .5), (1, -1), (0, 0)
    first = 3 * (2 + 0.5 + 0.5) - 2 * 0  # the other unit is at -2 + .25 + .25
    second = 3 * (1 - 1 + 0.5) - 2 * 0
    third = 3 * 0.5 - 2 * 0.25
    expected = torch.tensor([[first, second, third]])
    torch.testing.assert_close(interplay.part(meta, values, told), expected)


def test_scores_add_up_with_the_network_as_one_part() -> None:
    """A list is in the order of what `contributions` adds up to, `interplay` being the last."""
    meta, view, catalogue, shared = world()
    prepared = prepare(meta.config, catalogue, shared)
    found = ranking.rank_prepared(meta, prepared, view, 10)
    parts = ranking.contributions(meta, prepared, view, found.items.clamp(min=0))
    assert ranking.names(meta)[-1] == interplay.NAME
    assert parts.shape[2] == len(ranking.names(meta))
    torch.testing.assert_close(found.scores, parts.sum(2), rtol=1e-4, atol=1e-4)
    assert parts[..., -1].abs().max() > 0.1
    plain = ranking.rank_prepared(interplay.without(meta), prepared, view, 10)
    assert not torch.equal(plain.items, found.items)


def test_the_encoder_does_not_come_back_through_the_network() -> None:
    """`experts only` depends on the interests in no part, `encoder only` on nothing else."""
    meta, view, catalogue, shared = world()
    view = replace(view, delta=torch.zeros_like(view.delta))
    other = replace(view, interests=view.interests.flip(0))
    bare = evaluate.variant_meta(meta, "experts only")
    assert interplay.present(bare)
    one, two = (ranking.rank(bare, v, catalogue, shared, 10, 0.0).items for v in (view, other))
    assert torch.equal(one, two)
    assert not interplay.present(evaluate.variant_meta(meta, "encoder only"))
    assert not interplay.present(evaluate.variant_meta(meta, "mix alone"))


def test_it_finds_what_a_sum_cannot_say() -> None:
    """Where a product of two numbers decides, users that the fit has not seen get better lists."""
    train, test = looks(400, together=True), looks(900, together=True)
    test = Looks(*(column[1_600:] for column in test))
    network = fitted(train)
    assert network
    weights = fit_rerank.solve(train, 0.5)
    plain = sums(test, weights)
    better, before = ndcg(test, plain + part(test, network)), ndcg(test, plain)
    assert float(better.mean()) > 1.2 * float(before.mean())


@pytest.mark.parametrize("seed", range(3))
def test_it_is_left_out_where_the_sum_says_it_all(seed: int) -> None:
    """Where one number decides there is no network, and none where there is a single user."""
    assert fitted(looks(150, together=False), seed) == {}
    assert fitted(looks(1, together=True), seed) == {}


def test_equal_seeds_give_equal_networks() -> None:
    """A fit can be repeated to the bit, and another seed is another network."""
    train = looks(300, together=True)
    one, two, other = fitted(train), fitted(train), fitted(train, 1)
    assert all(torch.equal(one[name], two[name]) for name in interplay.TENSORS)
    assert not torch.equal(one[interplay.READ], other[interplay.READ])


def test_a_bundle_from_before_a_number_was_there_gives_it_no_weight(tmp_path: Path) -> None:
    """Weights of fewer numbers are read with zeros for the new ones, which stand at the end."""
    meta, view, catalogue, shared = world()
    meta = interplay.without(meta)
    old = replace(meta, tensors={**meta.tensors, **rerank.with_weights(meta["rerank_weight"][:-3])})
    bundle_tensors.write_meta(old, tmp_path / "meta.safetensors")
    read = bundle_tensors.read_meta(tmp_path / "meta.safetensors", meta.config.to_dict())
    assert read["rerank_weight"].shape == meta["rerank_weight"].shape
    assert not read["rerank_weight"][-3:].any()
    found = ranking.rank(read, view, catalogue, shared, 10, 0.0)
    assert len(experts.names(meta.config)) + len(rerank.NAMES) == len(read["rerank_weight"])
    assert (found.items[:, 0] >= 0).all()
