"""Promote, canary, withdraw and roll back against a real broker, as the command line does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import orjson
import pytest
from click.testing import Result

from adapters.types import Meta
from export.bundle import MANIFEST_FILE, Bundle
from stream import bundles, inspection, promoting, succession, topics
from stream.commands import models, promote, rollback, withdraw
from stream.config import Settings
from stream.errors import BundleError, GateRefused, InnerloopError, Overtaken, ReleaseError
from stream.inspection import records
from stream.kafka.producer import TransactionalProducer
from stream.log import configure
from stream.messages import schema
from stream.progress import Reporter
from stream.promoting import Promotion
from stream.releases import Release
from stream.succession import Asked, Standing
from stream.testing_worker import NOW, click
from tests.integration.world import FILMS, Topics
from tests.unit.small_training import invoke, said

Make = Callable[..., str]


@pytest.fixture
def settings(kafka_settings: Settings, tmp_path: Path) -> Settings:
    """Topics of this test, and a registry of its own."""
    topics.create(kafka_settings)
    model = kafka_settings.model.model_copy(update={"registry": str(tmp_path / "registry")})
    return kafka_settings.model_copy(update={"model": model})


@pytest.fixture
def make(bundle: Path, tmp_path: Path) -> Make:
    """Saves another version of the small model: with a verdict against a champion, changed."""

    def made(
        name: str,
        against: str | None = None,
        *,
        passed: bool | None = True,
        change: Callable[[Bundle], Bundle] = lambda same: same,
    ) -> str:
        loaded = change(bundles.load(str(bundle)))
        manifest = msgspec.structs.replace(loaded.manifest, name=name, version="")
        address = str(tmp_path / name)
        saved = bundles.save(replace(loaded, manifest=manifest), address)
        gate = {"promoted": passed, "reasons": [] if passed else ["at 0 shots"]}
        if passed is not None:
            bundles.put_gate(address, {**gate, "champion": against})
        return saved.manifest.version

    return made


class Line:
    """The command line over the topics of one test."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        kafka = settings.kafka
        self.folder = folder
        self._settings = settings
        self._flags = [
            *("--bootstrap-servers", kafka.bootstrap_servers, "--prefix", kafka.prefix),
            *("--set", f"model.registry={settings.model.registry}"),
        ]

    def promote(self, name: str, *more: object) -> Result:
        """`innerloop promote` of a bundle that `make` saved."""
        return self.run(promote.app, self.folder / name, *more)

    def run(self, app: object, *arguments: object) -> Result:
        """Any command."""
        return invoke(app, *arguments, *self._flags)

    def refused(self, result: Result, kind: type[InnerloopError]) -> str:
        """The one line that a command ended with."""
        error = said(result)
        assert isinstance(error, kind)
        assert len(str(error).splitlines()) == 1
        return str(error)

    def standing(self) -> Standing:
        """What `models` says now."""
        return inspection.standing(self._settings)

    def champion(self) -> Release:
        """Which model serves now."""
        found = self.standing().champion
        assert found is not None
        return found


@pytest.fixture
def line(settings: Settings, tmp_path: Path) -> Line:
    """The command line."""
    return Line(settings, tmp_path)


def ok(result: Result) -> str:
    """What a command that went well has printed."""
    assert result.exit_code == 0, result.output
    return result.stdout


def test_from_the_first_model_to_a_rollback_of_a_rollback(
    line: Line, make: Make, settings: Settings
) -> None:
    """First, gate, rollback, rollback: the records say so, satisfy the schema and can be read."""
    a = make("a")
    assert f"{a} is the champion (first)" in ok(line.promote("a"))
    b = make("b", against=a)
    assert f"the champion before: {a}" in ok(line.promote("b")).splitlines()[-1]
    ok(line.run(rollback.app, "--reason", "clicks fell"))
    ok(line.run(rollback.app))
    found = [orjson.loads(r.value) for r in records(settings, "models") if r.value]
    assert [x["version"] for x in found] == [a, b, a, b]
    assert [x["reason"] for x in found] == ["first", "gate", "rollback", "rollback"]
    assert [x["parent"] and x["parent"]["version"] for x in found] == [None, a, b, a]
    assert [x["note"] for x in found] == [None, None, "clicks fell", None]
    for one in found:
        jsonschema.Draft202012Validator(schema("model")).validate(one)
        assert bundles.load(one["bundle"]).manifest.version == one["version"]
        assert one["gate"]["promoted"]
    assert all(r.partition == 0 for r in records(settings, "models"))


def test_a_canary_is_promoted_or_withdrawn(line: Line, make: Make) -> None:
    """It serves its share until then; the table of models shows it beside the champion."""
    a = make("a")
    b = make("b", against=a)
    ok(line.promote("a"))
    told = ok(line.promote("b", "--canary", "5%"))
    assert f"{b} is the challenger of 5% of the users (canary)" in told
    shown = ok(line.run(models.app))
    assert [row.split()[:3] for row in shown.splitlines()[1:]] == [
        ["champion", a, "100%"],
        ["challenger", b, "5%"],
    ]
    assert f"{b} is withdrawn" in ok(line.run(withdraw.app))
    assert line.standing().challenger is None
    ok(line.promote("b", "--canary", "0.1"))
    ok(line.run(promote.app, "--challenger"))
    found = json.loads(ok(line.run(models.app, "--json")))
    assert (found["champion"]["version"], found["challenger"]) == (b, None)
    assert found["champion"]["reason"] == "gate"
    assert [x["version"] for x in found["before"]] == [a]


def test_online_figures_are_printed_with_the_promotion(
    line: Line, make: Make, tmp_path: Path
) -> None:
    """What the monitor counted of both models' users stands above the new champion."""
    a = make("a")
    b = make("b", against=a)
    ok(line.promote("a"))
    ok(line.promote("b", "--canary", "5%"))
    rates = tmp_path / "rates.json"
    rates.write_text(json.dumps({a: [0.1, 0.3] * 50, b: [0.2, 0.2] * 20}))
    told = ok(line.run(promote.app, "--challenger", "--online", rates))
    assert "online: the challenger is level with the champion" in told
    assert f"{b} is the champion" in told


def test_what_the_gate_refused_needs_force(line: Line, make: Make) -> None:
    """Exit 9 with the cohort; forced, the words and the verdict stay visible."""
    a = make("a")
    make("b", against=a, passed=False)
    ok(line.promote("a"))
    assert "at 0 shots" in line.refused(line.promote("b"), GateRefused)
    assert GateRefused.exit_code == 9
    ok(line.promote("b", "--force", "--reason", "an outage"))
    found = line.champion()
    assert (found.reason, found.note) == ("forced", "an outage")
    assert found.gate is not None
    assert found.gate["reasons"] == ["at 0 shots"]
    assert "forced: an outage" in ok(line.run(models.app))


def test_what_nobody_judged_is_refused(line: Line, make: Make) -> None:
    """Without a verdict, or with one against another champion; forced, it says `not judged`."""
    a = make("a")
    make("b", passed=None)
    make("c", against="somebody else")
    told = line.refused(line.promote("b"), ReleaseError)
    assert "not judged on any slice" in told
    ok(line.promote("a"))
    for name in ("b", "c"):
        told = line.refused(line.promote(name), ReleaseError)
        assert f"not judged against the champion {a}" in told
        assert "--from-kafka" in told
    ok(line.promote("b", "--force", "--reason", "the slice is empty"))
    assert "not judged" in ok(line.run(models.app))


def other_half_lives(same: Bundle) -> Bundle:
    """Counters that decay otherwise."""
    config = replace(same.meta.config, half_lives=(3_600.0, 7_200.0, 9_000.0))
    manifest = msgspec.structs.replace(same.manifest, config=config.to_dict())
    return replace(same, meta=Meta(config, same.meta.tensors), manifest=manifest)


def other_counters(same: Bundle) -> Bundle:
    """Counters that end an hour later."""
    prior = replace(same.items.prior, time=same.items.prior.time + 3_600)
    return replace(same, items=replace(same.items, prior=prior))


@pytest.mark.parametrize(
    ("change", "named"),
    [(other_half_lives, "half_lives"), (other_counters, "twice or never")],
)
def test_what_the_workers_counted_has_to_fit(
    line: Line, make: Make, change: Callable[[Bundle], Bundle], named: str
) -> None:
    """Other signals than the champion's are refused, and --force does not help."""
    a = make("a")
    make("b", against=a, change=change)
    ok(line.promote("a"))
    for more in ((), ("--force", "--reason", "no")):
        assert named in line.refused(line.promote("b", *more), ReleaseError)
    assert line.champion().version == a


def test_the_same_version_and_damaged_bundles_are_refused(
    line: Line, make: Make, tmp_path: Path
) -> None:
    """The champion itself, a half-written folder, a newer format: one line each."""
    a = make("a")
    ok(line.promote("a"))
    assert "champion already" in line.refused(line.promote("a"), ReleaseError)
    make("b", against=a)
    path = tmp_path / "b" / MANIFEST_FILE
    whole = path.read_text()
    path.write_text(json.dumps({**json.loads(whole), "format_version": 99}))
    assert "format 99" in line.refused(line.promote("b"), BundleError)
    path.unlink()
    assert "half-written" in line.refused(line.promote("b"), BundleError)


def test_a_rollback_needs_a_parent_that_can_be_read(
    line: Line, make: Make, settings: Settings
) -> None:
    """Nothing promoted, the first model, and a damaged parent: the champion stays each time."""
    assert "no model" in line.refused(line.run(rollback.app), ReleaseError)
    assert "no model has been promoted yet" in ok(line.run(models.app))
    a = make("a")
    ok(line.promote("a"))
    assert "the first one" in line.refused(line.run(rollback.app), ReleaseError)
    b = make("b", against=a)
    ok(line.promote("b"))
    (Path(settings.model.registry) / a / "meta.safetensors").write_bytes(b"short")
    assert "meta.safetensors" in line.refused(line.run(rollback.app), BundleError)
    assert line.champion().version == b


def test_a_champion_that_was_lost_can_be_replaced_by_force(
    line: Line, make: Make, settings: Settings
) -> None:
    """Nothing can be compared with it any more; who insists is let through, and it is recorded."""
    a = make("a")
    make("b", against=a, passed=None)
    ok(line.promote("a"))
    (Path(settings.model.registry) / a / MANIFEST_FILE).unlink()
    told = line.refused(line.promote("b"), BundleError)
    assert f"the champion {a} cannot be read" in told
    ok(line.promote("b", "--force", "--reason", "the bucket is gone"))


def test_of_two_promotions_at_once_one_is_told(line: Line, make: Make, settings: Settings) -> None:
    """Both have seen the same champion: the broker fences the one that began first."""
    configure(settings.log)  # the commands of other tests have left a closed standard error

    def publish(name: str) -> None:
        asked = Promotion(bundle=str(line.folder / name), settings=settings)
        promoting.promote(asked, Reporter(), lambda gate: None)

    def overtaken() -> Standing:
        found = line.standing()
        publish("c")
        return found

    a = make("a")
    publish("a")
    b, c = make("b", against=a), make("c", against=a)
    seen, topic = line.standing(), settings.kafka.topic("models")
    model = succession.ModelRef(version=b, bundle=str(line.folder / "b"))
    change = succession.promotion(seen, model, {"promoted": True}, Asked(at=1))
    own = f"{settings.kafka.group_id}-models"
    with closing(TransactionalProducer(settings, own)) as producer, pytest.raises(Overtaken):
        succession.publish(producer, topic, change, seen, overtaken)
    assert line.champion().version == c
    with pytest.raises(ReleaseError, match="not judged against"):
        publish("b")


def test_a_slice_of_the_topics_is_judged_on(line: Line, make: Make, settings: Settings) -> None:
    """An untrained model is held against the baselines on the topics, and refused with figures.

    The verdict is in its manifest; nothing is published until it is forced, with the same verdict.
    """
    rng = np.random.default_rng(0)
    acts = [
        click(f"user-{user}", FILMS[film].item, NOW + place * 3_600.0 + user)
        for user in range(40)
        for place, film in enumerate(rng.permutation(len(FILMS))[:24])
    ]
    with closing(Topics(settings)) as platform:
        platform.send(*FILMS, *acts)
    a = make("a", passed=None)
    judged = line.promote("a", "--from-kafka")
    assert "recency popularity" in judged.stdout
    assert "predictions" in judged.stdout
    error = said(judged)
    found: dict[str, Any] | None = bundles.load(str(line.folder / "a")).manifest.gate
    assert found is not None
    assert (found["challenger"], found["champion"]) == (a, None)
    assert found["slice"]["events"] == [settings.kafka.topic("events")]
    assert found["cohorts"][0]["positions"] > 500
    assert isinstance(error, GateRefused)
    assert line.standing().champion is None
    ok(line.promote("a", "--force", "--reason", "a first model is better than none"))
    champion = line.champion()
    assert (champion.reason, champion.gate) == ("forced", found)
