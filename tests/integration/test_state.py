"""State on a real broker: a store restored from its changelogs, and `innerloop inspect`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest
from typer.testing import CliRunner

from adapters.types import ModelConfig
from stream import topics
from stream.commands.inspect import app
from stream.config import Settings
from stream.errors import UnknownUser
from stream.kafka.admin import Admin
from stream.kafka.producer import TransactionalProducer
from stream.kafka.reader import LogReader
from stream.murmur2 import partition_of
from stream.ports import Message, TopicPartition
from stream.restore import Restore
from stream.store import Identity, SharedResources, open_store
from stream.user_state import Events, Layout, fold_events, hash_id

LAYOUT = Layout.of(ModelConfig())


@pytest.fixture
def changelogs(kafka_settings: Settings) -> dict[str, TopicPartition]:
    """Both changelogs of ann's partition, with her record, a counter and an aborted record."""
    topics.create(kafka_settings)
    kafka = kafka_settings.kafka
    partition = partition_of(b"ann", kafka.partitions)
    state, signals = (TopicPartition(kafka.topic(r), partition) for r in ("state", "signals"))
    producer = TransactionalProducer(kafka_settings, f"{kafka.prefix}worker")
    producer.init()
    producer.begin()
    producer.produce([Message(*state, b"ann", record()), Message(*signals, b"cfilm", b"counter")])
    producer.commit()
    producer.begin()
    producer.produce([Message(*state, b"ann", b"never committed")])
    producer.abort()
    producer.close()
    return {"state": state, "signals": signals}


def record() -> bytes:
    """Ann's record: one click."""
    one = np.array([[hash_id("film")]], np.uint64)
    events = Events(
        items=one,
        actions=np.zeros((1, 1), np.uint8),
        values=np.ones((1, 1), np.float32),
        times=np.array([[1_000]]),
        ids=one,
        mask=np.ones((1, 1), bool),
    )
    return LAYOUT.encode(fold_events(LAYOUT.decode([None]), events))[0]


def run(settings: Settings, *arguments: str) -> tuple[int, str]:
    """Exit code and output of `innerloop inspect`."""
    kafka = settings.kafka
    flags = ["-b", kafka.bootstrap_servers, "--prefix", kafka.prefix]
    result = CliRunner().invoke(app, [*arguments, *flags])
    if isinstance(result.exception, UnknownUser):
        raise result.exception
    return result.exit_code, result.output


def test_a_new_store_is_restored_from_the_broker(
    kafka_settings: Settings, changelogs: dict[str, TopicPartition], tmp_path: Path
) -> None:
    """Committed records come back byte by byte, aborted ones do not, and once is enough."""
    with Admin(kafka_settings.kafka) as admin:
        names = [tp.topic for tp in changelogs.values()]
        ids, cluster = admin.topic_ids(names), admin.cluster().id
    identity = Identity(
        cluster=cluster,
        state_topic=ids[changelogs["state"].topic],
        signals_topic=ids[changelogs["signals"].topic],
    )
    store = open_store(tmp_path, 0, identity, SharedResources(8, 8))
    reader = LogReader(kafka_settings.kafka)
    for expected in (2, 0):
        restore = Restore(reader, store, changelogs)
        while restore.step():
            pass
        assert restore.records == expected
        assert dict(store.scan(b"")) == {b"uann": record(), b"cfilm": b"counter"}
    reader.close()
    store.close()


@pytest.mark.usefixtures("changelogs")
def test_inspect_shows_a_user_and_knows_no_other(kafka_settings: Settings) -> None:
    """A known user is shown as text or JSON; an unknown one is an error that says so."""
    code, text = run(kafka_settings, "ann")
    assert code == 0
    assert "user ann: 1 shots, 1 items seen" in text
    code, text = run(kafka_settings, "ann", "--json")
    assert code == 0
    assert orjson.loads(text)["support"][0]["action"] == "click"
    with pytest.raises(UnknownUser, match="user eve has no record"):
        run(kafka_settings, "eve")
