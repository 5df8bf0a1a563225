"""Interests interleave and one returns after 30 events: what inner steps can do and others not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from adapters import adapter
from benchmarks.learning import interleaving
from benchmarks.learning.interleaving import CUES, GAP, ITEMS, RECIPE

STEPS = 140
"""Outer steps of both."""


def test_a_returning_interest_is_recalled_by_inner_steps() -> None:
    """What followed a cue 30 events ago is named again, for users never seen.

    The same weights without steps are at chance, and a GRU of as many dimensions and outer steps
    is far behind.
    """
    recipe = replace(RECIPE, steps=STEPS)
    own, gru = (interleaving.train(kind, 1, recipe) for kind in ("fast_weight", "gru"))
    recalled = interleaving.hit(own, own.meta)
    assert recalled > 0.5 > 10 / ITEMS
    assert interleaving.hit(own, adapter.steps_off(own.meta)) < 0.15
    assert interleaving.hit(gru, gru.meta) < recalled - 0.3


def test_the_planted_log_holds_what_it_claims() -> None:
    """The cue that returns came exactly 30 events before, with its item, and not since."""
    block, wanted = interleaving.returns(seed=5, users=50)
    cue = block.items[:, -1]
    places = (block.items == cue[:, None]).nonzero()
    before = places[places[:, 1] < block.items.shape[1] - 1]
    last = torch.zeros(50, dtype=torch.int64).index_put_((before[:, 0],), before[:, 1])
    assert bool((block.items.shape[1] - 1 - last == GAP).all())
    followers = block.items.gather(1, last[:, None] + 1)[:, 0]
    assert torch.equal(followers, wanted)
    assert bool((cue < CUES).all())
    assert len(np.unique(wanted)) > ITEMS / 2
