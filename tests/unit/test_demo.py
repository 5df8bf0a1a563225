"""The pure parts of the demo: themes, hits, quantiles, what the screen prints."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest

from stream.demo.films import ANNA, BEN, Film, Films, on_theme
from stream.demo.score import Positions, Tally
from stream.demo.screen import Screen
from stream.demo.watch import quantile, read


@pytest.fixture(scope="module")
def films() -> Films:
    """The shipped log."""
    return Films.shipped()


def test_the_live_part_begins_with_an_hour_and_after_all_training(films: Films) -> None:
    """Nothing that is trained on lies in the live part."""
    assert films.cut % 3_600 == 0
    assert 8_000 <= len(films.tail) < 8_500
    known = films.events[: -len(films.tail)]
    assert known[-1].timestamp < films.cut * 1e3 <= films.tail[0].timestamp


@pytest.mark.parametrize("taste", [ANNA, BEN])
def test_visitors_click_what_is_liked_most_in_their_genre(films: Films, taste: object) -> None:
    """Films come from the log, suit the taste, and are not those of the other."""
    assert taste in (ANNA, BEN)
    mine, other = (ANNA, BEN) if taste is ANNA else (BEN, ANNA)
    clicks = films.favourites(mine.suits, 4)
    assert len(set(clicks)) == 4
    assert all(mine.suits(films.films[item]) for item in clicks)
    assert not any(other.suits(films.films[item]) for item in clicks)


def test_a_theme_is_a_genre_of_two_clicks_or_a_word_of_one() -> None:
    """One click's own genre is not enough; short and common words are none."""
    clicks = [
        Film("The Shining", 1980, ("Horror", "Mystery")),
        Film("Psycho", 1960, ("Horror", "Thriller")),
    ]
    assert on_theme(Film("Alien", 1979, ("Horror",)), clicks)
    assert on_theme(Film("Shining Through", 1992, ("War",)), clicks)
    assert not on_theme(Film("Heat", 1995, ("Thriller",)), clicks)
    assert not on_theme(Film("The End", 1978, ("Comedy",)), clicks)


def test_a_tally_counts_variants_where_lists_were_published() -> None:
    """Positions without a next film count for nobody, others for all alike."""
    wanted = np.array([5, -1, 7, 8])
    hits = {"steps off": np.array([True, True, False, True])}
    tally = Tally(Positions(wanted, hits))
    assert tally.rate() == 0.0
    for event, rows in ((0, [1, 5]), (1, [9, 9]), (2, [1, 2])):
        tally.add(event, np.array(rows))
    assert (tally.lists, tally.rate(), tally.rate("steps off")) == (2, 0.5, 0.5)


def test_only_the_first_ten_places_hit() -> None:
    """The eleventh place of a list does not count."""
    positions = Positions(np.array([3]), {})
    assert positions.hit(0, np.r_[np.full(9, 1), 3])
    assert not positions.hit(0, np.r_[np.full(10, 1), 3])


def test_quantiles_of_a_histogram_are_linear_inside_a_bucket() -> None:
    """An empty one has none; the last bucket gives its lower bound."""
    bounds = [(0.1, 10.0), (0.2, 30.0), (math.inf, 40.0)]
    assert quantile(bounds, 0.5) == pytest.approx(0.15)
    assert quantile(bounds, 0.99) == 0.2
    assert math.isnan(quantile([(0.1, 0.0), (math.inf, 0.0)], 0.5))


def test_metrics_that_are_not_there_yet_are_zero() -> None:
    """A worker that has just started has said nothing."""
    found = read(b"")
    assert (found.lag_messages, found.lists) == (0.0, 0.0)
    assert math.isnan(found.p50)


def test_lag_is_the_sum_of_messages_and_the_longest_wait() -> None:
    """Over all partitions."""
    page = b"""# TYPE innerloop_lag_messages gauge
innerloop_lag_messages{partition="0"} 3
innerloop_lag_messages{partition="1"} 4
# TYPE innerloop_lag_seconds gauge
innerloop_lag_seconds{partition="0"} 0.5
innerloop_lag_seconds{partition="1"} 0.25
"""
    found = read(page)
    assert (found.lag_messages, found.lag_seconds) == (7.0, 0.5)


def test_without_a_terminal_there_are_no_control_codes() -> None:
    """Headings are plain, and a status comes every two seconds at most."""
    out = io.StringIO()
    screen = Screen(out)
    screen.heading("1  A broker")
    for number in range(50):
        screen.status(f"status {number}")
    screen.table([("a", "b"), ("long", "c")])
    assert out.getvalue() == "\n1  A broker\nstatus 0\n  a     b\n  long  c\n"
