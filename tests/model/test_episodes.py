"""Logs, splits and episodes: order, targets, seen items, and nothing from the future."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from adapters import episodes
from adapters.episodes import Draw, Log


def log_of(*events: tuple[int, int, float]) -> Log:
    """A log of (user, item, value), one second apart."""
    users, items, values = zip(*events, strict=True)
    return episodes.make_log(users, items, [0] * len(users), values, range(len(users)))


@pytest.fixture
def random_log() -> Log:
    """3,000 events of 60 users, some of them long, with dislikes and unknown items."""
    rng = np.random.default_rng(0)
    users = (rng.random(3_000) ** 2 * 60).astype(int)
    items = rng.integers(-1, 400, 3_000)
    values = rng.choice([1.0, 0.5, -1.0], 3_000)
    return episodes.make_log(users, items, rng.integers(0, 2, 3_000), values, np.arange(3_000) // 2)


def test_logs_are_sorted_by_time_user_item() -> None:
    """`make_log` sorts; ties in time are broken by user, then item."""
    log = episodes.make_log([2, 1, 1], [5, 9, 3], [0, 0, 0], [1, 1, 1], [7.0, 7.0, 7.0])
    assert log.users.tolist() == [1, 1, 2]
    assert log.items.tolist() == [3, 9, 5]


def test_disorder_is_refused() -> None:
    """A log must be one time line of finite numbers in columns of one length."""
    log = log_of((0, 1, 1.0), (0, 2, 1.0))
    with pytest.raises(ValueError, match="time order"):
        replace(log, times=log.times[::-1])
    with pytest.raises(ValueError, match="lengths"):
        replace(log, times=log.times[:1])
    with pytest.raises(ValueError, match="finite"):
        replace(log, values=np.array([1.0, np.nan]))


def test_ties_stay_on_one_side_of_a_split() -> None:
    """Splitting by time or share never parts events of the same moment."""
    log = episodes.make_log(range(6), range(6), [0] * 6, [1] * 6, [1, 2, 2, 2, 3, 3])
    assert [len(part) for part in episodes.split_time(log, 2)] == [1, 5]
    for share in (0.0, 0.3, 0.5, 0.7, 1.0):
        early, late = episodes.split_share(log, share)
        episodes.refuse_leakage(early, late)
        assert len(early) + len(late) == 6


def test_leakage_is_refused() -> None:
    """Training that reaches into the test, or shares users where it may not, is an error."""
    log = log_of((0, 1, 1.0), (1, 2, 1.0), (0, 3, 1.0))
    early, late = log.select(slice(0, 2)), log.select(slice(2, 3))
    episodes.refuse_leakage(early, late)
    with pytest.raises(episodes.LeakageError, match="begins"):
        episodes.refuse_leakage(late, early)
    with pytest.raises(episodes.LeakageError, match="1 users"):
        episodes.refuse_leakage(early, late, shared_users=False)


def test_held_out_users_are_a_fixed_share(random_log: Log) -> None:
    """The same seed holds out the same users, and the split keeps every event once."""
    users = episodes.draw_users(random_log, 0.25, seed=3)
    assert np.array_equal(users, episodes.draw_users(random_log, 0.25, seed=3))
    rest, held = episodes.split_users(random_log, users)
    assert len(rest) + len(held) == len(random_log)
    assert not np.intersect1d(rest.users, held.users).size


def test_targets_are_the_next_new_positive() -> None:
    """Dislikes, unknown items and items met before are never targets; users do not mix."""
    h = episodes.group(log_of((0, 1, 1), (0, 2, -1), (0, -1, 1), (0, 1, 1), (0, 3, 1), (1, 4, -1)))
    assert h.target.tolist() == [1, 3, 3, 3, 3, -1, -1]
    again = episodes.group(log_of((0, 1, 1), (0, 2, -1), (0, 1, 1)), repeat=True)
    assert again.target.tolist() == [1, 1, 1, -1]


def brute_force(log: Log, user: int) -> list[tuple[int, float]]:
    """A user's events in order."""
    return [
        (int(i), float(v))
        for u, i, v in zip(log.users, log.items, log.values, strict=True)
        if u == user
    ]


@pytest.mark.parametrize(("seed", "horizon"), [(0, 1), (1, 1), (2, 1), (3, 4)])
def test_episodes_hold_what_the_log_says(random_log: Log, seed: int, horizon: int) -> None:
    """Windows are runs of one history; targets come next and are unseen; seen is all before."""
    h, rng = episodes.group(random_log), np.random.default_rng(seed)
    draw = Draw(batch=32, long_share=0.3, horizon=horizon)
    batch = episodes.sample(h, draw, episodes.anchors(h, draw), rng)
    users = np.unique(random_log.users)
    chances = {
        tuple(i for i, _ in brute_force(random_log, u)): brute_force(random_log, u) for u in users
    }
    for row in range(len(batch.block.items)):
        mask = batch.block.mask[row]
        window = batch.block.items[row][mask].tolist()
        history, begin = _find(chances, window, batch.block.values[row][mask].tolist())
        for place, target in zip(
            batch.places[row].tolist(), batch.targets[row].tolist(), strict=True
        ):
            assert (place < 0) == (target < 0)
            if place < 0:
                continue
            assert place > 0 or begin == 0
            before = [i for i, _ in history[: begin + place]]
            assert target in _next_new(history, begin + place)[:horizon]
            masked = batch.seen[row][(batch.seen_from[row] <= place) & (batch.seen[row] >= 0)]
            assert set(masked.tolist()) == set(before) - {-1}


def _next_new(history: list[tuple[int, float]], place: int) -> list[int]:
    """Items that are liked where the user first meets them, from this place on."""
    met = [i for i, _ in history]
    return [
        i
        for n, (i, v) in enumerate(history)
        if v > 0 <= i and n >= place > -1 and met.index(i) == n
    ]


@pytest.mark.parametrize("horizon", [1, 2, 3, 9])
def test_targets_are_drawn_evenly_from_the_next_positives(horizon: int) -> None:
    """So many positives ahead as the horizon has, no dislikes, and none of another user."""
    log = log_of((0, 1, 1), (0, 2, 1), (0, 3, -1), (0, 4, 1), (0, 5, 1), (1, 6, 1))
    draw = Draw(batch=4_000, windows=(6, 6), long_share=0, places=6, horizon=horizon)
    histories = episodes.group(log)
    batch = episodes.sample(histories, draw, np.eye(6)[0], np.random.default_rng(0))
    for place, ahead in enumerate([[1, 2, 4, 5], [2, 4, 5], [4, 5], [4, 5], [5]]):
        drawn, counts = np.unique(batch.targets[batch.places == place], return_counts=True)
        assert drawn.tolist() == ahead[:horizon]
        assert counts.min() > 0.8 * counts.mean()


def _find(
    histories: dict[tuple[int, ...], list[tuple[int, float]]],
    window: list[int],
    values: list[float],
) -> tuple[list[tuple[int, float]], int]:
    """The history that holds the window, and where."""
    for items, history in histories.items():
        for begin in range(len(items) - len(window) + 1):
            run = history[begin : begin + len(window)]
            if list(items[begin : begin + len(window)]) == window and np.allclose(
                [v for _, v in run], values
            ):
                return history, begin
    raise AssertionError("no history holds this window")


def test_long_histories_give_windows_anywhere(random_log: Log) -> None:
    """Windows of long histories are full, start at random, and come long at times."""
    h, rng, draw = episodes.group(random_log), np.random.default_rng(0), Draw(batch=64)
    chances = episodes.anchors(h, draw)
    widths = [episodes.sample(h, draw, chances, rng).block.mask.shape[1] for _ in range(60)]
    assert min(widths) >= 20
    assert max(widths) > 100
    assert np.mean(np.array(widths) <= 50) > 0.75


def test_recent_events_are_drawn_more_often(random_log: Log) -> None:
    """With a half-life, an event that much older is half as likely."""
    h = episodes.group(random_log)
    chances = episodes.anchors(h, Draw(half_life=100.0))
    assert chances.sum() == pytest.approx(1.0)
    newest, older = (int(np.argmin(abs(h.times - t))) for t in (h.times.max(), h.times.max() - 100))
    assert chances[newest] / chances[older] == pytest.approx(2.0)


def test_the_future_of_the_log_does_not_reach_an_episode(random_log: Log) -> None:
    """Cutting the log behind a window leaves events and seen items of the window as they are."""
    h = episodes.group(random_log)
    user = int(np.argmax(np.diff(h.starts)))
    begin = np.array([h.starts[user] + 5])
    length, draw = np.array([20]), Draw()
    cut, _ = episodes.split_time(random_log, float(h.times[begin[0] + 20]))
    c = episodes.group(cut)
    place = np.array(
        [c.starts[np.searchsorted(np.unique(cut.users), np.unique(random_log.users)[user])] + 5]
    )
    rng = [np.random.default_rng(0) for _ in range(2)]
    whole = episodes.episodes(h, draw, begin, length, rng[0])
    short = episodes.episodes(
        c, draw, place, np.minimum(length, c.starts[1:].max() - place), rng[1]
    )
    size = short.block.items.shape[1]
    assert torch.equal(whole.block.items[:, :size], short.block.items)
    assert torch.equal(whole.seen.flip(1)[:, :size], short.seen.flip(1)[:, :size])


def test_repeat_consumption_masks_nothing(random_log: Log) -> None:
    """With `repeat` no item counts as seen."""
    h, draw = episodes.group(random_log, repeat=True), Draw(repeat=True)
    batch = episodes.sample(h, draw, episodes.anchors(h, draw), np.random.default_rng(0))
    assert (batch.seen == -1).all()
