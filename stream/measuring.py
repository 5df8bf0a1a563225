"""A bundle against a log: predict, then learn, over events the model has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters import baselines, evaluate
from adapters.episodes import Log
from adapters.evaluate import CUTOFFS, REBUILT, STANDARD, Delays, Options
from adapters.experts import Prior, prior_from_log
from adapters.positions import Sequences, relevant
from adapters.report import Report
from adapters.signals import Ints, bucket_start
from adapters.types import Catalogue, Meta
from export.bundle import Bundle
from stream import bundles, config, datasets
from stream.catalogue import CatalogueTable, dense_field
from stream.categories import categories
from stream.columns import Columns
from stream.errors import DataError
from stream.files import OnBad
from stream.hash_index import item_hashes
from stream.item_encoder import ItemEncoder
from stream.messages import Deletion, Item
from stream.murmur2 import partitions_of
from stream.progress import Advance, Reporter
from stream.vector_file import FileVectors

POSITIONS = 1_500
"""Lists that training judges at most: measuring is not to take longer than training."""

VARIANTS = (
    "adapted",
    "steps off",
    "popularity",
    "recency popularity",
    "item-kNN",
    "item-kNN + recency",
)
"""The rows of training's table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What to measure a bundle on."""

    events: Sequence[str]
    items: Sequence[str]
    settings: config.Settings
    start: float | None = None  # unix seconds; None = after what the model was trained on
    on_bad: OnBad | None = None
    positions: int | None = None  # lists that are judged at most; None = all
    horizon: int = 10  # the next positives that are relevant
    label_delay: float = 0.0  # seconds until an event is known
    partitions: int = 1
    signal_delay: float = 0.0  # seconds until other partitions know
    rebuilt: bool = False  # also adapters rebuilt from the support set
    diversities: Sequence[float] | None = None  # also lists re-ranked so; None = as served

    def protocol(self) -> dict[str, Any]:
        """What the figures depend on beside model and data, in plain JSON types."""
        return {
            "from": self.start,
            "positions": self.positions,
            "horizon": self.horizon,
            "repeats": self.settings.ranking.repeats,
            "label_delay": self.label_delay,
            "partitions": self.partitions,
            "signal_delay": self.signal_delay,
        }


def measure(bundle: Bundle, request: Measure, reporter: Reporter) -> Report:
    """The report of `bundle` on the events from `start` on; earlier ones are known history.

    Raises `DataError` for files that cannot be read and logs without anything to measure.
    """
    messages = datasets.messages_for([*request.events, *request.items], request.settings.messages)
    messages = as_trained(messages, bundle)
    with reporter.phase("read events and items"):
        items = datasets.read_items(request.items, messages, request.on_bad)
        columns = datasets.read_events(request.events, messages, request.on_bad)
    with reporter.phase("encode items"):
        table = catalogue_of(bundle, items, request.settings.model)
    log = datasets.to_log(columns, table.ids, request.settings.state)
    start = first_time(bundle, log, request.start)
    _warn(bundle, start, reporter)
    prior, catalogue = known_at(bundle, log, start - request.label_delay, table.catalogue())
    rows = table.rows_of(item_hashes(item.item for item in items))
    asked = replace(_asked(request, columns), groups=categories(items, rows, table.size))
    with reporter.phase("predict, then learn") as advance:
        return report(bundle.meta, log, start, catalogue, prior, asked, advance)


def as_trained(messages: config.Messages, bundle: Bundle) -> config.Messages:
    """The same settings with the actions, and what each is worth, of the model's training."""
    known = {n: config.Action.model_validate(r) for n, r in bundle.manifest.actions.items()}
    return messages.model_copy(update={"actions": known})


def catalogue_of(
    bundle: Bundle, items: Sequence[Item | Deletion], model: config.Model
) -> CatalogueTable:
    """The catalogue of these messages as a worker with this bundle has it.

    What the bundle does not know is encoded, or taken from the cache. Raises `BundleError`.
    """
    encoder = bundles.encoder(bundle, device=model.device, threads=model.threads)
    cache = FileVectors(bundle.encoder.sha, bundle.encoder.dim)
    reader = ItemEncoder(encoder, cache, dense_field(bundle.items))
    table = CatalogueTable(bundle.meta, bundle.items, reader)
    table.upsert(items)
    cache.save()
    return table


def _asked(request: Measure, columns: Columns) -> Options:
    """How the lists are judged, by what was asked for."""
    ranking, repeats = request.settings.ranking, request.settings.ranking.repeats
    served = (ranking.diversity,) if ranking.diversity > 0 else ()
    return Options(
        k=max(CUTOFFS),
        horizon=request.horizon,
        mask_seen=not repeats,
        variants=(*STANDARD, *["repeat"] * repeats, *[REBUILT] * request.rebuilt),
        baselines={**baselines.BASELINES, "repeat": baselines.repeat},
        diversities=served if request.diversities is None else tuple(request.diversities),
        most=request.positions,
        delays=Delays(request.label_delay, _partitions(request, columns), request.signal_delay),
    )


def _partitions(request: Measure, columns: Columns) -> Ints | None:
    """The partition of each user, the one that the topic of events has for the user."""
    if request.partitions <= 1:
        return None
    keys = [user.encode() for user in columns.user_ids]
    return partitions_of(keys, request.partitions, request.settings.kafka.partitioner)


def options(settings: config.Settings, users: np.ndarray | None) -> Options:
    """How training judges lists: of `users` alone, seen items masked as when served."""
    return Options(
        variants=VARIANTS, users=users, most=POSITIONS, mask_seen=settings.ranking.exclude_seen
    )


def report(
    meta: Meta,
    log: Log,
    start: float,
    catalogue: Catalogue,
    prior: Prior | None,
    options: Options,
    advance: Advance,
) -> Report:
    """The report on positions at `start` or later.

    Raises `DataError` when there is no such position.
    """
    check_any(log, start, options)
    return evaluate.progressive(
        meta, log, start, catalogue, prior, options, lambda share: advance(share, "")
    )


def verdict(found: Report) -> str:
    """One line: nDCG@10 of the model against popularity, with the interval of the difference."""
    own = found.row("adapted")
    lines = [f"nDCG@10 {own.ndcg.mean:.4f} on {own.positions:,} lists of {own.users:,} users"]
    for name in ("popularity", "recency popularity", "steps off"):
        ahead = found.row(name).ahead
        sure = "ahead of" if ahead.low > 0 else "behind" if ahead.high < 0 else "level with"
        lines.append(f"{sure} {name} by {ahead.mean:+.4f} ({ahead.low:+.4f} to {ahead.high:+.4f})")
    return "; ".join(lines)


def beats_popularity(found: Report) -> bool:
    """Whether the interval of the difference to popularity lies above zero."""
    return found.row("popularity").ahead.low > 0


def check_any(log: Log, start: float, options: Options) -> None:
    """Raise `DataError` where no position at `start` or later can be judged."""
    events = np.flatnonzero(log.times >= start)
    if options.users is not None:
        events = events[np.isin(log.users[events], options.users)]
    wanted = relevant(Sequences.of(log), events, options.moment, options.horizon, options.mask_seen)
    if not (wanted >= 0).any():
        raise DataError(
            "no user has a later positive event: there is nothing to measure",
            remedy="Bring a longer log, or begin earlier with --from.",
        )


def first_time(bundle: Bundle, log: Log, asked: float | None) -> float:
    """`asked`, or what comes after training; the training's own test part if that is all."""
    if asked is not None:
        return asked
    if log.times[-1] > bundle.manifest.window.last:
        return float(np.nextafter(bundle.manifest.window.last, np.inf))
    cut = bundle.manifest.cut("test")
    if cut is None:
        raise DataError(
            "the model was trained on all of these events",
            remedy="Bring later events, or say --from.",
        )
    return cut


def _warn(bundle: Bundle, start: float, reporter: Reporter) -> None:
    """Say so where lists would be judged on events that the model learned from."""
    last, cut = bundle.manifest.window.last, bundle.manifest.cut("test")
    if start < min(last if cut is None else cut, last):
        reporter.say(
            "warning: the model learned from events after --from; where these are of the same "
            "users, the figures are too good"
        )


def known_at(
    bundle: Bundle, log: Log, start: float, catalogue: Catalogue
) -> tuple[Prior, Catalogue]:
    """What was known at `start`: the bundle's prior where all its events are earlier.

    Otherwise the log's own of the events before, up to the last closed bucket: co-visitation, and
    counters too unless the bundle carries earlier ones on. A log that holds nothing from before
    leaves the bundle's.
    """
    own, last, model = bundle.items.prior, bundle.manifest.window.last, bundle.meta.config
    if last < max(start, log.times[0]):
        return own, catalogue
    columns = (log.users, log.items, log.values, log.times)
    begin = float(bucket_start(np.array([start]), model.bucket)[0])
    fresh = prior_from_log(model, len(catalogue.alive), *columns, begin)
    return own if own.time <= start else fresh, replace(
        catalogue,
        prior_items=torch.from_numpy(fresh.neighbour_items),
        prior_weights=torch.from_numpy(fresh.neighbour_weights),
        returns=_returns(fresh, catalogue),
    )


def _returns(prior: Prior, catalogue: Catalogue) -> Tensor:
    """Those of a prior for the catalogue's rows [N, 2]."""
    return catalogue.returns if prior.returns is None else torch.from_numpy(prior.returns)
