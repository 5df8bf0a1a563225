"""The latest rows of every user, such as event inputs: appended to, and cut out at any event.

Stored newest first with zeros behind the last row, as in a record; worked on oldest first.
Letters in shape comments as in `adapters.types`, and w places of the window, f numbers a row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def append(stored: Tensor, length: Tensor, new: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of n users on one line, oldest first, and how many there are after each event.

    Of `stored` [n, w, f], newest first, the first `length` [n] count; of `new` [n, t, f] the
    `valid` ones [n, t]. Gives the line [n, L, f], padded right with anything, and ends [n, t].
    """
    places = torch.arange(stored.shape[1], 0, -1, device=stored.device)
    keep = torch.cat([places <= length[:, None], valid], dim=1)
    order = torch.argsort((~keep).int(), dim=1, stable=True)
    order = order[:, : int(keep.sum(1).max())] if len(order) else order
    line = torch.cat([stored.flip(1).to(new.dtype), new], dim=1)
    ends = length[:, None] + valid.cumsum(1)
    return line.gather(1, order[..., None].expand(-1, -1, line.shape[2])), ends


def latest(line: Tensor, ends: Tensor, size: int) -> Tensor:
    """The `size` rows before each end [n, t], newest first, zeros where none: [n, t, size, f]."""
    at = ends[..., None] - 1 - torch.arange(size, device=line.device)  # [n, t, size]
    where = at.clamp(min=0).flatten(1)[..., None].expand(-1, -1, line.shape[2])
    rows = line.gather(1, where).view(*at.shape, line.shape[2])
    return torch.where((at >= 0)[..., None], rows, 0.0)


def push(stored: Tensor, new: Tensor, valid: Tensor) -> Tensor:
    """The window with one row more: stored [n, w, f] newest first, new [n, 1, f], valid [n, 1].

    What `append` and `latest` give for one event, at a fraction of the cost; without a valid row a
    window stays as it is.
    """
    shifted = torch.cat([new, stored[:, :-1].to(new.dtype)], dim=1)
    return torch.where(valid[..., None], shifted, stored.to(new.dtype))
