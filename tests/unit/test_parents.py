"""What a model takes over from the one before: counters that go on, item by item."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from adapters.episodes import Log
from adapters.experts import Prior, prior_from_log, snapshot
from adapters.signals import Signals, bucket_start, observe
from stream import bundles, parents
from stream.config import Settings
from stream.errors import BundleError, DataError
from stream.parents import Parent
from tests.integration.world import save_bundle
from tests.model.planted import DAY, config, random_log

ITEMS = 30
MODEL = config()


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Parent:
    """A small bundle."""
    folder = tmp_path_factory.mktemp("parent")
    save_bundle(folder, Settings())
    address = str(folder / "bundle")
    return Parent(bundle=bundles.load(address), address=address)


def over(parent: Parent, ids: tuple[str, ...], prior: Prior) -> Parent:
    """The parent with other items and counters."""
    items = replace(parent.bundle.items, ids=ids, prior=prior)
    return replace(parent, bundle=replace(parent.bundle, items=items))


def trained(parent: Parent, cuts: dict[str, Any]) -> Parent:
    """The parent with these cuts of its log in the manifest."""
    manifest = msgspec.structs.replace(parent.bundle.manifest, metrics={"cuts": cuts})
    return replace(parent, bundle=replace(parent.bundle, manifest=manifest))


def prior(log: Log, size: int, until: float) -> Prior:
    """The counters that a training on the whole log would have."""
    return prior_from_log(MODEL, size, log.users, log.items, log.values, log.times, until)


def test_nothing_counts_twice_after_a_swap(parent: Parent) -> None:
    """Carried counters and what workers counted since are together every event once."""
    log = random_log(users=40, items=ITEMS, events=900, days=6.0)
    began, now = (float(t) for t in bucket_start(log.times[0] + np.array([3, 6]) * DAY, 3_600.0))
    known = log.select(log.items < 20)  # the parent did not have the others yet
    names = tuple(f"i{row}" for row in range(20))
    old = over(parent, names, prior(known, 20, began))

    order = np.random.default_rng(1).permutation(ITEMS)  # rows of the new catalogue
    place = np.argsort(order)
    later = log.select(log.times >= began)
    streamed = Signals(MODEL, ITEMS)
    nobody = np.full((len(later), 8), -1)
    rows = place[later.items]
    streamed.apply(observe(streamed, rows, later.values, later.times, nobody))

    own = prior(replace(log, items=place[log.items]), ITEMS, now)
    carried = parents.carried(old, [f"i{row}" for row in order], own)
    assert carried.time == began
    found = snapshot([streamed], carried, now).popularity.numpy()
    new = place[20:]
    since = prior(replace(later, items=rows), ITEMS, now).counts
    np.testing.assert_allclose(found[place[:20]], own.counts[place[:20]], rtol=1e-4)
    np.testing.assert_allclose(found[new], since[new], rtol=1e-4)
    np.testing.assert_array_equal(carried.neighbour_items, own.neighbour_items)
    assert snapshot([streamed], own, now).popularity.sum() > 1.2 * found.sum()


def test_other_settings_of_signals_are_refused(parent: Parent) -> None:
    """Counters of other half-lives or buckets cannot go on; the setting is named."""
    fitting = parent.bundle.meta.config
    parents.require_fit(parent, fitting)
    with pytest.raises(
        BundleError, match=r"signals have bucket 60.0, those that are counted 3600.0"
    ):
        parents.require_fit(parent, replace(fitting, bucket=60.0))
    with pytest.raises(BundleError, match="half_lives"):
        parents.require_fit(parent, replace(fitting, half_lives=(1.0,)))


def test_a_parent_that_knows_too_much_is_refused(parent: Parent) -> None:
    """Its encoder must not have met what the weights of this training are fitted to."""
    parents.refuse_leakage(trained(parent, {"fit": 500.0}), 500.0)
    with pytest.raises(DataError, match=r"has learned from events up to 501.*--start base"):
        parents.refuse_leakage(trained(parent, {"fit": 501.0}), 500.0)
    last = parent.bundle.manifest.window.last
    with pytest.raises(DataError, match="has learned from"):
        parents.refuse_leakage(trained(parent, {}), last - 1)


def test_it_is_known_whether_a_parent_met_users_held_out(parent: Parent) -> None:
    """Trainings from Kafka hold out the same users; one from files held out others."""
    assert not parents.met_held_out(trained(parent, {"held_out_by": "hash"}))
    assert parents.met_held_out(trained(parent, {"held_out_by": "seed"}))
    assert parents.met_held_out(trained(parent, {}))
