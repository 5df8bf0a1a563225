"""`python -m benchmarks.git_history REPOSITORY`: a log of who changed which file, to learn from.

A log in which items arrive bit by bit, with texts and with people who come and go, that everybody
has at hand. A person who changes a file takes an item whose text is its path; the file appears a
second after its first change, so that this one can be guessed by nobody. People are told apart by
a hash.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

FOLDER = Path("var/data/history")

MOST = 30
"""Files of a change at most: larger ones are moves and formatting, and say nothing of interests."""

_COMMIT, _PART = "\x01", "\x02"
_COMMAND = ("log", "--no-merges", "--no-renames", "--diff-filter=AM", "--name-only", "-z")
_LONGEST = 200  # of an identifier


def main(argv: Sequence[str] | None = None) -> int:
    """Write `events.jsonl` and `items.jsonl`, and say how many there are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.git_history", description=__doc__)
    parser.add_argument("repository", type=Path, help="a clone with its history, not a shallow one")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where to ({FOLDER})")
    asked = parser.parse_args(argv)
    try:
        events = sorted(changes(asked.repository))
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"{asked.repository}: {error.stderr.decode().strip()}\n")
        return 4
    first: dict[str, int] = {}
    for at, _, path in events:
        first.setdefault(path, at)
    _write(asked.folder / "events.jsonl", (_event(n, *event) for n, event in enumerate(events)))
    _write(asked.folder / "items.jsonl", (_item(path, at + 1_000) for path, at in first.items()))
    people = len({person for _, person, _ in events})
    sys.stdout.write(f"{len(events):,} changes of {len(first):,} files by {people:,} people\n")
    return 0


def changes(repository: Path) -> Iterator[tuple[int, str, str]]:
    """Time in ms, person and path of each change. Raises `CalledProcessError` without a history."""
    form = f"--format={_COMMIT}%ct{_PART}%ae{_PART}"
    found = subprocess.run(
        ["git", "-C", str(repository), *_COMMAND, form], capture_output=True, check=True
    )
    for commit in found.stdout.decode("utf-8", "replace").split(_COMMIT)[1:]:
        seconds, address, rest = commit.split(_PART, 2)
        paths = [path for path in rest.replace("\n", "\0").split("\0") if path]
        if len(paths) <= MOST:
            person = hashlib.sha256(address.encode()).hexdigest()[:12]
            yield from ((int(seconds) * 1_000, person, path[-_LONGEST:]) for path in paths)


def _event(number: int, at: int, person: str, path: str) -> dict[str, Any]:
    return {
        "event": "interaction",
        "id": f"change-{number}",
        "timestamp": at,
        "user": person,
        "item": path,
        "type": "click",
        "value": 1.0,
        "session": None,
    }


def _item(path: str, at: int) -> dict[str, Any]:
    words = path.translate(str.maketrans("/_.-", "    "))
    fields = [
        {"name": "title", "value": words},
        {"name": "category", "value": path.split("/")[0]},
    ]
    return {"event": "item", "id": path, "timestamp": at, "item": path, "fields": fields}


def _write(path: Path, messages: Iterator[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(orjson.dumps(message) + b"\n" for message in messages))


if __name__ == "__main__":
    sys.exit(main())
