"""The gate: challenger, champion and simple baselines on the newest slice of the log.

The slice begins where both models' training ends: what `train` kept for its own test is part of
it, what any weight was learned from is not. Both models are judged at the same positions, with the
same events, and see what a worker with their bundle would see: their own vectors and co-visitation,
and the counters of their prior with what came after it. Where a prior holds events of the slice it
is made anew from the log before. `adapters.gate` decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from adapters import evaluate, tuned
from adapters import gate as rule
from adapters.baselines import BASELINES, Baseline, repeat
from adapters.episodes import Log
from adapters.evaluate import Moments, Options
from adapters.positions import Sequences, relevant
from adapters.signals import Ints
from adapters.types import Catalogue
from export.bundle import Bundle
from stream import config, datasets, measuring
from stream.errors import DataError, ReleaseError
from stream.gate_data import Data
from stream.hash_index import item_hashes
from stream.progress import Reporter
from stream.tables import instant

POSITIONS = 10_000
"""Lists that are judged at most; the draw is even."""

VALIDATION = 2_000
"""Lists before the slice that choose the baselines' parameters, at most."""

_ADAPTED = "adapted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What of a log is judged."""

    data: Data
    start: float | None = None  # unix seconds, if later than what both models have learned from
    positions: int = POSITIONS  # lists at most
    validation: int = VALIDATION  # lists before the slice that the baselines are tuned on, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A model, and the log and the catalogue in its own rows."""

    role: str
    bundle: Bundle
    log: Log
    catalogue: Catalogue

    @property
    def version(self) -> str:
        """The bundle's."""
        return self.bundle.manifest.version

    @property
    def learned_until(self) -> float:
        """Unix seconds of the first event that no weight was learned from."""
        cut = self.bundle.manifest.cut("test")
        return float(np.nextafter(self.bundle.manifest.window.last, np.inf)) if cut is None else cut


def evaluated(
    challenger: Bundle,
    champion: Bundle | None,
    asked: Slice,
    settings: config.Settings,
    reporter: Reporter,
) -> dict[str, Any]:
    """The verdict on a challenger with all figures, in plain JSON types.

    Raises `ReleaseError` where a model has learned from events of the slice, `DataError` where it
    is too small to say anything.
    """
    data = asked.data
    with reporter.phase("encode items"):
        sides = contenders(challenger, champion, data, settings)
    begin = _start(sides, asked.start)
    options = Options(
        variants=(_ADAPTED,), mask_seen=settings.ranking.exclude_seen, most=asked.positions
    )
    _require_enough(sides[0].log, begin, options)
    _tell_what_is_missing(sides, reporter)
    with reporter.phase("choose the baselines") as advance:
        before = replace(options, most=asked.validation)
        rivals = _rivals(sides[0], begin, before, lambda share: advance(share, ""))
    found = [
        _lists(side, begin, options, simple, reporter)
        for side, simple in zip(sides, (rivals, {}), strict=False)
    ]
    verdict = rule.judge(_judged(found, rivals))
    return verdict.to_dict() | _about(sides, found[0], options, data)


def contenders(
    challenger: Bundle, champion: Bundle | None, data: Data, settings: config.Settings
) -> list[Contender]:
    """The challenger and, if there is one, the champion; events in the same order for both.

    An item that one of them does not know is unknown to both. Raises `DataError`.
    """
    own = measuring.catalogue_of(challenger, data.items, settings.model)
    log = datasets.to_log(data.columns, own.ids, settings.state)
    names, rows = data.columns.action_names, np.arange(own.size)
    if champion is None:
        return [_contender("challenger", challenger, log, own.catalogue(), names)]
    other = measuring.catalogue_of(champion, data.items, settings.model)
    theirs = other.rows_of(item_hashes(own.ids))
    known = np.where(theirs >= 0, rows, -1)
    return [
        _contender("challenger", challenger, in_rows(log, known), own.catalogue(), names),
        _contender("champion", champion, in_rows(log, theirs), other.catalogue(), names),
    ]


def in_rows(log: Log, rows: Ints) -> Log:
    """The same events in the same order by other rows [N] of the items, -1 = not there."""

    def moved(items: Ints) -> Ints:
        return np.asarray(np.where(items >= 0, rows[items], -1))

    shown = log.shown and replace(log.shown, items=moved(log.shown.items))
    return replace(log, items=moved(log.items), shown=shown)


def _contender(
    role: str, bundle: Bundle, log: Log, catalogue: Catalogue, names: Sequence[str]
) -> Contender:
    """With the actions of the log in the model's own places, as a worker has them."""
    own = bundle.meta.config.actions
    places = np.array([own.index(n) if n in own else len(own) for n in names], np.int64)
    return Contender(
        role=role,
        bundle=bundle,
        log=replace(log, actions=places[log.actions]),
        catalogue=catalogue,
    )


# -- the slice ----------------------------------------------------------------------------------


def _start(sides: Sequence[Contender], asked: float | None) -> float:
    """Unix seconds: where the slice begins. Raises `ReleaseError` for what a model has seen."""
    latest = max(sides, key=lambda side: side.learned_until)
    if asked is None:
        return latest.learned_until
    if asked < latest.learned_until:
        raise ReleaseError(
            f"the {latest.role} {latest.version} has learned from events up to "
            f"{when(latest.learned_until)}, after --from {when(asked)}",
            remedy="Begin the slice later, or leave out --from.",
        )
    return asked


def _require_enough(log: Log, start: float, options: Options) -> None:
    """Raise `DataError` where there are too few positions, before any time is spent on them."""
    users = _users_at(log, start, options)
    if not rule.enough(users):
        raise DataError(
            f"{len(users)} predictions of {len(np.unique(users))} users after {when(start)}, "
            "where the models' training ends, are too few to judge on",
            remedy=f"Bring later events: at least {rule.LEAST} predictions of "
            f"{rule.LEAST_USERS} users are needed.",
        )


def _users_at(log: Log, start: float, options: Options) -> Ints:
    """The users of all positions from `start` (unix seconds) on."""
    seq, events = Sequences.of(log), np.arange(int(np.searchsorted(log.times, start)), len(log))
    events = events[~seq.tied(events)]
    wanted = relevant(seq, events, options.moment, options.horizon, options.mask_seen)
    return np.asarray(log.users[events[(wanted >= 0).any(1)]])


def _tell_what_is_missing(sides: Sequence[Contender], reporter: Reporter) -> None:
    """Say so where the log begins too late for the counters, which both then lack alike."""
    counted, first = sides[0].bundle.items.prior.time, float(sides[0].log.times[0])
    if first > counted + sides[0].bundle.meta.config.bucket:
        reporter.say(
            f"note: the models' counters end at {when(counted)} and the events begin at "
            f"{when(first)}; what lies between is missing for everybody alike"
        )


def _about(
    sides: Sequence[Contender], found: Moments, options: Options, data: Data
) -> dict[str, Any]:
    """What the figures are of."""
    times = sides[0].log.times[found.events]
    return {
        "challenger": sides[0].version,
        "champion": sides[1].version if len(sides) > 1 else None,
        "slice": {
            "first": when(float(times[0])),
            "last": when(float(times[-1])),
            "horizon": options.horizon,
            "repeats": not options.mask_seen,
            **data.source,
        },
    }


def when(seconds: float) -> str:
    """Unix seconds in words."""
    return instant(round(seconds * 1_000))


# -- lists --------------------------------------------------------------------------------------


def _lists(
    side: Contender,
    start: float,
    options: Options,
    simple: Mapping[str, Baseline],
    reporter: Reporter,
) -> Moments:
    """A model's lists, and those of baselines on the same signals."""
    asked = replace(options, variants=(_ADAPTED, *simple), baselines=simple)
    log, meta = side.log, side.bundle.meta
    prior, catalogue = measuring.known_at(side.bundle, log, start, side.catalogue)
    with reporter.phase(f"judge the {side.role}") as advance, torch.inference_mode():
        return evaluate.positions(
            meta, log, start, catalogue, prior, asked, lambda share: advance(share, "")
        )


def _judged(found: Sequence[Moments], rivals: Mapping[str, Baseline]) -> rule.Judged:
    own = found[0]
    if len(found) > 1 and not np.array_equal(own.events, found[1].events):
        raise ValueError("challenger and champion were judged at different positions")
    return rule.Judged(
        users=own.users,
        shots=own.shots,
        challenger=own.figures(_ADAPTED)[:, 0],
        champion=found[1].figures(_ADAPTED)[:, 0] if len(found) > 1 else None,
        baselines={name: own.figures(name)[:, 0] for name in rivals},
    )


def _rivals(
    side: Contender, start: float, options: Options, progress: evaluate.Progress
) -> dict[str, Baseline]:
    """The simple baselines, each with the parameters that did best on lists before the slice.

    Where the log holds too little from before, with the usual ones.
    """
    before = side.log.select(side.log.times < start)
    part = min(len(before) // 5, 2 * (options.most or VALIDATION))
    begin = float(before.times[-part]) if part else start
    if not rule.enough(_users_at(before, begin, options)):
        return {**BASELINES, **({} if options.mask_seen else {"repeat": repeat})}
    meta = side.bundle.meta
    tried = tuned.families(meta.config, repeats=not options.mask_seen, linear=False)
    prior, catalogue = measuring.known_at(side.bundle, before, begin, side.catalogue)
    chosen = tuned.choose(meta, before, begin, catalogue, prior, options, tried, progress)
    return {_named(choice): choice.function for choice in chosen}


def _named(choice: tuned.Choice) -> str:
    return f"{choice.family} ({choice.point})" if choice.point else choice.family
