"""When items were there: a list cannot hold an item before it appears, nor a model learn of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from adapters.episodes import Log
from adapters.features import Prepared
from adapters.types import UserView


def there(log: Log, created: Tensor | None, rows: int) -> tuple[Tensor, Tensor | None]:
    """Rows of the catalogue as it is when the log ends, and unix seconds [rows] of arrival.

    An item arrives when it is created (`created` [rows], nan = unknown), or earlier if somebody
    acts on it before. None stands for arrivals that all lie before the log.
    """
    if created is None or not len(log):
        return torch.arange(rows), None
    first, known = np.full(rows, np.inf), log.items >= 0
    np.minimum.at(first, log.items[known], log.times[known])
    since = created.cpu().nan_to_num(nan=-torch.inf).minimum(torch.from_numpy(first))
    if bool((since <= log.times[0]).all()):
        return torch.arange(rows), None
    return torch.nonzero(since <= log.times[-1])[:, 0], since


def hide_unborn(view: UserView, prepared: Prepared, now: float, times: Tensor) -> UserView:
    """The view in which items that appear after the requests at `times` [n] are hidden.

    What can be ranked is told by the bucket of event time, here the one that begins at `now`: an
    item of its end would be in the lists of its beginning.
    """
    created = prepared.catalogue.created
    late = torch.nonzero((created > now) & (prepared.columns[-1, : prepared.size] == 0))[:, 0]
    if not len(late):
        return view
    return replace(view, hidden=torch.where(created[late] > times[:, None], late, -1))
