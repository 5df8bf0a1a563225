"""Positions on which the outer loop is checked."""

from __future__ import annotations

import numpy as np
import torch

from adapters import episodes, validation
from adapters.episodes import Draw, Episodes, Log

HELD = np.arange(0, 60, 2)
HOW = Draw(windows=(4, 20))


def log(users: int = 60, events: int = 3_000) -> Log:
    """Users who act in turn; item n at time n, so that a target tells its time."""
    rng = np.random.default_rng(0)
    zeros = np.zeros(events)
    return episodes.make_log(
        rng.integers(0, users, events), np.arange(events), zeros, zeros + 1, np.arange(events)
    )


def positions(batches: list[Episodes]) -> list[tuple[int, float]]:
    """Item that is to be predicted, and time of the place, of every position."""
    found = []
    for batch in batches:
        wanted = batch.targets >= 0
        found += zip(batch.targets[wanted].tolist(), batch.times[wanted].tolist(), strict=True)
    return found


def test_only_the_newest_events_of_held_out_users_count() -> None:
    """Every position is one of theirs in the last fifth, and all of them are queries."""
    batches = validation.draw(log(), HELD, HOW, seed=0)
    found = positions(batches)
    assert len(found) == validation.size(batches) >= validation.LEAST
    assert all(time >= 3_000 * (1 - validation.SHARE) for _, time in found)
    owners = log().users[[item for item, _ in found]]
    assert np.isin(owners, HELD).all()
    assert all(batch.query.all() for batch in batches)


def test_what_is_known_lies_before() -> None:
    """The events before a place are the user's latest, and all of them earlier."""
    (batch,) = validation.draw(log(), HELD, HOW, seed=0)
    for row, slot in (batch.targets >= 0).nonzero().tolist():
        place = int(batch.places[row, slot])
        before = batch.block.times[row, :place][batch.block.mask[row, :place]]
        user = log().users[int(batch.targets[row, slot])]
        theirs = log().times[(log().users == user) & (log().times < float(batch.times[row, slot]))]
        assert before.tolist() == theirs[len(theirs) - len(before) :].tolist()
        assert len(before) == place


def test_the_seed_decides() -> None:
    """The same seed draws the same positions, another seed others."""
    first, again, other = (validation.draw(log(), HELD, HOW, seed) for seed in (1, 1, 2))
    assert positions(first) == positions(again) != positions(other)
    assert all(torch.equal(a.places, b.places) for a, b in zip(first, again, strict=True))


def test_too_few_positions_are_none() -> None:
    """Where nobody is held out, or hardly anybody acts, there is nothing to stop for."""
    assert validation.draw(log(), np.array([], np.int64), HOW, 0) == []
    assert validation.draw(log(), np.array([1, 2]), HOW, 0) == []


def test_every_user_has_a_turn() -> None:
    """There are at most a thousand positions; nobody has a third one while some have one."""
    many = log(users=2_000, events=30_000)
    batches = validation.draw(many, np.arange(900), HOW, 0)
    each = np.bincount(many.users[[item for item, _ in positions(batches)]], minlength=900)
    late = many.users[many.times >= 30_000 * (1 - validation.SHARE)]
    several = np.bincount(late, minlength=900)[:900] > 1
    assert each.max() <= 2
    assert (each[:900][several] >= 1).all()
    assert 0.9 * validation.MOST < validation.size(batches) <= validation.MOST
    assert len(batches) > 1
