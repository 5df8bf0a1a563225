"""The steps of the outer loop: its rate, its mean, when it stops, and how it goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters import outer_loop
from adapters.meta_train import Recipe
from adapters.outer_loop import Clock, DivergedError, Progress, Snapshot, SnapshotError, Task
from adapters.types import Meta, ModelConfig

RECIPE = Recipe(learning_rate=0.05, few_weight=0.0, averaging=0.0, check_every=2, patience=3)


def noisy(
    model: Meta, generator: torch.Generator, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Three weights are pulled to 1, to 2 and to where chance has it."""
    aim = torch.tensor([1.0, 2.0, float(rng.normal())]) + torch.randn(3, generator=generator)
    return torch.zeros(()), (model["w"] - aim).square().sum() + model["own"].square().sum()


def task(check: Callable[[Meta], float] | None = None) -> Task:
    """Two tensors that are trained and one that is not."""
    start = {"w": torch.zeros(3), "own": torch.ones(2), "still": torch.ones(1)}
    return Task(Meta(ModelConfig(), start), ("still",), {"own": 2.0}, noisy, check)


def run(
    steps: int,
    recipe: Recipe = RECIPE,
    check: Callable[[Meta], float] | None = None,
    resume: Snapshot | None = None,
) -> tuple[Meta, dict[str, float], list[Progress], list[Snapshot]]:
    """A run by steps: model, figures, what was shown, and a copy of every snapshot."""
    shown: list[Progress] = []
    kept: list[Snapshot] = []

    def keep(moment: outer_loop.Moment, take: Callable[[], Snapshot]) -> None:
        tensors, facts = take()
        kept.append(Snapshot({name: t.clone() for name, t in tensors.items()}, facts))

    model, figures = outer_loop.run(
        task(check),
        recipe,
        Clock(steps, None),
        torch.Generator().manual_seed(0),
        np.random.default_rng(0),
        progress=shown.append,
        keep=keep,
        resume=resume,
    )
    return model, figures, shown, kept


def scripted(losses: list[float]) -> Callable[[Meta], float]:
    """A check that finds one loss after the other."""
    coming: Iterator[float] = iter(losses)
    return lambda model: next(coming)


def test_the_rate_rises_then_falls_to_nothing() -> None:
    """The peak comes at the end of the warm-up; the last step hardly moves."""
    rates = [p.rate / RECIPE.learning_rate for p in run(200)[2]]
    peak = int(np.argmax(rates))
    assert 2 <= peak <= 12
    assert rates[0] < 0.1
    assert rates[peak] > 0.98
    assert rates[-1] < 0.01
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_it_stops_when_checks_bring_nothing_better() -> None:
    """Three checks without a better one end the run, and the best weights are the result."""
    check = scripted([5.0, 3.0, 4.0, math.nan, 3.0])
    model, figures, shown, kept = run(100, check=check)
    assert figures["steps"] == len(shown) == 10
    assert (figures["best_step"], figures["validation_loss"]) == (4, 3.0)
    assert figures["stopped_early"] == 1
    assert [p.validation for p in shown[:4]] == [None, 5.0, None, 3.0]
    assert torch.equal(model["w"], kept[3].tensors["weight/w"])
    assert not torch.equal(model["w"], kept[-1].tensors["weight/w"])


def test_without_patience_it_goes_on_to_the_end() -> None:
    """All steps are taken, and the best weights are still the result."""
    recipe = replace(RECIPE, patience=None)
    model, figures, _, kept = run(10, recipe, scripted([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert (figures["steps"], figures["stopped_early"]) == (10, 0)
    assert torch.equal(model["w"], kept[1].tensors["weight/w"])


def test_the_last_step_is_checked() -> None:
    """A run that ends between two checks has one more."""
    _, figures, shown, _ = run(5, check=scripted([3.0, 2.0, 1.0]))
    assert (figures["checks"], figures["best_step"]) == (3, 5)
    assert shown[-1].validation == 1.0


def test_averaged_weights_are_checked_and_returned() -> None:
    """They are a mean of all weights in which the older count less, over 1 / (1 - decay) steps."""
    looked: list[Tensor] = []

    def check(model: Meta) -> float:
        looked.append(model["w"].clone())
        return -float(len(looked))

    model, _, _, kept = run(60, replace(RECIPE, averaging=0.9), check)
    weights = torch.stack([s.tensors["weight/w"] for s in kept[:60]])
    assert torch.equal(kept[0].tensors["mean/w"], weights[0])
    share = 0.9 ** torch.arange(19, -1, -1)  # from step 37 on a tenth is taken of each
    expected = 0.1 * (share[:, None] * weights[40:]).sum(0) + 0.9**20 * kept[39].tensors["mean/w"]
    torch.testing.assert_close(model["w"], expected)
    assert torch.equal(model["w"], looked[-1])


def test_a_young_mean_forgets_the_start() -> None:
    """After 30 steps the first ten count less than a fiftieth, although the decay is .99."""
    kept = run(30, replace(RECIPE, averaging=0.99))[3]
    weights = torch.stack([s.tensors["weight/w"] for s in kept[:30]])
    step = torch.arange(1.0, 31.0)
    share = step * (step + 1) * (step + 2)  # what polynomial decay of the third degree comes to
    share = share / share.sum()
    torch.testing.assert_close(kept[29].tensors["mean/w"], share @ weights)
    assert share[:10].sum() < 1 / 50


@pytest.mark.parametrize("at", [1, 6, 11])
def test_a_run_goes_on_as_if_nothing_had_been(at: int) -> None:
    """From any snapshot on, steps, checks, patience and the result are those of the whole run."""
    recipe = replace(RECIPE, averaging=0.5)
    losses = [5.0, 3.0, 4.0, 2.5, 2.6, 2.7, 2.8, 1.0]
    whole, figures, shown, kept = run(40, recipe, scripted(losses))
    rest = losses[at // 2 :]
    again, after, told, _ = run(40, recipe, scripted(rest), resume=kept[at - 1])
    assert all(torch.equal(whole[name], again[name]) for name in whole.tensors)
    assert [p.losses for p in told] == [p.losses for p in shown[at:]]
    names = ("steps", "checks", "best_step", "loss_total")
    assert [figures[name] for name in names] == [after[name] for name in names]
    assert after["steps"] == 14


def test_a_run_that_has_ended_is_not_trained_further() -> None:
    """Its last snapshot gives the same model without a step."""
    whole, _, _, kept = run(8, check=scripted([4.0, 3.0, 2.0, 2.5]))
    again, figures, shown, _ = run(8, check=scripted([]), resume=kept[-1])
    assert (shown, figures["steps"]) == ([], 8)
    assert torch.equal(whole["w"], again["w"])


def test_a_snapshot_of_another_model_is_refused() -> None:
    """Tensors of another shape, or other tensors, are an error."""
    snapshot = run(2)[3][-1]
    other = Snapshot({**snapshot.tensors, "weight/w": torch.zeros(4)}, snapshot.facts)
    with pytest.raises(SnapshotError, match="another model"):
        run(4, resume=other)


def test_what_is_frozen_stays() -> None:
    """Tensors that are not trained are in the result as they were."""
    model = run(5)[0]
    assert torch.equal(model["still"], torch.ones(1))
    assert not torch.equal(model["own"], torch.ones(2))
    assert not any(tensor.requires_grad for tensor in model.tensors.values())


def test_time_left_is_an_upper_bound() -> None:
    """A run by steps and by time ends with what ends first; the time before a break counts."""
    clock = Clock(100, 50.0)
    clock = replace(clock, started=clock.started - 10)
    assert clock.fraction(0) == pytest.approx(0.2, abs=0.01)
    assert clock.fraction(50) == 0.5
    assert clock.seconds_left(0.5) == pytest.approx(10, abs=0.5)
    assert clock.seconds_left(0.1) == pytest.approx(40, abs=0.5)
    assert Clock(100, None).seconds_left(0.0) == math.inf


def failing(at: set[int]) -> outer_loop.Loss:
    """A loss whose gradients are not finite in the calls that are named, from 1 on."""
    calls = 0

    def loss(
        model: Meta, generator: torch.Generator, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        few, query = noisy(model, generator, rng)
        return few, query * (math.nan if calls in at else 1.0)

    return loss


def test_a_step_without_finite_gradients_changes_nothing() -> None:
    """Weights, mean and smoothed losses stay finite; the figures count what was lost."""
    figures, weights = [], []
    for at in (set(), {3, 4, 9}):
        model, found = outer_loop.run(
            task()._replace(loss=failing(at)),
            RECIPE,
            Clock(12, None),
            torch.Generator().manual_seed(0),
            np.random.default_rng(0),
        )
        figures.append(found)
        weights.append(model["w"])
    assert [f["steps_lost"] for f in figures] == [0, 3]
    assert [f["steps"] for f in figures] == [12, 12]
    assert math.isfinite(figures[1]["loss_total"])
    assert torch.isfinite(weights[1]).all()
    assert not torch.equal(weights[0], weights[1])


def test_a_run_whose_gradients_are_lost_ends() -> None:
    """After 20 steps in a row it says so, and no model comes out of it."""
    with pytest.raises(DivergedError, match="20 steps in a row are not finite"):
        outer_loop.run(
            task()._replace(loss=failing(set(range(5, 100)))),
            RECIPE,
            Clock(100, None),
            torch.Generator().manual_seed(0),
            np.random.default_rng(0),
        )
