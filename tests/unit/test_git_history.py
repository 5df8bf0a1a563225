"""The history of a repository as a log."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import git_history
from stream import config, datasets, files


def git(folder: Path, *words: str, person: str = "ann", at: int = 1_500_000_000) -> None:
    """Run git as a person at a time."""
    mail, date = f"{person}@example.org", f"@{at} +0000"
    names = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", person), ("EMAIL", mail), ("DATE", date))
    }
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    subprocess.run(["git", *words], cwd=folder, env={**os.environ, **names, **alone}, check=True)


def test_changes_are_events_and_files_are_items(tmp_path: Path) -> None:
    """Who changed what and when; a file appears after its first change; large changes are none."""
    repository, out = tmp_path / "repository", tmp_path / "out"
    repository.mkdir()
    git(repository, "init", "-q")
    begin = 1_500_000_000
    for number, (person, paths) in enumerate(
        [("ann", ["src/a b.py", "docs/über.md"]), ("bob", ["src/a b.py"]), ("bob", many())]
    ):
        for path in paths:
            (repository / path).parent.mkdir(exist_ok=True)
            (repository / path).write_text(f"{number}")
        git(repository, "add", ".")
        git(repository, "commit", "-q", "-m", "x", person=person, at=begin + 100 * number)
    assert git_history.main([str(repository), "--folder", str(out)]) == 0
    settings = config.load(None, {}).messages
    events = list(files.read_events([out / "events.jsonl"], settings, None))
    items = datasets.read_items([str(out / "items.jsonl")], settings, None)
    assert sorted((event.item, event.timestamp // 1_000 - begin) for event in events) == [
        ("docs/über.md", 0),
        ("src/a b.py", 0),
        ("src/a b.py", 100),
    ]
    assert len({event.user for event in events}) == 2
    assert b"example.org" not in (out / "events.jsonl").read_bytes()
    assert {item.timestamp for item in items} == {begin * 1_000 + 1_000}


def many() -> list[str]:
    """The files of a change that is left out."""
    return [f"moved/{number}.py" for number in range(git_history.MOST + 1)]


def test_a_folder_without_a_history_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message is that of git, with the folder."""
    assert git_history.main([str(tmp_path / "none")]) == 4
    assert "none" in capsys.readouterr().err
