"""Baselines are tuned on the positions they were given, and on no others."""

from __future__ import annotations

import numpy as np
import pytest

from adapters import tuned
from adapters.evaluate import Options
from adapters.experts import prior_from_log
from adapters.tuned import Choice
from tests.model import planted
from tests.model.planted import BEGIN, DAY

SIZE = 40


def chosen(test_items: int) -> dict[str, Choice]:
    """Validation on users 0 to 9, each with two items of their own; users 10 to 19 are tests."""
    settings = planted.config()
    rows = [(u, u * 2 + d % 2, d * DAY) for u in range(10) for d in range(12)]
    rows += [(u, test_items, d * DAY) for u in range(10, 20) for d in range(6, 12)]
    log = planted.log(sorted(rows, key=lambda row: row[2]))
    start = BEGIN + 6 * DAY
    columns = (log.users, log.items, log.values, log.times)
    prior = prior_from_log(settings, SIZE, *columns, start)
    options = Options(
        users=np.arange(10), mask_seen=False, linear=tuned.linear_models(log, start), horizon=1
    )
    found = tuned.choose(
        planted.model(settings),
        log,
        start,
        planted.catalogue(settings, SIZE, prior),
        prior,
        options,
        tuned.families(settings, repeats=True),
    )
    return {choice.family: choice for choice in found}


def test_every_family_has_its_best_point() -> None:
    """All baselines are there, each alone and with recency; no choice is worse than its family."""
    found = chosen(test_items=30)
    names = ("mean of the support", "item-kNN", "EASE", "repeat")
    assert set(found) == {"popularity", "recency popularity"} | {
        name + more for name in names for more in ("", " + recency")
    }
    assert found["repeat"].ndcg > found["popularity"].ndcg


def test_repeats_are_left_out_where_nothing_is_taken_twice() -> None:
    """Films: no family repeats a user's own items."""
    names = [family.name for family in tuned.families(planted.config(), repeats=False)]
    assert not [name for name in names if "repeat" in name]


def test_what_test_users_like_changes_their_counters_alone() -> None:
    """Validation figures are of validation users: what the others like next is not relevant."""
    ours, theirs = chosen(test_items=30), chosen(test_items=31)
    for family in ("EASE", "item-kNN", "repeat", "mean of the support"):
        assert ours[family].ndcg == pytest.approx(theirs[family].ndcg, abs=1e-9)
