"""The steps of the outer loop: warm-up and cosine, averaged weights, early stopping, resuming.

What is minimised comes in as two functions, so that this module knows nothing of episodes. A run
between two steps is a `Snapshot`, from which it goes on as if nothing had been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adapters import adamw
from adapters.team import ALONE, Team
from adapters.types import Meta

if TYPE_CHECKING:
    from adapters.meta_train import Recipe

Loss = Callable[[Meta, torch.Generator, np.random.Generator], tuple[Tensor, Tensor]]
"""L_few and L_meta of the next random batch."""

Check = Callable[[Meta], float]
"""The loss on positions that nothing was trained on: the same ones in every call."""


class Task(NamedTuple):
    """What is trained, and by which loss."""

    start: Meta
    frozen: tuple[str, ...]  # tensors that stay as they are
    scales: Mapping[str, float]  # of tensors with a learning rate of their own and without decay
    loss: Loss
    check: Check | None
    memory: Mapping[str, Tensor] = {}  # what the loss changes in place, kept in snapshots


class Progress(NamedTuple):
    """What a progress bar and curves show."""

    step: int
    fraction: float  # of the run, 0 to 1
    losses: dict[str, float]  # meta, few, total of the last batch
    seconds_left: float  # at most: early stopping may end the run before
    rate: float = 0.0  # learning rate of the step
    validation: float | None = None  # where the step ended with a check


LOST = 20
"""Steps in a row without finite gradients that end a run."""


class SnapshotError(ValueError):
    """The snapshot belongs to another model."""


class DivergedError(ValueError):
    """Losses have become infinite or not a number, and no step mends that."""


class Snapshot(NamedTuple):
    """A run between two steps; the tensors are the run's own and change with its next step."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]  # plain JSON


Moment = Literal["step", "better", "end"]
"""After what a snapshot is offered: any step, a check that was the best so far, the last step."""

Keep = Callable[[Moment, Callable[[], Snapshot]], None]
"""Told after every step, and once at the end, how to get a snapshot."""


@dataclass(frozen=True, slots=True)
class Clock:
    """How far a run is: by steps, by wall time, or by what comes to its end first."""

    steps: int | None
    budget_s: float | None
    started: float = field(default_factory=time.monotonic)  # earlier by what was spent before

    def spent(self) -> float:
        """Seconds since the start, those before an interruption included."""
        return time.monotonic() - self.started

    def fraction(self, step: int) -> float:
        """The share of the run that is done, 0 to 1 and a little more."""
        by_steps = 0.0 if self.steps is None else step / self.steps
        by_time = 0.0 if self.budget_s is None else self.spent() / self.budget_s
        return max(by_steps, by_time)

    def seconds_left(self, fraction: float) -> float:
        """What the run still takes unless it stops early."""
        left = self.spent() * (1 - fraction) / fraction if fraction > 0 else math.inf
        within = math.inf if self.budget_s is None else self.budget_s - self.spent()
        return max(min(left, within), 0.0)


@dataclass(slots=True)
class _Facts:
    """Numbers that change from step to step."""

    step: int = 0
    spent_s: float = 0.0
    checking_s: float = 0.0
    best_step: int = 0  # of the best check, 0 = none yet
    best_loss: float | None = None
    checks: int = 0
    waited: int = 0  # checks since the best one
    lost: int = 0  # steps that were not taken: their gradients were not finite
    lost_in_a_row: int = 0
    smooth: dict[str, float] = field(default_factory=dict)  # losses, averaged over steps


@dataclass(frozen=True, slots=True)
class _Run:
    """A run; its tensors, its generators and its facts change in place."""

    model: Meta  # tensors that are trained are leaves
    leaves: dict[str, Tensor]
    mean: dict[str, Tensor]  # running mean of the weights
    best: dict[str, Tensor]  # weights at the best check
    groups: list[adamw.Group]
    memory: Mapping[str, Tensor]  # the loss's own
    generator: torch.Generator
    rng: np.random.Generator
    facts: _Facts


def run(
    task: Task,
    recipe: Recipe,
    clock: Clock,
    generator: torch.Generator,
    rng: np.random.Generator,
    *,
    progress: Callable[[Progress], None] | None = None,
    keep: Keep | None = None,
    resume: Snapshot | None = None,
    team: Team = ALONE,
) -> tuple[Meta, dict[str, float]]:
    """The trained model and the figures of the run.

    The model is that of the best check; without checks it is the last one. Processes of a `team`
    take the same steps; the loss is that of each one's share. A step whose gradients are not
    finite changes nothing. Raises `SnapshotError` where `resume` belongs to another model,
    `DivergedError` after `LOST` such steps in a row.
    """
    state = _begin(task, recipe, generator, rng)
    if resume is not None:
        _restore(state, resume)
        clock = replace(clock, started=clock.started - state.facts.spent_s)
    facts, fraction = state.facts, team.agreed(clock.fraction(state.facts.step))
    while fraction < 1 and not stopped(facts, recipe):
        rate = recipe.learning_rate * schedule(fraction, recipe.warm_up)
        losses = _step(state, task.loss, recipe, rate, team)
        fraction = team.agreed(min(clock.fraction(facts.step), 1.0))
        due = facts.step % recipe.check_every == 0 or fraction == 1
        found = _look(state, task.check) if due else None
        facts.spent_s = clock.spent()
        if progress is not None:
            left = clock.seconds_left(fraction)
            progress(Progress(facts.step, fraction, losses, left, rate, found))
        if keep is not None:
            better = found is not None and facts.best_step == facts.step
            keep("better" if better else "step", lambda: _snapshot(state))
    if keep is not None:
        keep("end", lambda: _snapshot(state))
    return _result(state), _figures(state, recipe)


def schedule(fraction: float, warm_up: float) -> float:
    """Learning rate relative to its peak: a straight rise, then a cosine down to nothing."""
    return min(1.0, (fraction + 1e-3) / warm_up) * 0.5 * (1 + math.cos(math.pi * fraction))


def stopped(facts: _Facts, recipe: Recipe) -> bool:
    """Whether `recipe.patience` checks have brought nothing better."""
    return recipe.patience is not None and facts.waited >= recipe.patience


# -- a step -------------------------------------------------------------------------------------


def _step(state: _Run, loss: Loss, recipe: Recipe, rate: float, team: Team) -> dict[str, float]:
    few, query = loss(state.model, state.generator, state.rng)
    total = query + recipe.few_weight * few
    leaves = list(state.leaves.values())
    for leaf in leaves:
        leaf.grad = None
    total.backward()  # type: ignore[no-untyped-call]
    few, query, total = team.average(leaves, (few, query, total))
    norm = torch.nn.utils.clip_grad_norm_(leaves, recipe.clip)
    facts = state.facts
    facts.step += 1
    now = {"meta": query.item(), "few": few.item(), "total": total.item()}
    if not _finite(norm, facts):
        return now
    adamw.descend(state.groups, rate)
    _average(list(state.mean.values()), leaves, recipe.averaging, facts.step)
    old, share = facts.smooth, max(0.02, 1 / facts.step)
    facts.smooth = {k: old.get(k, 0.0) + share * (now[k] - old.get(k, 0.0)) for k in now}
    return now


def _finite(norm: Tensor, facts: _Facts) -> bool:
    """Whether the step can be taken. Raises `DivergedError` where none could for too long."""
    if math.isfinite(norm.item()):
        facts.lost_in_a_row = 0
        return True
    facts.lost, facts.lost_in_a_row = facts.lost + 1, facts.lost_in_a_row + 1
    if facts.lost_in_a_row == LOST:
        raise DivergedError(f"the gradients of {LOST} steps in a row are not finite")
    return False


@torch.no_grad()
def _average(mean: list[Tensor], leaves: list[Tensor], decay: float, step: int) -> None:
    """The mean of all weights so far, the older the less; no start at zero has to be corrected.

    A young mean reaches back over a quarter of the run and so leaves the first steps behind
    (polynomial decay: Shamir and Zhang, 2013), an old one over 1 / (1 - decay) steps.
    """
    share = max(1 - decay, 4 / (step + 3)) if decay else 1.0
    torch._foreach_lerp_(mean, leaves, share)


@torch.no_grad()
def _look(state: _Run, check: Check | None) -> float | None:
    """The loss of the averaged weights on validation; the best weights are kept."""
    if check is None:
        return None
    began, facts = time.monotonic(), state.facts
    found = check(_with(state.model, state.mean))
    facts.checks, facts.waited = facts.checks + 1, facts.waited + 1
    if found < (math.inf if facts.best_loss is None else facts.best_loss):
        facts.best_loss, facts.best_step, facts.waited = found, facts.step, 0
        torch._foreach_copy_(list(state.best.values()), list(state.mean.values()))
    facts.checking_s += time.monotonic() - began
    return found


# -- begin and end ------------------------------------------------------------------------------


def _begin(
    task: Task, recipe: Recipe, generator: torch.Generator, rng: np.random.Generator
) -> _Run:
    leaves = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        for name, tensor in task.start.tensors.items()
        if name not in task.frozen
    }
    scales = task.scales
    usual = [leaf for name, leaf in leaves.items() if name not in scales]
    own = [(leaves[name], scale) for name, scale in scales.items() if name in leaves]
    return _Run(
        model=_with(task.start, leaves),
        leaves=leaves,
        mean={name: leaf.detach().clone() for name, leaf in leaves.items()},
        best={name: leaf.detach().clone() for name, leaf in leaves.items()},
        groups=[
            adamw.group(usual, 1.0, recipe.weight_decay),
            *(adamw.group([leaf], scale, 0.0) for leaf, scale in own),
        ],
        memory=task.memory,
        generator=generator,
        rng=rng,
        facts=_Facts(),
    )


def _with(model: Meta, tensors: Mapping[str, Tensor]) -> Meta:
    return replace(model, tensors={**model.tensors, **tensors})


def _result(state: _Run) -> Meta:
    """The weights of the best check, detached; the averaged ones where nothing was checked."""
    chosen = state.best if state.facts.best_loss is not None else state.mean
    return _with(state.model, chosen)


def _figures(state: _Run, recipe: Recipe) -> dict[str, float]:
    facts = state.facts
    figures = {
        "steps": float(facts.step),
        "seconds": facts.spent_s,
        "steps_lost": float(facts.lost),
        **{f"loss_{name}": value for name, value in facts.smooth.items()},
    }
    if facts.best_loss is None:
        return figures
    return figures | {
        "validation_loss": facts.best_loss,
        "best_step": float(facts.best_step),
        "checks": float(facts.checks),
        "validation_seconds": facts.checking_s,
        "stopped_early": float(stopped(facts, recipe)),
    }


# -- snapshots ----------------------------------------------------------------------------------


def _memory(state: _Run) -> dict[str, Tensor]:
    """Every tensor that a step changes, by name."""
    names = {id(leaf): name for name, leaf in state.leaves.items()}
    found = {f"weight/{name}": leaf.detach() for name, leaf in state.leaves.items()}
    found |= {f"mean/{name}": tensor for name, tensor in state.mean.items()}
    found |= {f"best/{name}": tensor for name, tensor in state.best.items()}
    found |= {f"memory/{name}": tensor for name, tensor in state.memory.items()}
    for group in state.groups:
        for place, leaf in enumerate(group.leaves):
            name = names[id(leaf)]
            found[f"gradient/{name}"] = group.means[place]
            found[f"square/{name}"] = group.squares[place]
            found[f"count/{name}"] = group.counts[place]
    return found


def _snapshot(state: _Run) -> Snapshot:
    tensors = {**_memory(state), "generator": state.generator.get_state()}
    return Snapshot(tensors, {**asdict(state.facts), "rng": state.rng.bit_generator.state})


@torch.no_grad()
def _restore(state: _Run, old: Snapshot) -> None:
    """Go back to `old`. Raises `SnapshotError` where it belongs to another model."""
    memory = _memory(state)
    shapes = {name: tensor.shape for name, tensor in memory.items()}
    if shapes != {name: old.tensors[name].shape for name in old.tensors if name != "generator"}:
        raise SnapshotError("the snapshot belongs to another model")
    for name, tensor in memory.items():
        tensor.copy_(old.tensors[name])
    state.generator.set_state(old.tensors["generator"])
    facts = dict(old.facts)
    state.rng.bit_generator.state = facts.pop("rng")
    for name, value in facts.items():
        setattr(state.facts, name, value)
