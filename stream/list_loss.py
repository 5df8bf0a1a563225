"""What lists lose when the item vectors of a model come from another encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapters import evaluate, report
from adapters.evaluate import Options
from adapters.report import Figure
from export.bundle import Bundle
from export.encoder import OnnxEncoder
from stream import datasets, measuring
from stream.catalogue import CatalogueTable, dense_field
from stream.columns import Columns
from stream.config import Settings
from stream.item_encoder import ItemEncoder
from stream.messages import Item

POSITIONS = 4_000
"""Lists that are compared at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """nDCG@10 of a model's lists: one figure a position, and whose list it is."""

    users: NDArray[np.int64]  # [m]
    ndcg: NDArray[np.float64]  # [m]

    def against(self, other: Judged) -> Figure:
        """These lists over the other's, minus 1: mean and 95% interval, paired by user."""
        return report.compare(self.users, self.ndcg, other.ndcg)


def judge(
    bundle: Bundle,
    encoder: OnnxEncoder,
    columns: Columns,
    items: Sequence[Item],
    settings: Settings,
    start: float | None,
) -> Judged:
    """The adapted lists of `bundle` on events from `start` on, as `innerloop evaluate` makes them.

    Positions do not depend on the model, so that two calls may be compared. Raises `DataError`.
    """
    reader = ItemEncoder(encoder, None, dense_field(bundle.items))
    table = CatalogueTable(bundle.meta, bundle.items, reader)
    table.upsert(items)
    log = datasets.to_log(columns, table.ids, settings.state)
    begin = measuring.first_time(bundle, log, start)
    prior, catalogue = measuring.known_at(bundle, log, begin, table.catalogue())
    options = Options(
        variants=("adapted",), mask_seen=settings.ranking.exclude_seen, most=POSITIONS
    )
    measuring.check_any(log, begin, options)
    found = evaluate.positions(bundle.meta, log, begin, catalogue, prior, options, None)
    return Judged(users=found.users, ndcg=found.figures("adapted", 10)[:, 0])
