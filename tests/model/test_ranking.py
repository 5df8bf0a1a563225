"""Ranking: exact, explained, without what must not be shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapters import ranking
from adapters.diversity import diversify
from adapters.types import Meta, UserView
from tests.model import planted

SIZE = 300
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def world(interests: int = 1) -> tuple[Meta, UserView]:
    """A model, and users for more than one group."""
    settings = planted.config(interests=interests)
    return planted.model(settings), planted.view(settings, 2 * ranking.GROUP + 12, SIZE)


@pytest.mark.parametrize("interests", [1, 3])
def test_the_list_is_the_exact_top_of_the_scores(interests: int) -> None:
    """Blocked search finds what a full sort finds, for one and for several interests."""
    meta, view = world(interests)
    items, shared = planted.catalogue(meta.config, SIZE), planted.shared(meta.config, SIZE)
    scores = ranking.score(meta, view, items, shared)
    found = ranking.rank(meta, view, items, shared, 20, 0.0)
    expected = scores.topk(20)
    torch.testing.assert_close(found.scores, expected.values)
    torch.testing.assert_close(scores.gather(1, found.items), expected.values)


def test_the_best_of_nested_blocks_are_the_exact_best() -> None:
    """Whatever width and k, the search by blocks gives the values of a full sort, in order."""
    generator = torch.Generator().manual_seed(0)
    for width in (64, 640, 1_920, 1_930):
        scores = torch.randn(5, width, generator=generator)
        for k in (1, 7, 40, 64):
            top, columns = ranking.top_k(scores, k)
            assert torch.equal(top, scores.topk(k).values)
            assert torch.equal(scores.gather(1, columns), top)


def test_only_the_nearest_neighbours_of_a_seed_count() -> None:
    """Neighbours beyond the heaviest ones change nothing, wherever a score is computed."""
    meta, view = world()
    items = planted.catalogue(meta.config, SIZE)
    shared = planted.shared(replace(meta.config, neighbours=50), SIZE)
    n = ranking.features.NEAREST
    nearest = replace(
        shared,
        neighbour_items=shared.neighbour_items[:, :n],
        neighbour_weights=shared.neighbour_weights[:, :n],
    )
    assert torch.equal(
        ranking.score(meta, view, items, shared), ranking.score(meta, view, items, nearest)
    )


@pytest.mark.parametrize("interests", [1, 3])
def test_contributions_add_up_to_the_score(interests: int) -> None:
    """`explain` says what each expert adds, and the sum is the score."""
    meta, view = world(interests)
    items, shared = planted.catalogue(meta.config, SIZE), planted.shared(meta.config, SIZE)
    for user in (0, 5):
        one = ranking.select(view, slice(user, user + 1))
        found = ranking.rank(meta, one, items, shared, 30, 0.0)
        parts = ranking.explain(meta, one, items, shared, found.items[0])
        torch.testing.assert_close(parts.sum(1), found.scores[0], rtol=1e-4, atol=1e-4)


def test_seen_deleted_and_future_items_are_never_ranked() -> None:
    """Items that a user has seen, that are gone or that are yet to come are in no list."""
    meta, view = world()
    items = planted.catalogue(meta.config, SIZE)
    items.alive[10:40] = False
    items.created[50:60] = planted.BEGIN + 2 * meta.config.bucket
    found = ranking.rank(meta, view, items, planted.shared(meta.config, SIZE), SIZE, 0.2).items
    gone = set(range(10, 40)) | set(range(50, 60))
    for user, row in enumerate(found.tolist()):
        ranked = [item for item in row if item >= 0]
        assert len(ranked) == len(set(ranked))
        expected = set(range(SIZE)) - gone - set(view.seen[user].tolist())
        assert set(ranked) == expected


def test_a_list_longer_than_the_catalogue_is_padded() -> None:
    """Places beyond the last item have row -1."""
    meta, _view = world()
    small = planted.view(meta.config, 4, 5)
    found = ranking.rank(
        meta, small, planted.catalogue(meta.config, 5), planted.shared(meta.config, 5), 9, 0.1
    )
    assert found.items.shape == (4, 9)
    assert (found.items[:, 5:] == -1).all()


def test_signals_may_know_fewer_or_more_rows_than_the_catalogue() -> None:
    """New items are ranked before anyone acted on them; rows without an item do no harm."""
    meta, view = world()
    items = planted.catalogue(meta.config, SIZE)
    for rows in (SIZE - 50, SIZE + 50):
        found = ranking.rank(meta, view, items, planted.shared(meta.config, rows), SIZE, 0.0)
        assert int(found.items.max()) == SIZE - 1


def test_users_do_not_touch_each_other() -> None:
    """A user's list is the same alone, in a batch, and in a batch of another order."""
    meta, view = world()
    items, shared = planted.catalogue(meta.config, SIZE), planted.shared(meta.config, SIZE)
    whole = ranking.rank(meta, view, items, shared, 10, 0.3).items
    order = torch.randperm(len(view.shots), generator=torch.Generator().manual_seed(0))
    mixed = ranking.rank(meta, ranking.select(view, order), items, shared, 10, 0.3).items
    assert torch.equal(mixed, whole[order])
    alone = ranking.rank(meta, ranking.select(view, slice(33, 34)), items, shared, 10, 0.3).items
    assert torch.equal(alone[0], whole[33])


def test_scores_do_not_depend_on_the_number_of_users() -> None:
    """Ten times as many events of everybody leave every list as it is."""
    meta, view = world()
    items, shared = planted.catalogue(meta.config, SIZE), planted.shared(meta.config, SIZE)
    more = replace(shared, popularity=shared.popularity * 10)
    torch.testing.assert_close(
        ranking.score(meta, view, items, more), ranking.score(meta, view, items, shared)
    )


def test_reusing_the_item_side_changes_nothing() -> None:
    """An item side made from an earlier one equals one made from nothing."""
    settings = planted.config()
    items, shared = planted.catalogue(settings, SIZE), planted.shared(settings, SIZE)
    other = replace(shared, popularity=shared.popularity.flip(0))
    earlier = ranking.prepare(settings, items, shared)
    assert torch.equal(
        ranking.prepare(settings, items, other, earlier).columns,
        ranking.prepare(settings, items, other).columns,
    )


def test_what_was_ranked_before_changes_nothing() -> None:
    """The memory of scores goes from call to call as if new, after one that failed as well."""
    meta, view = world()
    items, shared = planted.catalogue(meta.config, SIZE), planted.shared(meta.config, SIZE)
    first = ranking.rank(meta, view, items, shared, 20, 0.1)
    other = planted.catalogue(meta.config, SIZE + 7)
    ranking.rank(meta, ranking.select(view, slice(3, 9)), other, shared, 20, 0.1)
    shown = torch.full_like(view.shown, 10**6)
    with pytest.raises((IndexError, RuntimeError)):
        ranking.rank(meta, replace(view, shown=shown), items, shared, 20, 0.1)
    again = ranking.rank(meta, view, items, shared, 20, 0.1)
    assert torch.equal(first.items, again.items)
    assert torch.equal(first.scores, again.scores)


def test_neighbours_of_clicks_rise() -> None:
    """What others took with an item moves up for those who took the item."""
    meta, _ = world()
    items, shared = planted.catalogue(meta.config, SIZE), planted.shared(meta.config, SIZE)
    shared.neighbour_items[7] = -1
    shared.neighbour_items[7, 0], shared.neighbour_weights[7, 0] = 99, 0.5
    view = planted.view(meta.config, 2, SIZE)
    view.seen[:] = -1
    before = ranking.score(meta, view, items, shared)[1, 99]
    view.support.items[1, 0], view.support.values[1, 0] = 7, 1.0
    order = list(ranking.experts.names(meta.config))
    one = ranking.select(view, slice(1, 2))
    parts = ranking.explain(meta, one, items, shared, torch.tensor([99]))
    assert parts[0, order.index("covisit_stream")] > 0.5
    assert ranking.score(meta, view, items, shared)[1, 99] > before


def test_the_cold_list_is_that_of_a_user_without_events() -> None:
    """Unseen users get the list of zero shots and the initial interests."""
    meta, _ = world()
    items, shared = planted.catalogue(meta.config, SIZE), planted.shared(meta.config, SIZE)
    interests = torch.randn(1, 1, meta.config.dim)
    prepared = ranking.prepare(meta.config, items, shared)
    found = ranking.cold(meta, interests, prepared, 10, 0.0)
    view = ranking.empty_view(meta, interests)
    assert torch.equal(found.items, ranking.rank(meta, view, items, shared, 10, 0.0).items)


def test_diversity_spreads_the_list_and_keeps_the_best_item() -> None:
    """More diversity, less likeness within the list; the first place stays."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(40, 4, generator=generator), dim=1)
    scores = torch.rand(3, 40, generator=generator).sort(descending=True).values
    rows = torch.stack([torch.randperm(40, generator=generator) for _ in range(3)])
    likeness = []
    for amount in (0.01, 0.3, 0.8):
        _, chosen = diversify(scores, rows, vectors, 8, amount)
        assert torch.equal(chosen[:, 0], rows[:, 0])
        picked = vectors[chosen]
        likeness.append(float((picked @ picked.transpose(1, 2)).mean()))
    assert likeness[0] > likeness[1] > likeness[2]


@pytest.mark.parametrize("device", DEVICES)
def test_devices_rank_as_the_parts_say(device: str) -> None:
    """On each device there is, scores are the sums of what the experts add on the CPU."""
    meta, view = world()
    items, shared = planted.catalogue(meta.config, SIZE), planted.shared(meta.config, SIZE)

    def moved(value: object) -> object:
        names = getattr(value, "__dataclass_fields__", None)
        if isinstance(value, torch.Tensor):
            return value.to(device)
        return (
            value
            if names is None
            else replace(
                value,
                **{name: moved(getattr(value, name)) for name in names},  # type: ignore[type-var]
            )
        )

    there = (moved(view), moved(items), moved(shared))
    found = ranking.score(meta.to(device), *there).cpu()  # type: ignore[arg-type]
    rows = torch.arange(SIZE).expand(len(view.shots), -1)
    prepared = ranking.prepare(meta.config, items, shared)
    expected = ranking.contributions(meta, prepared, view, rows).sum(2)
    ranked = found > -1e29
    assert bool((ranked.sum(1) > SIZE / 2).all())
    torch.testing.assert_close(found[ranked], expected[ranked], rtol=1e-3, atol=1e-3)


def test_padding_is_never_ranked_whatever_the_signs_of_the_weights() -> None:
    """Columns beyond the last item stay out of lists that are longer than the catalogue."""
    meta, _view = world()
    config = meta.config
    against = {**meta.tensors, "expert_weight": -meta["expert_weight"]}
    found = ranking.rank(
        Meta(config, against),
        planted.view(config, 4, 5),
        planted.catalogue(config, 5),
        planted.shared(config, 5),
        9,
        0.0,
    )
    assert int(found.items.max()) < 5
