"""The worker and `evaluate` on one log: the lists that are published are the lists evaluated.

Both call the same functions; what may differ is rounding. The worker rounds the adapter to fp16
after every batch, evaluation after every window, so scores differ in the third decimal, and two
items may change places where their scores are that close.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from msgspec import structs

from adapters import evaluate, experts, fit_own_weights, own_walk, ranking, repeats, rerank
from adapters.episodes import Log
from adapters.evaluate import Options
from adapters.positions import Sequences, interests_at, profiled, views
from adapters.types import Meta
from export.bundle_tensors import Items
from stream.columns import to_columns
from stream.config import Settings
from stream.datasets import to_log
from stream.message_types import Event, Field, Interaction, Ranking, User
from stream.testing_worker import NOW, MemoryWorld, item, untrained_model
from stream.user_state import Layout, user_key

THEMES = ("Haunted House Night", "Merry Wedding Party", "Starship Galaxy Wars", "Old Desert Gun")
FILMS = [
    item(f"f{i}", f"{THEMES[i % 4]} {i}", category=[THEMES[i % 4].split()[0]], at=NOW - 1e6)
    for i in range(200)
]
USERS = 14
HOURS = 9
K = 10
CLOSE = 0.005
"""Scores this close may be in either order; within a list they span about one."""


def settings(diversity: float = 0.0, *, repeats: bool = False) -> Settings:
    """Lists of K."""
    ranking = {"top_k": K, "diversity": diversity, "exclude_seen": not repeats}
    return Settings(ranking=ranking)  # type: ignore[arg-type]


def model() -> tuple[Meta, Items]:
    """Random weights of every expert, for what they depend on too, none of them zero."""
    meta, known = untrained_model(FILMS, settings())
    generator = torch.Generator().manual_seed(5)
    weight = meta["expert_weight"]
    moved = weight + 0.1 * torch.randn(weight.shape, generator=generator)
    changed = {"expert_weight": moved, experts.TOLD: moved.sum(1)}
    return replace(meta, tensors={**meta.tensors, **changed}), known


START = int(NOW // 3_600) * 3_600_000


def traffic() -> list[Event]:
    """Users who act several times an hour, like what they like, and come back to it.

    Most have a profile before they act. Before every other event a user is shown a list.
    """
    rng = np.random.default_rng(7)
    times = np.sort(rng.choice(HOURS * 3_600_000, 700, replace=False))
    users = rng.integers(0, USERS, len(times))
    liked = rng.integers(0, 50, len(times)) * 4 + users % 4
    films = np.where(rng.random(len(times)) < 0.7, liked, rng.integers(0, 200, len(times)))
    actions = rng.choice(["click", "like", "view", "skip", "dislike"], len(times))
    acts: list[Event] = [
        Interaction(
            id=f"e{n}",
            timestamp=START + int(at),
            user=f"user-{user}",
            item=f"f{film}",
            type=str(action),
        )
        for n, (at, user, film, action) in enumerate(zip(times, users, films, actions, strict=True))
    ]
    lists: list[Event] = [
        Ranking(
            id=f"r{n}",
            timestamp=START + int(times[n]) - 1,
            user=f"user-{users[n]}",
            items=[f"f{film}" for film in dict.fromkeys([*rng.integers(0, 200, 8), films[n]])],
        )
        for n in range(0, len(times), 2)
    ]
    return sorted([*profiles(), *lists, *acts], key=lambda event: event.timestamp)


def profiles() -> list[Event]:
    """What some users like, as films name it, and one field that no film has."""
    return [
        User(
            id=f"u{user}",
            timestamp=START,
            user=f"user-{user}",
            fields=[
                Field(name="category", value=[THEMES[user % 4].split()[0]]),
                Field(name="age", value=30),
            ],
        )
        for user in range(USERS)
        if user % 4 < 3
    ]


def own_model() -> tuple[Meta, Items]:
    """The model with users' own weights, which move a lot."""
    meta, known = model()
    size = len(experts.names(meta.config))
    steps = fit_own_weights.with_steps(
        meta, (0.2, 0.95, 2.0), torch.linspace(-0.01, 0.01, size), torch.full((size,), 0.1)
    )
    return replace(steps, config=replace(meta.config, user_delta=True)), known


def repeating_model() -> tuple[Meta, Items]:
    """The model with weights of all that is told of repeats."""
    meta, known = model()
    generator = torch.Generator().manual_seed(6)
    again = torch.tensor([name in repeats.NAMES for name in rerank.names(meta.config)])
    weight = rerank.default_tensors(meta.config)["rerank_weight"]
    weight[:, 0] += 0.3 * torch.randn(len(again), generator=generator) * again
    returns = torch.randn(len(known), 2, generator=generator).numpy()
    tensors = {**meta.tensors, **rerank.with_weights(weight)}
    prior = replace(known.prior, returns=returns)
    return replace(meta, tensors=tensors), replace(known, prior=prior)


def daily() -> list[Event]:
    """Four users who do in days what others do in hours, and dislike nothing."""
    return [
        structs.replace(
            event,
            user=f"user-{int(event.user.split('-')[1]) % 4}",
            timestamp=event.timestamp + 29 * 3_600_000 * (hour(event) - START // 3_600_000),
        )
        for event in traffic()
        if isinstance(event, Interaction) and event.type not in ("skip", "dislike")
    ]


def one_each(events: list[Event]) -> Iterator[list[Event]]:
    """Parts of the log in which nobody occurs twice, within an hour."""
    for part in _by_hour(events).values():
        batch: list[Event] = []
        for event in part:
            if event.user in {other.user for other in batch}:
                yield batch
                batch = []
            batch.append(event)
        yield batch


def batches(events: list[Event], *, across: bool) -> Iterator[list[Event]]:
    """Parts of the log; with `across` they do not care where an hour ends."""
    hours = {0: events} if across else _by_hour(events)
    for part in hours.values():
        for begin in range(0, len(part), 31):
            yield part[begin : begin + 31]


def _by_hour(events: list[Event]) -> dict[int, list[Event]]:
    hours: dict[int, list[Event]] = {}
    for event in events:
        hours.setdefault(hour(event), []).append(event)
    return hours


def hour(event: Event) -> int:
    """The bucket of event time."""
    return event.timestamp // 3_600_000


@dataclass(frozen=True)
class Both:
    """The published lists, and the place of the event that caused each.

    Lists for users who have a profile and have not acted yet stand apart.
    """

    world: MemoryWorld
    log: Log
    published: list[dict[str, Any]]
    cold: list[dict[str, Any]]
    places: np.ndarray

    def evaluated(self, log: Log | None = None, **changes: object) -> np.ndarray:
        """The lists that evaluation gives after the same events: rows [m, K]."""
        chosen = Options(k=K, moment="published", diversity=self.diversity, variants=("adapted",))
        meta, known = self.world.serving.meta, model()[1]
        return evaluate.lists(
            meta,
            self.log if log is None else log,
            self.places,
            self.world.serving.table.catalogue(),
            known.prior,
            replace(chosen, **changes),  # type: ignore[arg-type]
        )

    @property
    def diversity(self) -> float:
        """How varied the lists are."""
        return self.world.settings.ranking.diversity

    def rows(self, found: dict[str, Any]) -> list[int]:
        """The rows of a published list."""
        return [self.world.serving.table.row(entry["item"]) for entry in found["items"]]


@pytest.fixture(
    scope="module",
    params=[(0.0, False), (0.1, False), (0.0, True)],
    ids=["relevance", "diversity", "across buckets"],
)
def both(request: pytest.FixtureRequest) -> Both:
    """One log, through the worker and as columns.

    A batch is ranked as of the bucket of its newest event. Lists of earlier events of a batch that
    goes beyond the end of a bucket know more than evaluation does, and so does the list of a user
    who was shown something later in the batch; they are left out.
    """
    diversity, across = request.param
    asked = settings(diversity)
    return compared(asked, model(), batches(traffic(), across=across), traffic())


def compared(
    asked: Settings, served: tuple[Meta, Items], parts: Iterable[list[Event]], events: list[Event]
) -> Both:
    """The log `events` in these parts through a worker with this model, and as columns."""
    world = MemoryWorld(FILMS, partitions=2, settings=asked, model=served)
    world.run()
    due = set()
    for batch in parts:
        world.clock = batch[-1].timestamp / 1000
        for event in batch:
            world.send(event)
        world.run(turns=2)
        last = {event.user: event for event in batch}.values()
        due |= {event.id for event in last if hour(event) == hour(batch[-1])}
    acts = [event for event in events if isinstance(event, Interaction)]
    at = {event.id: n for n, event in enumerate(acts)}
    records = [r for r in world.records("recommendations") if r.key != b"_cold"]
    lists = [orjson.loads(record.value) for record in records]
    lists = [found for found in lists if found["caused_by"]["event_id"] in due]
    cold = [found for found in lists if not found["shots"]]
    lists = [found for found in lists if found["shots"]]
    published = sorted(lists, key=lambda found: at[found["caused_by"]["event_id"]])
    places = np.array([at[found["caused_by"]["event_id"]] for found in published])
    columns = to_columns(events, world.settings.messages)
    log = to_log(columns, world.serving.table.ids, world.settings.state)
    return Both(world, log, published, cold, places)


def test_the_log_is_worth_comparing(both: Both) -> None:
    """Many lists over several hours, of users of both partitions, often after several events."""
    hours = {found["caused_by"]["event_time"] // 3_600_000 for found in both.published}
    partitions = {found["caused_by"]["partition"] for found in both.published}
    assert len(both.published) > 250
    assert (len(hours), partitions) == (HOURS, {0, 1})
    assert len(both.published) < 0.6 * len(both.log)
    lists = {tuple(both.rows(found)) for found in both.published}
    assert len(lists) > 0.9 * len(both.published)


def test_published_lists_are_those_of_evaluation(both: Both) -> None:
    """99% of the places hold the same item; those that do not hold one with a score as close."""
    published = np.array([both.rows(found) for found in both.published])
    evaluated = both.evaluated()
    assert (published == evaluated).mean() > 0.99
    for found, ours, theirs in zip(both.published, published, evaluated, strict=True):
        score = dict(zip(ours, (entry["score"] for entry in found["items"]), strict=True))
        assert len(score.keys() & {*theirs}) >= K - 1
        moved = [(score[a], score[b]) for a, b in zip(ours, theirs, strict=True) if b in score]
        assert both.diversity or max(abs(a - b) for a, b in moved) < CLOSE


@torch.inference_mode()
def evaluated_scores(both: Both) -> np.ndarray:
    """The scores beside the rows of `Both.evaluated`: [m, K]."""
    meta, catalogue = both.world.serving.meta, both.world.serving.table.catalogue()
    seq, places = Sequences.of(both.log), both.places
    interests = interests_at(meta, seq, places, "published", catalogue.vectors)
    parts = []
    for step in evaluate.walk(meta, seq, places, catalogue, model()[1].prior):
        events = places[step.inside]
        view = views(meta, seq, events, "published", True, len(experts.names(meta.config)))
        own = replace(view, interests=interests[step.inside])
        parts.append(ranking.rank_prepared(meta, step.prepared, own, K, both.diversity).scores)
    return np.asarray(torch.cat(parts))


def test_published_scores_are_those_of_evaluation(both: Both) -> None:
    """Where the items are the same, so are the scores, up to the rounding of the adapter."""
    published = np.array([both.rows(found) for found in both.published])
    ours = np.array([[entry["score"] for entry in found["items"]] for found in both.published])
    difference = np.abs(ours - evaluated_scores(both))[published == both.evaluated()]
    assert difference.max() < CLOSE
    assert difference.mean() < CLOSE / 10


def test_steps_count_in_both(both: Both) -> None:
    """The comparison is not blind: with steps off, evaluation gives other lists."""
    published = np.array([both.rows(found) for found in both.published])
    still = both.evaluated(variants=("steps off",))
    assert (published == still).mean() < 0.8


@pytest.mark.parametrize("column", ["shown", "profiles"])
def test_what_was_shown_and_told_counts_in_both(both: Both, column: str) -> None:
    """Without the lists that users were shown, or without profiles, evaluation gives others."""
    published = np.array([both.rows(found) for found in both.published])
    without = both.evaluated(replace(both.log, **{column: None}))
    assert (published == without).mean() < 0.97


def test_the_list_that_answers_a_profile_is_that_of_evaluation(both: Both) -> None:
    """Before the first event of a user with a profile, both have the same list."""
    meta, seq = both.world.serving.meta, Sequences.of(both.log)
    names = list(dict.fromkeys(e.user for e in traffic() if isinstance(e, Interaction)))
    first = dict(zip(*np.unique(both.log.users, return_index=True), strict=True))
    answered = {int(first[names.index(found["user"])]): found for found in both.cold}
    early = np.array([n for n in sorted(answered) if both.log.times[n] < START / 1000 + 3_600])
    assert len(early) > 2
    assert profiled(seq, early).all()
    assert {found["strategy"] for found in both.cold} == {"cold"}
    options = Options(k=K, moment="request", diversity=both.diversity, variants=("adapted",))
    catalogue, prior = both.world.serving.table.catalogue(), model()[1].prior
    lists = evaluate.lists(meta, both.log, early, catalogue, prior, options)
    published = np.array([both.rows(answered[n]) for n in early.tolist()])
    assert (published == lists).mean() > 0.95
    assert len(np.unique(lists, axis=0)) > 1


def test_own_weights_are_those_of_evaluation() -> None:
    """With one event of a user in a batch, lists and records are those that evaluation finds."""
    served = own_model()
    events = [event for event in traffic() if hour(event) < hour(traffic()[0]) + 3]
    both = compared(settings(), served, one_each(events), events)
    published = np.array([both.rows(found) for found in both.published])
    assert len(published) > 180
    assert (published == both.evaluated()).mean() > 0.99
    assert (published == both.evaluated(variants=("own weights off",))).mean() < 0.9
    names = list(dict.fromkeys(e.user for e in events if isinstance(e, Interaction)))
    last = np.array([np.flatnonzero(both.log.users == user)[-1] for user in range(len(names))])
    places, catalogue = np.sort(last), both.world.serving.table.catalogue()
    expected = own_walk.at_events(
        served[0],
        Sequences.of(both.log),
        places,
        catalogue,
        served[1].prior,
        mask_seen=True,
        moment="published",
    )
    kept = {k: v for store in both.world.stores.values() for k, v in store.records.items()}
    layout = Layout.of(served[0].config)
    records = layout.decode([kept[user_key(names[n].encode())] for n in both.log.users[places]])
    assert float(expected.abs().mean()) > 0.1
    np.testing.assert_allclose(records["delta"], expected.numpy(), atol=CLOSE)


def test_repeats_are_told_in_both() -> None:
    """Where items may come again, by days and beyond the support set, lists are the same."""
    served, events = repeating_model(), daily()
    both = compared(settings(repeats=True), served, batches(events, across=False), events)
    published = np.array([both.rows(found) for found in both.published])
    shots = np.array([found["shots"] for found in both.published])
    assert (shots > served[0].config.support).sum() > 20
    assert (published == both.evaluated(mask_seen=False)).mean() > 0.99
    again = [bool(np.isin(found, both.log.items).any()) for found in published]
    assert np.mean(again) > 0.9
    hourly = replace(both.log, times=both.log.times - 29 * 3_600 * _hours(both.log))
    assert (published == both.evaluated(hourly, mask_seen=False)).mean() < 0.9


def _hours(log: Log) -> np.ndarray:
    """How many buckets of the traffic passed before each event."""
    return np.asarray((log.times - START / 1000) // (30 * 3_600))
