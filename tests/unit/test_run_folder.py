"""The folder of a run: checkpoints that are whole, and runs that are not mixed up."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapters.outer_loop import Snapshot
from stream import config, run_folder
from stream.errors import ResumeError
from stream.run_folder import CHECKPOINT, About, RunFolder

ABOUT = About(
    name="films",
    events=["events.jsonl"],
    items=["items.jsonl"],
    seed=0,
    budget_s=None,
    first="2013-01-01T00:00:00+00:00",
    last="2013-02-01T00:00:00+00:00",
    interactions=900,
    users=90,
    catalogue=9,
    data_digest="d1",
)
DAYS = 1e6  # seconds between checkpoints: none is due for this reason


def settings(**changes: object) -> config.Settings:
    """Default settings with changes to `learning`."""
    return config.load(None, {f"learning.{name}": value for name, value in changes.items()})


def snapshot(step: int) -> Snapshot:
    """A run after some steps."""
    large = 2**100 + step  # the states of numpy's generators are larger than any machine's word
    return Snapshot(
        {"weight/w": torch.full((3, 2), float(step)).T, "count/w": torch.tensor(float(step))},
        {"step": step, "best_loss": None, "rng": {"state": large}},
    )


@pytest.fixture
def begun(tmp_path: Path) -> RunFolder:
    """The folder of a run that has begun."""
    folder = run_folder.create(tmp_path, "films")
    folder.begin(ABOUT, settings(checkpoint_s=0))
    return folder


def test_a_run_leaves_what_it_depends_on(begun: RunFolder) -> None:
    """Settings can be loaded again; data, window and seed are readable; figures come at the end."""
    assert begun.path.name.startswith("films-20")
    assert config.load(begun.path / "config.yaml").learning.checkpoint_s == 0
    about = json.loads((begun.path / "run.json").read_text())
    assert (about["seed"], about["first"], about["interactions"]) == (0, ABOUT.first, 900)
    begun.finish({"peak_memory_mb": 1.5})
    assert json.loads((begun.path / "metrics.json").read_text()) == {"peak_memory_mb": 1.5}


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    """No run writes into another one's folder."""
    paths = {run_folder.create(tmp_path, "films").path for _ in range(3)}
    assert len(paths) == 3


def test_a_checkpoint_comes_back_as_it_was(begun: RunFolder) -> None:
    """Tensors, large numbers and missing ones are the same when the run is resumed."""
    begun.keep("step", lambda: snapshot(7))
    again = run_folder.resume(begun.path)
    assert again.step == 7
    assert again.snapshot is not None
    assert again.snapshot.facts == snapshot(7).facts
    assert again.snapshot.tensors.keys() == snapshot(7).tensors.keys()
    assert all(torch.equal(again.snapshot.tensors[k], v) for k, v in snapshot(7).tensors.items())


def test_a_checkpoint_is_read_whole_while_a_run_replaces_it(begun: RunFolder) -> None:
    """Whoever looks at a run that goes on finds one step or the other, never parts of two."""
    path, kept = begun.path / CHECKPOINT, begun.path / "kept"
    tensors = {step: torch.full((step,), float(step)) for step in (1_000, 2_000)}
    for step, tensor in tensors.items():
        run_folder.write_checkpoint(kept / str(step), Snapshot({"a": tensor}, {}))
    run_folder.write_checkpoint(path, Snapshot({"a": tensors[1_000]}, {}))
    with subprocess.Popen([sys.executable, "-c", REPLACING, str(kept), str(path)]) as process:
        try:
            while path.stat().st_nlink == 1:
                assert process.poll() is None
            found, lengths = [], set[int]()
            deadline = time.monotonic() + 60
            while len(found) < 1_000 or len(lengths) < len(tensors):
                assert time.monotonic() < deadline, "the other process replaced nothing"
                found.append(run_folder.read_checkpoint(path).tensors["a"])
                lengths.add(len(found[-1]))
        finally:
            process.kill()
    assert all(torch.equal(read, tensors[len(read)]) for read in found)


REPLACING = """
import itertools, os, sys
for name in itertools.cycle(("1000", "2000")):
    os.link(os.path.join(sys.argv[1], name), sys.argv[2] + ".new")
    os.replace(sys.argv[2] + ".new", sys.argv[2])
"""
"""What a run does to its checkpoint again and again, without the training between."""


def test_a_run_without_a_checkpoint_begins_at_the_beginning(begun: RunFolder) -> None:
    """A run that was killed before its first checkpoint loses nothing but time."""
    again = run_folder.resume(begun.path)
    again.begin(ABOUT, settings())
    assert (again.step, again.snapshot) == (0, None)


def test_what_a_killed_writer_leaves_is_passed_over(begun: RunFolder) -> None:
    """A half-written checkpoint lies under another name; the one before it counts."""
    begun.keep("step", lambda: snapshot(1))
    whole = (begun.path / CHECKPOINT).read_bytes()
    (begun.path / CHECKPOINT).with_suffix(".new").write_bytes(whole[: len(whole) // 2])
    assert run_folder.resume(begun.path).step == 1
    begun.keep("step", lambda: snapshot(2))
    assert run_folder.resume(begun.path).step == 2


@pytest.mark.parametrize("damage", [b"", b"junk" * 99, None])
def test_a_damaged_checkpoint_is_refused(begun: RunFolder, damage: bytes | None) -> None:
    """A file that is cut short or is none says so, with the remedy."""
    begun.keep("step", lambda: snapshot(1))
    path = begun.path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-4] if damage is None else damage)
    with pytest.raises(ResumeError, match=r"last\.safetensors cannot be read.*Train anew"):
        run_folder.resume(begun.path)


def test_checkpoints_come_when_they_are_due(begun: RunFolder) -> None:
    """Between two of them only a better model is kept, and the end always."""
    path = begun.path / CHECKPOINT
    begun.begin(ABOUT, settings())
    patient = RunFolder(begun.path)
    patient.begin(ABOUT, settings(checkpoint_s=DAYS))
    for moment, step, there in (("step", 1, 0), ("better", 2, 2), ("step", 3, 2), ("end", 4, 4)):
        patient.keep(moment, lambda step=step: snapshot(step))  # type: ignore[arg-type, misc]
        found = run_folder.read_checkpoint(path).facts["step"] if path.exists() else 0
        assert found == there
    begun.keep("step", lambda: snapshot(5))
    assert run_folder.resume(begun.path).step == 4


@pytest.mark.parametrize(
    ("about", "changes", "said"),
    [
        ({"seed": 1}, {}, "seed was 0, now it is 1"),
        ({"budget_s": 30.0}, {}, "budget_s was unset, now it is 30.0"),
        ({"data_digest": "d2"}, {}, "data_digest was d1, now it is d2"),
        ({"last": "2013-03-01", "data_digest": "d2"}, {}, "last was 2013-02-01"),
        ({}, {"batch": 32}, "learning.batch was 64, now it is 32"),
        ({}, {"patience": None}, "learning.patience was 4, now it is unset"),
    ],
)
def test_another_run_is_refused(
    begun: RunFolder, about: dict[str, object], changes: dict[str, object], said: str
) -> None:
    """Other data, settings or another seed are named, with both values."""
    again = run_folder.resume(begun.path)
    with pytest.raises(ResumeError, match=said):
        again.begin(replace(ABOUT, **about), settings(**changes))  # type: ignore[arg-type]


def test_what_does_not_matter_may_differ(begun: RunFolder) -> None:
    """Files may have moved, and checkpoints come at other intervals."""
    again = run_folder.resume(begun.path)
    again.begin(replace(ABOUT, events=["elsewhere.jsonl"]), settings(checkpoint_s=60))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    """The message names the folder."""
    with pytest.raises(ResumeError, match="is no folder of a run"):
        run_folder.resume(tmp_path)


def test_a_mistake_before_the_run_leaves_no_folder(tmp_path: Path) -> None:
    """An error before anything is known of the data takes the folder away; later ones keep it."""
    early = run_folder.create(tmp_path, "films")
    with pytest.raises(KeyError), early.unless_begun():
        raise KeyError
    assert not early.path.exists()
    late = run_folder.create(tmp_path, "films")
    late.begin(ABOUT, settings())
    with pytest.raises(KeyError), late.unless_begun():
        raise KeyError
    assert (late.path / "run.json").exists()
