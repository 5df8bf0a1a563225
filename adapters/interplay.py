"""What the numbers of the second look say together: a small network beside their weighted sum.

A weighted sum cannot say that being popular counts for less in a user's third event than in the
thirtieth, for an item that the user takes every week, and so on for all pairs. One layer of hidden
units reads all numbers of an item and the user's circumstances, and what it says is added to the
sum (wide and deep: Cheng et al., "Wide & Deep Learning for Recommender Systems", 2016). It is one
further part of a score in an explanation. `fit_interplay` leaves it out where it does not help.

Letters in shape comments: n users, r items, F numbers of the second look, C circumstances, H units.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from adapters.types import Meta

NAME = "interplay"
"""What the network's part of a score is called."""

LOW, HIGH = "interplay_low", "interplay_high"  # [F] range of the fit: beyond it nothing was learned
READ = "interplay_read"  # [H, F]
TOLD = "interplay_told"  # [H, C]
SAY = "interplay_say"  # [H]

TENSORS = (LOW, HIGH, READ, TOLD, SAY)
"""Names of its tensors; a model has all of them or none."""


def new_tensors(numbers: int, context: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A small random network for models that nobody trained; `numbers` is F, `context` is C."""
    units = 64
    return {
        LOW: torch.full((numbers,), -10.0),
        HIGH: torch.full((numbers,), 10.0),
        READ: torch.randn(units, numbers, generator=generator) / numbers**0.5,
        TOLD: torch.randn(units, context, generator=generator) / context**0.5,
        SAY: 0.02 * torch.randn(units, generator=generator),
    }


def present(meta: Meta) -> bool:
    """Whether this model has a network."""
    return SAY in meta.tensors


def without(meta: Meta) -> Meta:
    """The model without it."""
    return replace(meta, tensors={n: t for n, t in meta.tensors.items() if n not in TENSORS})


def keeping(meta: Meta, keep: Tensor) -> dict[str, Tensor]:
    """Its tensors that change where it reads the first numbers times `keep` [E], each 0 or 1."""
    if not present(meta):
        return {}
    rest = meta[READ].shape[1] - len(keep)
    return {READ: meta[READ] * functional.pad(keep, (0, rest), value=1.0)}


def completed(tensors: dict[str, Tensor], numbers: int, context: int) -> dict[str, Tensor]:
    """The network's tensors where it is deaf to `numbers` more at the end.

    And to what is there of `context` circumstances beyond those that it knows.
    """
    if SAY not in tensors:
        return {}
    more = max(context - tensors[TOLD].shape[1], 0)
    wider = dict.fromkeys((LOW, HIGH, READ), numbers) | {TOLD: more}
    return {name: functional.pad(tensors[name], (0, more)) for name, more in wider.items()}


def circumstances(meta: Meta, context: Tensor) -> Tensor | None:
    """What users' circumstances [n, C] add to each unit: [n, H]; None without a network."""
    return context @ meta[TOLD].T if present(meta) else None


def added(meta: Meta, values: Tensor, context: Tensor) -> Tensor:
    """What the network adds to the scores of items with numbers [n, r, F]: [n, r].

    `context` [n, C] are the users' circumstances. 0 without a network.
    """
    told = circumstances(meta, context)
    if told is None:
        return values.new_zeros(values.shape[:2])
    return part(meta, values.transpose(1, 2), told)


def part(meta: Meta, values: Tensor, told: Tensor) -> Tensor:
    """The network's part [n, r] of the scores of items with these numbers [n, F, r].

    `told` [n, H] is what `circumstances` gave.
    """
    inside = torch.clamp(values, meta[LOW][:, None], meta[HIGH][:, None])
    read = meta[READ].expand(len(values), -1, -1)
    units = torch.baddbmm(told[..., None], read, inside).relu_()
    return torch.bmm(meta[SAY].expand(len(values), 1, -1), units)[:, 0]
