"""What kinds of items there are, for figures of how well a list matches a user's taste."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from stream.catalogue import CatalogueTable
from stream.hash_index import item_hashes
from stream.item_content import attributes
from stream.messages import Item

FIELD = "category"
"""The field of an item that says what kind it is of."""

MOST = 64
"""Kinds that are told apart; the rarer ones count as one."""


def categories(items: Sequence[Item], table: CatalogueTable) -> Tensor | None:
    """How each item's weight is spread over its categories: [N, G], zeros = it has none.

    None where fewer than half of the items have any.
    """
    named = [[a for a in attributes(i.fields) if a.startswith(f"{FIELD}=")] for i in items]
    if 2 * sum(map(bool, named)) < len(items):
        return None
    counts = Counter(name for names in named for name in names)
    place = {name: min(at, MOST - 1) for at, (name, _) in enumerate(counts.most_common())}
    rows = table.rows_of(item_hashes(item.item for item in items)).tolist()
    spread = torch.zeros(table.size, min(len(place), MOST))
    for row, names in zip(rows, named, strict=True):
        for name in names:
            spread[row, place[name]] += 1 / len(names)
    return spread
