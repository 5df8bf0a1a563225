"""Item vectors that move with their first users."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from adapters.episodes import make_log
from adapters.evaluate import Moments
from benchmarks.learning.following import FIXED, Window, moved, table

NEW, OLD, QUIET = 0, 1, 2


def test_a_new_item_moves_to_what_its_users_took_before() -> None:
    """The more of them, the further; one that training knew moves less, the others stay."""
    vectors = functional.normalize(torch.eye(6), dim=1) * 2.0
    before = [(user, 5, 10.0 + user) for user in range(16)]
    early = [(user, OLD, 40.0) for user in range(16, 24)]
    late = [(user, NEW if user < 8 else OLD, 100.0 + user) for user in range(16)]
    users, items, times = zip(*before, *early, *late, strict=True)
    ones = [1] * len(users)
    log = make_log(users, items, ones, ones, times)
    found = moved(vectors, log, 50.0, 4.0)
    towards = functional.cosine_similarity(found, vectors[5][None], dim=1)
    assert towards[NEW] > towards[OLD] > 0.05
    torch.testing.assert_close(found[[QUIET, 3, 4, 5]], vectors[[QUIET, 3, 4, 5]])
    torch.testing.assert_close(found.norm(dim=1), vectors.norm(dim=1))
    few = moved(vectors, log, 50.0, 64.0)
    assert towards[NEW] > functional.cosine_similarity(few, vectors[5][None], dim=1)[NEW]


def test_the_table_tells_leads_and_leaves_out_what_nobody_met() -> None:
    """A set whose items were all met in training has nothing to say of new ones."""
    users = np.arange(40)
    none, zeros = np.zeros(40, bool), np.zeros(40, int)

    def lists(place: int) -> Moments:
        rows = np.full((40, 10), 9)
        rows[:, place] = 1
        relevant = np.ones((40, 1), int)
        return Moments(users, users, zeros, none, none, none, {"adapted": rows}, relevant)

    window = Window(none, {FIXED: lists(5), "better": lists(0)})
    better = table([[window, window], [window, window]]).splitlines()[3]
    assert better == "| better | 1.0000 | +180.7% (+180.7% to +180.7%) |  |  |"
