"""Which part of a log is trained on, and which is kept for choosing settings or for the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.learning import world
from benchmarks.learning.sets import SETS, DataSet
from stream.progress import Reporter
from tests.unit.small_training import write_data


def test_settings_are_chosen_on_a_log_that_ends_where_the_test_begins(tmp_path: Path) -> None:
    """Nothing of the test is left, by shares or by times, and its parts are cut anew."""
    write_data(tmp_path)
    files = str(tmp_path / "events.jsonl"), str(tmp_path / "items.jsonl")
    whole = DataSet("small", *files, fit_share=0.5, test_share=0.3)
    log = world.build(whole, 100, Reporter()).cuts.log
    shorter = world.build(whole.before_test(), 100, Reporter()).cuts
    assert len(shorter.log) == int(len(log) * 0.7)
    assert (shorter.log.times == log.times[: len(shorter.log)]).all()
    assert shorter.fit < shorter.test < shorter.log.times[-1]
    fit, test = (float(log.times[int(len(log) * share)]) for share in (0.5, 0.7))
    dated = DataSet("small", *files, fit_at=fit, test_at=test, earlier_fit_at=float(log.times[50]))
    assert dated.taking_part(log).times[-1] == log.times[-1]
    earlier = dated.before_test()
    assert earlier.test_at == fit
    assert earlier.taking_part(log).times[-1] < test <= log.times[len(earlier.taking_part(log))]


@pytest.mark.parametrize("name", sorted(SETS))
def test_every_set_can_be_validated(name: str) -> None:
    """Parts of the log follow each other: training, fit, what is judged, and no test."""
    data = SETS[name]
    earlier = data.before_test()
    if data.test_at is None:
        assert earlier.share == 1 - data.test_share
        return
    times = (earlier.fit_at, earlier.test_at, earlier.until)
    assert None not in times
    assert list(times) == sorted(times, key=lambda at: at or 0.0)
    assert earlier.until == data.test_at
