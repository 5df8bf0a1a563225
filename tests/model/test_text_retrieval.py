"""Whether another backbone helps is told from what users took next."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters import episodes, text_retrieval, validation
from adapters.episodes import Draw, Episodes, Log

GROUPS, ITEMS = 4, 80
THERE = torch.arange(ITEMS)


def tastes(users: int = 700) -> Log:
    """Every user stays within one of four groups of items."""
    rng = np.random.default_rng(0)
    user = rng.integers(0, users, users * 12)
    item = rng.integers(0, ITEMS // GROUPS, len(user)) * GROUPS + user % GROUPS
    return episodes.make_log(user, item, user * 0, user * 0 + 1, np.arange(len(user)))


@pytest.fixture(scope="module")
def batches() -> list[Episodes]:
    """Positions of half of the users in the newest part of the log."""
    return validation.draw(tastes(), np.arange(0, 700, 2), Draw(), seed=0)


def vectors(clear: float) -> Tensor:
    """Vectors that tell the groups the better, the larger `clear`."""
    group = torch.nn.functional.one_hot(torch.arange(ITEMS) % GROUPS, 16).float()
    noise = torch.randn(ITEMS, 16, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(clear * group + noise, dim=-1)


def test_a_better_backbone_is_told_from_a_worse_one(batches: list[Episodes]) -> None:
    """Clearer vectors are ahead with an interval clear of zero; the way back is behind."""
    up = text_retrieval.compare(vectors(0.5), vectors(3.0), batches, THERE)
    assert up.better
    assert up.ahead.low > 0.1
    assert up.after > up.before
    assert up.positions >= up.users > 30
    down = text_retrieval.compare(vectors(3.0), vectors(0.5), batches, THERE)
    assert not down.better
    assert down.ahead.high < 0


def test_the_same_backbone_is_not_better(batches: list[Episodes]) -> None:
    """Equal vectors are level."""
    same = text_retrieval.compare(vectors(1.0), vectors(1.0), batches, THERE)
    assert not same.better
    assert same.ahead.mean == 0


def test_gains_by_hand() -> None:
    """The gain is 1 / log2(1 + rank) among items that are there and not seen."""
    log = episodes.make_log([0, 0, 0], [0, 1, 2], [0] * 3, [1, 1, 1], [0, 1, 2])
    histories = episodes.group(log)
    batch = episodes.episodes(
        histories, Draw(places=9), np.array([0]), np.array([2]), np.random.default_rng(0)
    )
    angles = torch.tensor([0.0, 1.0, 2.5, 0.1, 0.2, 0.3])
    text = torch.stack([angles.cos(), angles.sin()], 1)
    gains, owners = text_retrieval.gains(text, [batch], torch.arange(6))
    unit = torch.nn.functional.normalize(text - text.mean(0), dim=-1)
    expected = []
    for place, target in ((1, 1), (2, 2)):
        said = sum(text_retrieval.KEEP ** (place - 1 - i) * unit[i] for i in range(place))
        left = [i for i in range(6) if i >= place]
        rank = sum(bool(unit[i] @ said > unit[target] @ said) for i in left) + 1
        expected.append(1 / math.log2(1 + rank))
    assert sorted(gains.tolist()) == pytest.approx(sorted(expected))
    assert owners.tolist() == [0, 0]  # the place before the first event says nothing
    fewer, _ = text_retrieval.gains(text, [batch], torch.tensor([0, 1, 2]))
    assert fewer.min() == pytest.approx(1.0)


def test_without_positions_nothing_is_better() -> None:
    """Where no position is left there is no reason to take another backbone."""
    none = text_retrieval.compare(vectors(0.5), vectors(3.0), [], THERE)
    assert (none.positions, none.better) == (0, False)
