"""The gate on real film ratings: the same lists pass, spoiled ones are refused by cohort."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import platformdirs
import pytest
import torch

from adapters.experts import Prior
from adapters.types import Meta
from export.bundle import Bundle
from stream import bundles, datasets, gate, measuring, movietweetings, training
from stream.config import Settings
from stream.errors import DataError, ReleaseError
from stream.gate import Slice
from stream.gate_data import Data, FromFiles
from stream.progress import Reporter
from stream.training import Request
from tests import exports
from tests.unit.small_training import small_bert

SETTINGS = Settings()
UNTIL = 1_364_000_000.0
"""Unix seconds: the first weeks of the shipped ratings are enough to learn from."""


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """A model of the first ratings, with a small BERT."""
    folder = tmp_path_factory.mktemp("films")
    small_bert(folder / "bert")
    exports.share(folder / "cache")
    request = Request(
        events=["movietweetings"],
        items=["movietweetings"],
        out=str(folder / "model"),
        settings=SETTINGS,
        until=UNTIL,
        budget_s=2.0,
        backbone=folder / "bert",
        report=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platformdirs, "user_cache_path", lambda *_: folder / "cache")
        training.train(request, Reporter())
        yield bundles.load(str(folder / "model"))


def data(until: float = UNTIL + 2 * 86_400) -> Data:
    """The shipped ratings up to a time."""
    messages = datasets.messages_for(["movietweetings"], SETTINGS.messages)
    return Data(
        columns=datasets.read_events(["movietweetings"], messages, until=until),
        items=datasets.read_items(["movietweetings"], messages),
        source={"events": ["movietweetings"]},
    )


def verdict(challenger: Bundle, champion: Bundle | None, **asked: Any) -> dict[str, Any]:
    """What the gate says of them on the newest events."""
    part = Slice(data=data(), **{"positions": 1_200, "validation": 600, **asked})
    return gate.evaluated(challenger, champion, part, SETTINGS, Reporter())


def in_other_rows(bundle: Bundle) -> Bundle:
    """The same model whose items have their rows in another order."""
    items = bundle.items
    order = np.random.default_rng(0).permutation(len(items))
    place = np.argsort(order)
    near = items.prior.neighbour_items[order]
    prior = Prior(
        items.prior.time,
        items.prior.counts[order],
        np.where(near >= 0, place[near], -1),
        items.prior.neighbour_weights[order],
    )
    moved = replace(
        items,
        ids=tuple(items.ids[row] for row in order),
        content=items.content[order],
        text=items.text[order],
        attributes=items.attributes[order],
        id_rows=items.id_rows[order],
        prior=prior,
    )
    return replace(bundle, items=moved)


def spoiled(bundle: Bundle) -> Bundle:
    """The same model with every expert weight in another's place."""
    generator = torch.Generator().manual_seed(1)

    def shuffled(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not name.startswith(("expert_weight", "rerank")):
            return tensor
        return tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view_as(tensor)

    tensors = {name: shuffled(name, tensor) for name, tensor in bundle.meta.tensors.items()}
    return replace(bundle, meta=Meta(bundle.meta.config, tensors))


def test_the_same_model_is_level_with_itself_whatever_its_rows(films: Bundle) -> None:
    """Both are judged at the same positions and rank alike, but for ties that rows decide."""
    found = verdict(films, in_other_rows(films))
    assert found["cohorts"][0]["positions"] == 1_200
    assert abs(found["cohorts"][0]["change"]["mean"]) < 0.01
    assert found["cohorts"][0]["passed"]
    assert all(abs(c["change"]["mean"]) < 0.02 for c in found["cohorts"] if c["counts"])


def test_a_spoiled_model_is_refused_with_the_cohort_named(films: Bundle) -> None:
    """Shuffled weights: refused over all positions, and for the cohorts that lost most."""
    found = verdict(spoiled(films), films, positions=10_000)
    assert not found["promoted"]
    assert "over all positions" in found["reasons"][0]
    named = [c["name"] for c in found["cohorts"][1:] if not c["passed"]]
    assert named
    for name in named:
        assert any(f"at {name} shots" in reason for reason in found["reasons"])


def test_a_first_model_is_held_against_tuned_baselines(films: Bundle) -> None:
    """Without a champion the figures are the model's and the baselines', best first."""
    found = verdict(films, None, positions=1_000)
    assert found["champion"] is None
    assert found["cohorts"][0]["change"] is None
    assert found["cohorts"][0]["positions"] == 1_000
    names = [row["name"].split(" (")[0] for row in found["baselines"]]
    assert {"popularity", "recency popularity", "item-kNN + recency"} <= set(names)
    scores = [row["ndcg"] for row in found["baselines"]]
    assert scores == sorted(scores, reverse=True)
    assert found["promoted"] is (found["cohorts"][0]["challenger"] > scores[0])


def test_a_slice_that_a_model_has_seen_is_refused(films: Bundle) -> None:
    """Events that the champion learned from are no slice, even if the challenger did not."""
    early = msgspec.structs.replace(films.manifest, metrics={"cuts": {"test": 1.3633e9}})
    challenger = replace(films, manifest=early)
    with pytest.raises(ReleaseError, match=r"the champion .* has learned from events up to"):
        verdict(challenger, films, start=1.3634e9)
    with pytest.raises(ReleaseError, match=r"the challenger .* has learned"):
        verdict(films, challenger, start=1.3634e9)


def test_the_slice_begins_where_the_later_training_ends(films: Bundle) -> None:
    """The later of both ends counts, the one of a model without a test part being its window's."""
    whole = replace(films, manifest=msgspec.structs.replace(films.manifest, metrics={}))
    sides = gate.contenders(films, whole, data(), SETTINGS)
    assert sides[0].learned_until == films.manifest.metrics["cuts"]["test"]
    assert sides[1].learned_until > films.manifest.window.last > sides[0].learned_until


def test_a_slice_that_is_too_small_is_refused(films: Bundle) -> None:
    """A few hours of events after the training say how many there are and how many are needed."""
    late = UNTIL + 2 * 86_400 - 1_800
    with pytest.raises(DataError, match=r"\d+ predictions of \d+ users after .* too few"):
        verdict(films, films, start=late)


def test_an_item_that_one_model_does_not_know_is_unknown_to_both(films: Bundle) -> None:
    """It is in one bundle alone and in no message: it is evidence for nobody and hits nothing."""
    known = data()
    gone = known.columns.item_ids[known.columns.items[0]]
    without = replace(known, items=[item for item in known.items if item.item != gone])
    keep = np.array([name != gone for name in films.items.ids])
    items = replace(
        films.items,
        ids=tuple(name for name in films.items.ids if name != gone),
        content=films.items.content[keep],
        text=films.items.text[keep],
        attributes=films.items.attributes[keep],
        id_rows=films.items.id_rows[keep],
        prior=Prior(
            films.items.prior.time,
            films.items.prior.counts[keep],
            np.full_like(films.items.prior.neighbour_items[keep], -1),
            films.items.prior.neighbour_weights[keep] * 0,
        ),
    )
    sides = gate.contenders(films, replace(films, items=items), without, SETTINGS)
    assert np.array_equal(sides[0].log.items < 0, sides[1].log.items < 0)
    assert sides[0].log.items[0] == -1


def test_actions_stand_where_the_model_has_them(films: Bundle) -> None:
    """A log numbers its actions by its settings, a model by its own list; unknown ones are last."""
    config = replace(films.meta.config, actions=("rating", "click"))
    other = replace(films, meta=Meta(config, films.meta.tensors))
    sides = gate.contenders(films, other, data(), SETTINGS)
    assert set(sides[0].log.actions) == {films.meta.config.actions.index("rating")}
    assert set(sides[1].log.actions) == {0}


def test_events_of_the_slice_are_in_nobodys_prior(films: Bundle) -> None:
    """A prior that reaches into the slice is made anew from what came before it."""
    side = gate.contenders(films, None, data(), SETTINGS)[0]
    start = side.learned_until
    assert films.items.prior.time > start
    prior, catalogue = measuring.known_at(films, side.log, start, side.catalogue)
    assert prior.time <= start
    cut = side.log.select(side.log.times < start)
    alone, _ = measuring.known_at(films, cut, start, side.catalogue)
    assert np.array_equal(prior.counts, alone.counts)
    assert torch.equal(catalogue.prior_items, torch.from_numpy(alone.neighbour_items))


def test_counters_that_are_carried_on_stay(films: Bundle) -> None:
    """Counters of a parent end long before the slice: they stay, co-visitation is made anew."""
    side = gate.contenders(films, None, data(), SETTINGS)[0]
    carried = replace(films.items.prior, time=films.manifest.window.first)
    bundle = replace(films, items=replace(films.items, prior=carried))
    prior, catalogue = measuring.known_at(bundle, side.log, side.learned_until, side.catalogue)
    assert prior is carried
    assert not torch.equal(catalogue.prior_items, side.catalogue.prior_items)


def test_files_are_read_with_the_evidence_of_training(films: Bundle) -> None:
    """What an action is worth comes from the bundle, so that both models see what training saw."""
    odd = SETTINGS.model_copy(
        update={"messages": SETTINGS.messages.model_copy(update={"actions": {}})}
    )
    source = FromFiles(events=["movietweetings"], items=["movietweetings"])
    found = source.read(odd, films, Reporter())
    assert found.source == {"events": ["movietweetings"]}
    assert found.columns.values.min() == -1.0
    assert len(found.items) == len(movietweetings.items())
