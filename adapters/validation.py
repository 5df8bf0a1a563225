"""Where the outer loop is checked: later events of users it does not learn from.

Positions of users from the whole period of training favour weights that lean on what was popular
then, so only the newest part of the log counts. The positions are drawn once: differences between
two checks come from the weights alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from adapters import episodes
from adapters.episodes import Draw, Episodes, Histories, Log

SHARE = 0.2
"""Of the events, the newest ones: where positions are taken from."""

MOST = 1_000
"""Positions that are drawn at most: a check is to cost about as much as a step or two."""

LEAST = 200
"""Positions below which the loss says too little to stop for."""

_USERS = 256  # at once


def draw(log: Log, users: np.ndarray, how: Draw, seed: int) -> list[Episodes]:
    """Positions of `users` in the newest part of `log`, in batches; empty where there are few.

    Windows reach back as far as a usual one of training. The same seed gives the same positions.
    """
    _, theirs = episodes.split_users(log, users)
    if not len(theirs):
        return []
    histories, rng = episodes.group(theirs, repeat=how.repeat), np.random.default_rng(seed)
    chosen = _choose(histories, log.times[int(len(log) * (1 - SHARE))], rng)
    if len(chosen) < LEAST:  # and below, where windows are too short for all of them
        return []
    owners = np.split(chosen, np.flatnonzero(np.diff(histories.user[chosen])) + 1)
    parts = [owners[at : at + _USERS] for at in range(0, len(owners), _USERS)]
    batches = [_batch(histories, part, how, rng) for part in parts]
    return batches if size(batches) >= LEAST else []


def size(batches: list[Episodes]) -> int:
    """How many positions there are."""
    return sum(int((batch.targets >= 0).sum()) for batch in batches)


def _choose(histories: Histories, since: float, rng: np.random.Generator) -> np.ndarray:
    """Events [m], ascending, at which the next positive is to be predicted.

    One of every user first, then a second one, until there are enough: few positions of few
    users are noise (on ML-100K 155 of them rose while 767 and the later users fell).
    """
    late = rng.permutation(
        np.flatnonzero((histories.target[:-1] >= 0) & (histories.times >= since))
    )
    late = late[np.argsort(histories.user[late], kind="stable")]
    user = histories.user[late]
    turn = np.arange(len(user)) - np.searchsorted(user, user)
    order = np.lexsort((rng.random(len(late)), turn))
    return np.sort(late[order][:MOST])


def _batch(
    histories: Histories, chosen: list[np.ndarray], how: Draw, rng: np.random.Generator
) -> Episodes:
    """One window a user, with the chosen events as the only places."""
    last = np.array([events[-1] for events in chosen])
    first = histories.starts[histories.user[last]]
    begin = np.maximum(first, last - how.windows[1])
    everywhere = replace(how, places=how.windows[1] + 1)
    found = episodes.episodes(histories, everywhere, begin, last - begin, rng)
    wanted = np.isin(begin[:, None] + found.places.numpy(), np.concatenate(chosen))
    targets = torch.where(torch.from_numpy(wanted), found.targets, -1)
    return replace(found, targets=targets, query=torch.ones_like(found.query))
