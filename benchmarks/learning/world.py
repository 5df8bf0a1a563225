"""One data set, read and encoded once, and what is run on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from adapters import episodes, evaluate, listing, tuned
from adapters.episodes import Log
from adapters.evaluate import Moments, Options
from adapters.meta_train import Trained
from adapters.positions import new_items
from adapters.signals import bucket_start
from adapters.tuned import Choice
from adapters.types import Meta
from benchmarks.learning.kept import CUTOFFS
from benchmarks.learning.rows import Row
from benchmarks.learning.sets import DataSet
from stream import config, datasets, recipes, training, training_loop
from stream.messages import Item
from stream.progress import Advance, Reporter
from stream.training import Cuts, Request, Text
from stream.training_text import read_text

TOWER = 200
"""Outer steps of the item tower that the mean of the support is taken in."""

VALIDATION = 4_000
"""Lists on which the baselines' parameters are chosen; no more than are judged."""

SPLIT_SEED = 0
"""Of the users held out: the same for every seed of a model, so that lists can be compared."""


@dataclass(frozen=True, slots=True)
class World:
    """A data set that is ready."""

    data: DataSet
    items: list[Item]
    text: Text
    cuts: Cuts
    actions: tuple[str, ...]
    most: int  # positions that are judged


def build(data: DataSet, most: int, reporter: Reporter) -> World:
    """Read, encode and cut. Raises `DataError` where files are missing or too small."""
    request = request_of(data, {}, SPLIT_SEED)
    messages = datasets.messages_for([data.events, data.items], request.settings.messages)
    with reporter.phase(f"{data.name}: read"):
        items = datasets.read_items([data.items], messages, None)
        columns = datasets.read_events([data.events], messages, None)
        items = _most(items, datasets.to_log(columns, [i.item for i in items]), data)
        log = data.taking_part(datasets.to_log(columns, [item.item for item in items]))
        log = log.select(log.items >= 0) if data.most_items else log
    text = read_text(request, items, reporter)
    return World(data, items, text, _cut(log, data, request), columns.action_names, most)


def run(world: World, row: Row, request: Request, trained: Trained, reporter: Reporter) -> Moments:
    """Fit the experts of one row's training, and judge it on later events of all users."""
    with training.one_thread():
        meta, _ = training.fit_weights(
            trained, world.text, world.items, world.cuts, request, reporter
        )
        options = replace(_options(world), variants=row.variants)
        found = _judge(world, meta, trained, options, reporter)
        if row.windows == 1:
            return found
        return _followed(world, trained, request, found, options, row.windows, reporter)


def simple(world: World, reporter: Reporter) -> tuple[Moments, list[Choice]]:
    """Tune the baselines on the part before the test, and judge the best of each family on it."""
    cuts = world.cuts
    trained = train(world, request_of(world.data, {"learning.steps": TOWER}, 0), reporter)
    meta = trained.meta
    with training.one_thread():
        earlier, _ = episodes.split_time(cuts.log, cuts.test)
        prior, catalogue = training.catalogue_at(
            meta, trained, world.text, world.items, earlier, cuts.fit
        )
        linear = tuned.linear_models(earlier, cuts.fit)
        asked = replace(
            _options(world), k=CUTOFFS[0], most=min(VALIDATION, world.most), linear=linear
        )
        tried = tuned.families(meta.config, world.data.repeats)
        with reporter.phase("tune the baselines") as advance:
            chosen = tuned.choose(
                meta, earlier, cuts.fit, catalogue, prior, asked, tried, _plain(advance)
            )
        options = replace(
            _options(world),
            linear=tuned.linear_models(cuts.log, cuts.test),
            variants=tuple(choice.family for choice in chosen),
            baselines={choice.family: choice.function for choice in chosen},
        )
        found = _judge(world, meta, trained, options, reporter)
    return found, chosen


def train(world: World, request: Request, reporter: Reporter) -> Trained:
    """The outer loop alone: no expert has a weight yet."""
    model = recipes.model_config(request.settings.learning, world.actions)
    job = training_loop.Job(cuts=world.cuts, rows=world.text.rows, model=model)
    return training_loop.outer_loop(job, request, reporter)


def _judge(
    world: World, meta: Meta, trained: Trained, options: Options, reporter: Reporter
) -> Moments:
    log, start = world.cuts.log, world.cuts.test
    prior, catalogue = training.catalogue_at(meta, trained, world.text, world.items, log, start)
    with reporter.phase("judge") as advance, torch.inference_mode():
        return evaluate.positions(meta, log, start, catalogue, prior, options, _plain(advance))


def _followed(
    world: World,
    trained: Trained,
    request: Request,
    found: Moments,
    options: Options,
    count: int,
    reporter: Reporter,
) -> Moments:
    """The same lists, but for those after the first of `count` windows of equally many events.

    Before each of these the experts' weights are fitted anew, on all that came between training
    and the start of the window; the bucket of time in which it starts is its own as a whole.
    """
    cuts, log = world.cuts, world.cuts.log
    first = int(np.searchsorted(log.times, cuts.test))
    edges = np.linspace(first, len(log), count + 1)[1:-1].astype(int)
    starts = [float(t) for t in bucket_start(log.times[edges], trained.meta.config.bucket)]
    times, lists = log.times[found.events], {name: v.copy() for name, v in found.lists.items()}
    for start, end in pairwise([*starts, np.inf]):
        inside = (times >= start) & (times < end)
        upto = replace(cuts, test=start)
        meta, _ = training.fit_weights(trained, world.text, world.items, upto, request, reporter)
        known, _ = episodes.split_time(log, end)
        prior, catalogue = training.catalogue_at(
            meta, trained, world.text, world.items, known, cuts.test
        )
        with reporter.phase("judge a window") as advance, torch.inference_mode():
            rows = listing.rank_all(
                meta, known, found.events[inside], catalogue, prior, options, _plain(advance)
            )
        for name, places in rows.items():
            lists[name][inside] = places
    return replace(found, lists=lists)


def _plain(advance: Advance) -> Callable[[float], None]:
    return lambda share: advance(share, "")


def news(world: World, found: Moments) -> np.ndarray:
    """Which positions [m] bool have an item as the next one that nobody met a day before."""
    return new_items(world.cuts.log, found.events, found.relevant[:, 0])


def _options(world: World) -> Options:
    return Options(k=20, most=world.most, mask_seen=not world.data.repeats)


def request_of(data: DataSet, changes: Mapping[str, object], seed: int) -> Request:
    """What `innerloop train` would be asked for, with settings changed."""
    settings = config.load(None, {"ranking.exclude_seen": not data.repeats, **changes})
    return Request(
        events=[data.events],
        items=[data.items],
        out="",
        settings=settings,
        budget_s=None,
        seed=seed,
        train_share=data.fit_share,
        test_share=data.test_share,
        test_events=2**31,
        report=False,
    )


def _most(items: list[Item], log: Log, data: DataSet) -> list[Item]:
    """The items with most events before the fit; which these are, nobody has to look ahead for."""
    if data.most_items is None:
        return items
    early = log.items[(log.items >= 0) & (log.times < (data.fit_at or np.inf))]
    counts = np.bincount(early, minlength=len(items))
    kept = np.sort(np.argsort(-counts, kind="stable")[: data.most_items])
    return [items[row] for row in kept]


def _cut(log: Log, data: DataSet, request: Request) -> Cuts:
    cuts = training.cut(log, 3_600.0, request)
    if data.fit_at is None or data.test_at is None:
        return cuts
    first, rest = episodes.split_time(log, data.fit_at)
    drawn = np.intersect1d(cuts.held_out, first.users)
    return replace(
        cuts,
        fit=float(bucket_start(np.array([data.fit_at]), 3_600.0)[0]),
        test=float(bucket_start(np.array([data.test_at]), 3_600.0)[0]),
        held_out=np.union1d(drawn, np.setdiff1d(rest.users, first.users)),
    )


def varied(
    world: World, diversities: Sequence[float], seed: int, steps: int | None, reporter: Reporter
) -> tuple[list[dict[float, Moments]], Tensor]:
    """Lists of the model with all defaults for each `ranking.diversity`, before the test begins.

    Also the texts [N, T] that lists are varied by. The lists of each half of the users held out
    are made with experts that were fitted to the other half.
    """
    request = request_of(world.data, {"learning.steps": steps}, seed)
    trained = train(world, request, reporter)
    log, _ = episodes.split_time(world.cuts.log, world.cuts.test)
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(world.cuts.held_out)
    halves = [np.sort(half) for half in np.array_split(shuffled, 2)]
    found, text = [], torch.zeros(0, 0)
    for judged, fitting in (halves, halves[::-1]):
        own = replace(world.cuts, log=log)
        with training.one_thread():
            meta, _ = training.fit_weights(
                trained, world.text, world.items, own, request, reporter, fitting
            )
            prior, catalogue = training.catalogue_at(
                meta, trained, world.text, world.items, log, own.fit
            )
            options = replace(_options(world), users=judged, variants=("adapted",))
            lists = {}
            for diversity in diversities:
                asked = replace(options, diversity=diversity)
                judging = reporter.phase(f"judge diversity {diversity:g}")
                with judging as advance, torch.inference_mode():
                    lists[diversity] = evaluate.positions(
                        meta, log, own.fit, catalogue, prior, asked, _plain(advance)
                    )
        found.append(lists)
        text = catalogue.text
    return found, text
