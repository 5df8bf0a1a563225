"""The tools for the one on call, beside a worker that runs, and after it has stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from typer.testing import CliRunner

from export import bundle as bundles
from stream import assembly, topics
from stream.config import Settings, load
from stream.dead_letters import RESENT
from stream.errors import InnerloopError
from stream.inspection import stored_record
from stream.kafka.producer import BulkProducer
from stream.message_encoding import encode
from stream.ports import Put
from stream.store import SharedResources, open_store
from stream.testing_worker import NOW, click
from stream.user_layout import copied
from stream.user_state import Layout, user_key
from tests.integration.world import FILMS, Topics, Worker, eventually

SWIPE = encode(click("ada", "h1", NOW, action="swipe"))
USERS = ("ada", "bob", "carl", "dora")


@dataclass(frozen=True)
class World:
    """Topics with traffic in them, and the worker that serves them."""

    settings: Settings
    topics: Topics
    worker: Worker
    bundle: Path

    def run(self, command: str, *arguments: str) -> tuple[int, str]:
        """Exit code and output of a command, as `innerloop` gives them."""
        kafka = self.settings.kafka
        where = ["-b", kafka.bootstrap_servers, "--prefix", kafka.prefix]
        app = import_module(f"stream.commands.{command.replace('-', '_')}").app
        result = CliRunner().invoke(app, [*arguments, *where])
        if isinstance(result.exception, InnerloopError):
            return result.exception.exit_code, str(result.exception)
        assert isinstance(result.exception, SystemExit | None), result.output
        return result.exit_code, result.output

    def table(self) -> list[dict[str, Any]]:
        """What `dead-letters list --json` says."""
        code, text = self.run("dead-letters", "list", "--json")
        assert code == 0
        return [orjson.loads(line) for line in text.splitlines()]

    def send_raw(self, role: str, key: bytes, value: bytes | None) -> None:
        """Any bytes to the partition of the key."""
        producer = BulkProducer(self.settings)
        producer.produce(self.settings.kafka.topic(role), key, value)
        producer.flush()
        producer.close()


@pytest.fixture(scope="module")
def world(broker: str, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Four users who have clicked, two events that were refused, and a worker that goes on."""
    changes = {
        "kafka.bootstrap_servers": broker,
        "kafka.prefix": f"oncall-{time.time_ns():x}.",
        "kafka.partitions": 2,
        "kafka.session_timeout_ms": 3_000,
    }
    settings = load(None, changes)
    topics.create(settings)
    own = Topics(settings)
    own.send(*FILMS)
    with Worker(settings, bundle, tmp_path_factory.mktemp("oncall") / "state") as worker:
        made = World(settings, own, worker, bundle)
        made.send_raw("events", b"ada", SWIPE)
        made.send_raw("events", b"bob", b"\xff\xfe\x1b[2J")
        clicks = [
            click(user, f"{kind}{n}", NOW + 10 * n)
            for user, kind in zip(USERS, "hhcs", strict=True)
            for n in range(5)
        ]
        own.send(*clicks)
        worker.wait_until_ready()
        own.learned(*clicks[4::5])
        yield made
    own.close()


# -- one user -----------------------------------------------------------------------------------


def test_inspect_shows_the_last_list(world: World) -> None:
    """With titles, and with the event that caused it; --json has the whole of it."""
    code, text = world.run("inspect", "ada", "--bundle", str(world.bundle))
    assert code == 0
    assert "last list      20 items" in text
    assert "caused by event ada-h4" in text
    found = orjson.loads(world.run("inspect", "ada", "--json")[1])
    assert [entry["rank"] for entry in found["list"]["items"]] == list(range(1, 21))


def test_explain_shows_the_top_of_the_list_and_its_causes(world: World) -> None:
    """A line for each item: what moved it most, and which event speaks for it, with its title."""
    code, text = world.run("explain", "ada", "--bundle", str(world.bundle), "--top", "3")
    assert code == 0
    head, columns, *rows = text.splitlines()
    assert head.startswith("user ada: 5 shots; adapted list of ")
    assert columns.split()[:3] == ["place", "score", "item"]
    assert len(rows) == 3
    listed = [entry["item"] for entry in world.topics.lists("ada")[-1]["items"]]
    assert all(f"({name})" in row for name, row in zip(listed, rows, strict=False))


def test_explain_takes_an_item_apart(world: World) -> None:
    """Experts add up to the score that was published; every event of the user has its effect."""
    best = world.topics.lists("ada")[-1]["items"][0]
    flags = ("ada", best["item"], "--bundle", str(world.bundle))
    code, text = world.run("explain", *flags)
    assert code == 0
    assert "by relevance, score" in text
    assert "covisit_stream" in text
    assert "click +1.00  Night of the Haunted House" in text
    found = orjson.loads(world.run("explain", *flags, "--json")[1])["items"][0]
    assert sum(part["adds"] for part in found["parts"]) == pytest.approx(best["score"], abs=1e-3)
    assert {event["item"] for event in found["events"]} == {f"h{n}" for n in range(5)}


def test_explain_names_what_it_does_not_know(world: World) -> None:
    """An unknown user, an unknown item and a missing bundle give one line each."""
    bundle = ("--bundle", str(world.bundle))
    code, text = world.run("explain", "eve", *bundle)
    assert (code, "eve has no record" in text) == (1, True)
    code, text = world.run("explain", "ada", "h99", *bundle)
    assert (code, "h99" in text) == (1, True)
    code, text = world.run("explain", "ada")
    assert (code, "innerloop train" in text) == (5, True)


# -- replay, with the worker running ------------------------------------------------------------


def test_replay_proves_state_beside_a_running_worker(world: World) -> None:
    """All records follow from the log, and what is restored is the changelog byte for byte."""
    code, text = world.run("replay", "--from-events", "--bundle", str(world.bundle))
    assert code == 0, text
    assert "adapters compared: 4" in text
    assert text.splitlines()[-1] == "replay --from-events: 4 users, agree"
    code, text = world.run("replay", "--verify")
    assert code == 0, text
    assert text.splitlines()[-1].startswith("replay --verify: 2 partitions, ")
    assert text.splitlines()[-1].endswith(" records, byte-identical")


def test_replay_refuses_what_it_cannot_do(world: World) -> None:
    """The folder of a running worker is locked; one of two things has to be chosen."""
    code, text = world.run("replay", "--verify", "--state-dir", str(world.worker.state))
    assert (code, "Stop that worker" in text) == (6, True)
    code, text = world.run("replay")
    assert (code, "--from-events" in text) == (2, True)


# -- dead letters -------------------------------------------------------------------------------


def test_dead_letters_are_listed_and_shown_without_harm(world: World) -> None:
    """Reason, origin and key in a table; the payload without control characters, or raw."""
    code, text = world.run("dead-letters", "list")
    assert code == 0
    assert "2 dead letters: " in text
    assert f"{world.settings.kafka.topic('events')}[" in text
    letter = next(x for x in world.table() if x["reason"] == "not_utf8")
    code, text = world.run("dead-letters", "show", letter["place"])
    assert code == 0
    assert "not_utf8" in text
    assert "ff fe 1b 5b 32 4a" in text
    assert "\x1b" not in text
    assert world.run("dead-letters", "show", "0:999999")[0] == 1
    assert (
        len(world.run("dead-letters", "list", "--reason", "not_utf8", "--json")[1].split("\n")) == 2
    )


def test_a_dead_letter_is_sent_back_once(world: World) -> None:
    """The same bytes under the same key, with a header; a second run leaves it alone."""
    (letter,) = (x for x in world.table() if x["reason"] == "unknown_action")
    code, text = world.run("dead-letters", "send-back", "--reason", "unknown_action")
    assert code == 0
    assert text.splitlines()[-1] == "sent back: 1 of 1 dead letters"
    again = next(r for r in world.topics.records("events", 0.5) if dict(r.headers).get(RESENT))
    assert (again.key, again.value) == (b"ada", SWIPE)
    assert dict(again.headers) == {RESENT: letter["place"].encode()}
    eventually(lambda: len(world.table()) == 3)  # nothing has changed: it is refused once more
    assert {x["place"]: x["sent_back"] for x in world.table()}[letter["place"]]
    code, text = world.run("dead-letters", "send-back", letter["place"])
    assert (code, "sent back: 0 of 1" in text) == (0, True)
    code, text = world.run("dead-letters", "send-back", letter["place"], "--again")
    assert (code, "sent back: 1 of 1" in text) == (0, True)
    code, text = world.run("dead-letters", "send-back")
    assert (code, "--reason" in text) == (2, True)


# -- forget -------------------------------------------------------------------------------------


def test_forget_waits_until_the_record_is_gone(world: World) -> None:
    """The null is seen on `state`, the list is withdrawn, and nothing is known any more."""
    code, text = world.run("forget", "dora", "--wait")
    assert code == 0, text
    assert "the record is gone" in text.splitlines()[-1]
    assert world.run("inspect", "dora")[0] == 1
    assert stored_record(world.settings, "dora", "recommendations").value is None
    assert world.run("forget", "_cold")[0] == 2
    code, text = world.run("replay", "--from-events", "--bundle", str(world.bundle))
    assert (code, text.splitlines()[-1]) == (0, "replay --from-events: 3 users, agree")


# -- after the worker has stopped ---------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(world: World) -> World:
    """The same world without a worker."""
    world.worker.terminate()
    return world


def test_nobody_erases_without_a_worker(stopped: World) -> None:
    """Waiting ends with a line that says what to look for."""
    code, text = stopped.run("forget", "carl", "--wait", "--timeout", "0.2")
    assert code == 1
    assert "Check that a worker serves" in text


def test_the_store_of_a_stopped_worker_is_verified(stopped: World, tmp_path: Path) -> None:
    """Byte by byte; one record that was changed on the disk fails it and is named."""
    folder = stopped.worker.state
    code, text = stopped.run("replay", "--verify", "--state-dir", str(folder))
    assert code == 0, text
    assert f"equal: restored, {folder}" in text
    where = stored_record(stopped.settings, "bob")
    identity = assembly.store_identity(stopped.settings)
    store = open_store(folder, where.partition, identity, SharedResources(8, 8))
    (value,) = store.get_many([user_key(b"bob")])
    assert value == where.value
    store.apply([Put(user_key(b"bob"), value[:-1] + b"\x7f")], {})
    store.close()
    code, text = stopped.run("replay", "--verify", "--state-dir", str(folder))
    assert code == 1
    assert "user bob: changelog" in text
    assert text.splitlines()[-1].endswith("1 keys differ")


def test_a_record_that_was_tampered_with_fails_the_replay(stopped: World) -> None:
    """Who writes to `state` by hand is found out: one shot more than the log knows."""
    layout = Layout.of(bundles.load(str(stopped.bundle)).meta.config)
    value = stored_record(stopped.settings, "bob").value
    records = copied(layout.decode([value]))
    records["shots"] += np.uint64(1)
    stopped.send_raw("state", b"bob", layout.encode(records)[0])
    code, text = stopped.run("replay", "--from-events", "--bundle", str(stopped.bundle))
    assert code == 1
    assert "user bob: shots: the log says 5, state 6" in text
    assert text.splitlines()[-1] == "replay --from-events: 3 users, 1 differ"
