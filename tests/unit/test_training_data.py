"""Who is held out of a training, and what its folder keeps of the items."""

from __future__ import annotations

from pathlib import Path

from stream import run_folder, training_data
from stream.columns import to_columns
from stream.config import Settings
from stream.datasets import to_log
from stream.testing_worker import NOW, click, item
from stream.training import Request
from stream.training_data import Data, FromKafka
from stream.window import Extent, Window

FILMS = [item(f"f{n}", f"Film {n}") for n in range(5)]
WINDOW = Window(
    events=Extent(topic="events", starts=[0], ends=[9]),
    items=Extent(topic="items", starts=[0], ends=[9]),
    length_s=86_400.0,
    until=None,
    measured_at=0,
)


def data(users: range, window: Window | None = WINDOW) -> Data:
    """One event of each of these users, the last user first."""
    messages = Settings().messages
    columns = to_columns((click(f"u{n}", f"f{n % 5}", NOW - n) for n in users), messages)
    log = to_log(columns, [film.item for film in FILMS])
    return Data(columns=columns, items=FILMS, log=log, messages=messages, window=window)


def names(found: Data, seed: int = 0) -> set[str]:
    """Ids of the users who are held out."""
    drawn = training_data.held_out(found, 0.2, seed)
    return {found.columns.user_ids[user] for user in drawn}


def test_every_training_from_kafka_holds_out_the_same_users() -> None:
    """In another log, with another seed, a user is held out if he was before; a fifth of all is."""
    first, second = names(data(range(2_000))), names(data(range(1_000, 3_000)), seed=7)
    both = {f"u{n}" for n in range(1_000, 2_000)}
    assert first & both == second & both
    assert 300 < len(first) < 500


def test_trainings_from_files_draw_by_the_seed() -> None:
    """Another seed holds out others, so that a comparison can be repeated over draws."""
    files = data(range(500), window=None)
    assert len(names(files)) == 100
    assert names(files) == names(files) != names(files, seed=1)


def test_a_run_keeps_the_items_it_began_with(tmp_path: Path) -> None:
    """Whatever the topic holds later, a run that goes on has the items of its beginning."""
    folder = run_folder.create(tmp_path, "films")
    request = Request(out="x", settings=Settings(), kafka=FromKafka())
    assert training_data.same_items(FILMS, folder, request) == FILMS
    changed = [item("f0", "Renamed"), *FILMS[2:]]
    assert training_data.same_items(changed, folder, request) == FILMS
    assert training_data.same_items(changed, None, request) == changed
