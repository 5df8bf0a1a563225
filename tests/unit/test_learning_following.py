"""Item vectors that move with their first users."""

from __future__ import annotations

import torch
from torch.nn import functional

from adapters.episodes import make_log
from benchmarks.learning.following import moved

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
