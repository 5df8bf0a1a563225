"""A model is trained again on what the topics brought, and goes on from the champion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from export.bundle import Bundle
from stream import bundles, config, run_folder, topics, training
from stream.commands import load, train
from stream.kafka.producer import BulkProducer
from stream.message_types import Forget
from stream.releases import ModelRef, Release, encode_release
from stream.run_folder import CHECKPOINT
from stream.testing_worker import click, item
from tests import exports
from tests.integration.world import Topics
from tests.unit.small_training import invoke, said, small_bert, write_data

STEPS = 60
LAST = 1.4e9 + 10 * 86_400.0  # unix seconds behind all events of `write_data`
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class World:
    """Topics with a small log in them, and a folder for models."""

    settings: config.Settings
    home: Path

    def options(self, out: str) -> list[str]:
        """What to train on: a fixed number of small steps."""
        kafka = self.settings.kafka
        return [
            *("--from-kafka", "-b", kafka.bootstrap_servers, "--prefix", kafka.prefix),
            *("--window", "60d", "--out", str(self.home / out), "--name", out),
            *("--backbone", str(self.home / "bert"), "--runs", str(self.home / "runs")),
            *("--set", f"learning.steps={STEPS}", "--set", "learning.batch=16"),
        ]

    def train(self, out: str, *more: object) -> Bundle:
        """A model that was trained."""
        result = invoke(train.app, *self.options(out), *more)
        assert result.exit_code == 0, (result.output, result.exception)
        return bundles.load(str(self.home / out))

    def run(self, name: str) -> Path:
        """The folder of the run with this name."""
        (folder,) = (self.home / "runs").glob(f"{name}-*")
        return folder

    def promote(self, out: str) -> None:
        """Make a model the champion."""
        version = bundles.load(str(self.home / out)).manifest.version
        ref = ModelRef(version=version, bundle=str(self.home / out))
        release = Release(
            role="champion", version=ref.version, bundle=ref.bundle, reason="first", published_at=1
        )
        producer = BulkProducer(self.settings)
        producer.produce(self.settings.kafka.topic("models"), *encode_release(release))
        producer.flush()
        producer.close()

    def go_on(self) -> None:
        """A day later: users act, a new item appears, one is renamed, somebody is forgotten."""
        sender = Topics(self.settings)
        sender.send(item("new", "The new space film", category=["space"], at=LAST))
        sender.send(item("film-1", "Another wedding film", category=["wedding"], at=LAST))
        for n in range(60):
            names = ("new", f"film-{n}", f"film-{(n + 4) % 80}", f"film-{(n + 8) % 80}")
            at = LAST + n * 600
            sender.send(*(click(f"late-{n}", name, at + i) for i, name in enumerate(names)))
        sender.send(Forget(id="bye", timestamp=int(LAST * 1e3), user="user-7"))
        sender.close()


@pytest.fixture(scope="module")
def world(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A champion that was trained on the first ten days, and a log that has gone on since."""
    home = tmp_path_factory.mktemp("retraining")
    changes = {
        "kafka.bootstrap_servers": broker,
        "kafka.prefix": f"train-{time.time_ns():x}.",
        "kafka.partitions": 3,
    }
    made = World(config.load(None, changes), home)
    write_data(home)
    small_bert(home / "bert")
    exports.share(home / "cache" / "innerloop")
    topics.create(made.settings)
    with pytest.MonkeyPatch.context() as patch, training.one_thread():
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        for topic in ("items", "events"):
            where = made.options("x")[1:5]
            sent = invoke(load.app, home / f"{topic}.jsonl", "--topic", topic, *where)
            assert sent.exit_code == 0, sent.output
        made.train("first")
        made.promote("first")
        made.go_on()
        yield made


def test_the_first_model_counts_from_the_end_of_its_log(world: World) -> None:
    """Without a champion there is no parent; window, offsets and users held out are on record."""
    manifest = bundles.load(str(world.home / "first")).manifest
    assert manifest.parent is None
    assert manifest.counted_from is not None
    assert manifest.counted_from > manifest.window.last
    assert manifest.metrics["cuts"]["held_out_by"] == "hash"
    about = json.loads((world.run("first") / "run.json").read_text())
    assert about["window"]["length_s"] == 60 * 86_400
    assert sum(about["window"]["events"]["ends"]) == about["interactions"]


def test_a_model_goes_on_from_the_champion(world: World) -> None:
    """Counters are the champion's, its weights are where the outer loop began, the rest is new."""
    old = bundles.load(str(world.home / "first"))
    new = world.train("second", "--set", "learning.learning_rate=1e-9")
    assert new.manifest.parent == old.manifest.version
    assert new.manifest.counted_from == old.manifest.counted_from == new.items.prior.time
    row = {name: i for i, name in enumerate(new.items.ids)}
    same = [row[name] for name in old.items.ids]
    np.testing.assert_array_equal(new.items.prior.counts[same], old.items.prior.counts)
    assert not new.items.prior.counts[row["new"]].any()
    assert (new.items.prior.neighbour_items[row["new"]] >= 0).any()
    for name in ("adapter.write", "item.text", "adapter.action_input"):
        torch.testing.assert_close(new.meta[name], old.meta[name], atol=1e-5, rtol=1e-5)
    assert new.manifest.metrics["left_out"]["interactions"]["erased"] == 12


def test_a_model_may_begin_at_the_base(world: World) -> None:
    """Then the weights are new, and the counters go on all the same."""
    old = bundles.load(str(world.home / "first"))
    new = world.train("base", "--start", "base", "--set", "learning.learning_rate=1e-9")
    assert new.manifest.parent == old.manifest.version
    assert new.items.prior.time == old.items.prior.time
    assert (new.meta["adapter.write"] - old.meta["adapter.write"]).abs().max() > 0.01


def test_a_killed_retraining_goes_on_over_the_same_window(world: World) -> None:
    """After SIGKILL, with other items, events and a new champion meanwhile: the same model."""
    whole = world.train("whole")
    every_step = ("--set", "learning.checkpoint_s=0")
    command = [sys.executable, "-m", "stream", "train", *world.options("killed"), *every_step]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, env=dict(os.environ))
    while not list((world.home / "runs").glob(f"killed-*/{CHECKPOINT}")):
        assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()
    folder = world.run("killed")
    assert 0 < run_folder.read_checkpoint(folder / CHECKPOINT).facts["step"] < STEPS
    sender = Topics(world.settings)
    sender.send(*(click(f"user-{n}", "film-3", LAST + 1e6 + n) for n in range(50)))
    sender.send(item("film-2", "Renamed", at=LAST + 1e6), item("film-0", "Renamed", at=LAST))
    sender.close()
    world.promote("whole")
    again = world.train("killed", "--resume", folder)
    assert again.manifest.parent == whole.manifest.parent
    assert again.manifest.window == whole.manifest.window
    for name, tensor in again.meta.tensors.items():
        torch.testing.assert_close(tensor, whole.meta[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(again.items.prior.counts, whole.items.prior.counts)
    other = invoke(train.app, *world.options("killed"), "--resume", folder, "--window", "9d")
    assert "window was 5184000.0, now it is 777600.0" in str(said(other))


def test_a_parent_that_does_not_fit_is_refused(world: World) -> None:
    """Other dimensions, later events and a champion that there is not: one line with the remedy."""
    given = world.options("other")
    kind = invoke(train.app, *given, "--set", "learning.kind=gru")
    assert "cannot be gone on from: adapter." in str(said(kind))
    assert "--start base" in str(said(kind))
    early = invoke(train.app, *given, "--until", "2014-05-20T00:00:00Z")
    assert "has learned from events up to" in str(said(early))
    files = [f"{name}={world.home / name[2:]}.jsonl" for name in ("--events", "--items")]
    servers = world.settings.kafka.bootstrap_servers
    where = ("-b", servers, "--prefix", "nobody.", "--out", world.home / "other")
    nobody = ("--parent", "champion", *where)
    assert "nobody.models does not exist" in str(said(invoke(train.app, *files, *nobody)))
