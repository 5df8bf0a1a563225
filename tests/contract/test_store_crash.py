"""kill -9 of a process that writes to a store: what is there belongs to its offset."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stream.store import Identity, SharedResources, Store, open_store

IDENTITY = Identity(cluster="c", state_topic="s", signals_topic="g")

WRITER = """
import random, sys
from pathlib import Path
from stream.ports import Put
from stream.store import SharedResources, open_store
from tests.contract.test_store_crash import IDENTITY

store = open_store(Path(sys.argv[1]), 0, IDENTITY, SharedResources(8, 8))
restored_at = int(sys.argv[2])
for offset in range(100_000):
    if offset == restored_at:
        store.restored()
    puts = [Put(b"u%d" % i, b"%d " % offset + random.randbytes(3_000)) for i in range(50)]
    store.apply([*puts, Put(b"c%d" % offset, b"x")], {"state": offset})
    print(offset, flush=True)
"""


def killed(folder: Path, after: int, restored_at: int) -> int:
    """A process that writes and dies once it has said `after`: the last offset it spoke of."""
    command = [sys.executable, "-c", WRITER, str(folder), str(restored_at)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= after:
                process.kill()
                break
        rest = process.stdout.read().splitlines()
    return int([line, *(r for r in rest if r)][-1])


def found(folder: Path) -> Store:
    """The store as the next process finds it."""
    return open_store(folder, 0, IDENTITY, SharedResources(8, 8))


@pytest.mark.parametrize("after", [3, 60, 250])
def test_a_crash_while_restoring_loses_records_with_their_offsets(
    tmp_path: Path, after: int
) -> None:
    """An offset is never there without all the records up to it; what is missing is read again."""
    written = killed(tmp_path, after, restored_at=-1)
    store = found(tmp_path)
    offset = store.offset("state")
    assert -1 <= offset <= written + 1
    assert len(list(store.scan(b"c"))) == offset + 1
    users = [value.split(b" ")[0] for _, value in store.scan(b"u")]
    assert users == [b"%d" % offset] * (50 if offset >= 0 else 0)
    store.close()


@pytest.mark.parametrize(("after", "restored_at"), [(3, 0), (60, 55), (61, 60), (250, 200)])
def test_a_crash_after_the_restore_loses_nothing(
    tmp_path: Path, after: int, restored_at: int
) -> None:
    """Once restored, what was applied is there, and so is all that the restore applied."""
    written = killed(tmp_path, after, restored_at)
    store = found(tmp_path)
    offset = store.offset("state")
    assert written <= offset <= written + 1
    assert len(list(store.scan(b"c"))) == offset + 1
    store.close()
