"""What kinds of items there are, for figures of how well a list matches a user's taste."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream.item_content import attributes
from stream.messages import Item

FIELD = "category"
"""The field of an item that says what kind it is of."""

MOST = 64
"""Kinds that are told apart; the rarer ones count as one."""


def categories(items: Sequence[Item], rows: NDArray[np.int64], size: int) -> Tensor | None:
    """How the weight of each item is spread over its categories: [size, G], zeros = it has none.

    `rows` are the items' places. None where fewer than half of the items have a category.
    """
    named = [[a for a in attributes(i.fields) if a.startswith(f"{FIELD}=")] for i in items]
    if 2 * sum(map(bool, named)) < len(items):
        return None
    counts = Counter(name for names in named for name in names)
    place = {name: min(at, MOST - 1) for at, (name, _) in enumerate(counts.most_common())}
    spread = torch.zeros(size, min(len(place), MOST))
    for row, names in zip(rows.tolist(), named, strict=True):
        for name in names:
            spread[row, place[name]] += 1 / len(names)
    return spread
