"""`innerloop train` and `innerloop evaluate`, from files to a bundle and a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from adapters.episodes import make_log
from stream import bundles, config, run_folder, training
from stream.commands import evaluate, train
from stream.errors import ConfigError, DataError
from stream.training import Request
from stream.training_data import FromKafka
from stream.vector_file import FileVectors
from tests.unit.small_training import DAY, home_of, invoke, said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data, a small BERT and caches of their own."""
    with home_of(tmp_path_factory.mktemp("home")) as folder:
        yield folder


@pytest.fixture(scope="module")
def trained(home: Path) -> Result:
    """`innerloop train`, once."""
    return invoke(
        train.app,
        *("--events", home / "events.jsonl", "--items", home / "items.jsonl"),
        *("--out", home / "model", "--budget", "3s", "--backbone", home / "bert"),
        *("--runs", home / "runs", "--name", "themes"),
    )


def test_training_prints_the_table_and_says_where(trained: Result, home: Path) -> None:
    """The table names the model and the baselines; the phases go by on standard error."""
    assert trained.exit_code == 0, trained.output
    for words in ("nDCG", "adapted", "recency popularity", "item-kNN", "nDCG@10"):
        assert words in trained.stdout
    for phase in ("export the backbone", "encode items", "meta-train", "fit the experts"):
        assert f"{phase}" in trained.stderr
    version = bundles.load(str(home / "model")).manifest.version
    assert f"saved {version} to {home / 'model'}" in trained.stdout


def test_the_bundle_is_complete(trained: Result, home: Path) -> None:
    """The bundle names its data, its parity and its figures, and its encoder runs."""
    bundle = bundles.load(str(home / "model"))
    manifest = bundle.manifest
    assert (manifest.name, manifest.window.users, manifest.window.items) == ("themes", 100, 80)
    assert manifest.window.events == 1_200
    assert manifest.parity.max_difference < 1e-4
    assert manifest.actions["click"]["weight"] == 1.0
    assert manifest.metrics["training"]["steps"] > 0
    assert bundle.items.ids[0] == "film-0"
    assert bundle.items.prior.time > manifest.window.last
    assert set(bundle.meta.tensors) >= {"item.text", "step_scale", "expert_weight"}
    vectors = bundles.encoder(bundle, device="cpu").encode(bundle.probe.texts)
    np.testing.assert_allclose(vectors, bundle.probe.vectors, atol=1e-4)


def test_curves_and_figures_are_kept(trained: Result, home: Path) -> None:
    """Every run has a folder: curves, settings, data window, figures, time of phases, memory."""
    (folder,) = (home / "runs").iterdir()
    assert folder.name.startswith("themes-")
    assert list(folder.glob("events.out.tfevents.*"))
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["version"] == bundles.load(str(home / "model")).manifest.version
    assert figures["seconds"]["all"] >= figures["seconds"]["meta-train the inner loop"] > 0
    assert figures["peak_memory_mb"] > 100
    assert "MB of memory" in trained.stderr
    assert config.load(folder / "config.yaml").learning == config.Learning()
    about = json.loads((folder / "run.json").read_text())
    assert (about["interactions"], about["users"], about["seed"]) == (1_200, 100, 0)
    assert about["first"].startswith("2014-05-1")
    assert run_folder.resume(folder).step == figures["training"]["steps"]


def test_a_second_encoding_is_warm(trained: Result, home: Path) -> None:
    """Vectors are kept by content and encoder; a damaged file of them is left aside."""
    encoder = bundles.load(str(home / "model")).encoder
    kept = FileVectors(encoder.sha, encoder.dim)
    items = bundles.load(str(home / "model")).items
    assert all(vector is not None for vector in kept.get_many(items.content))
    kept.path.write_bytes(b"junk")
    assert FileVectors(encoder.sha, encoder.dim).get_many(items.content[:1]) == [None]


def test_evaluation_repeats_the_test_of_training(trained: Result, home: Path) -> None:
    """On the files of training, evaluate measures the part that was kept for the test."""
    arguments = ("--bundle", home / "model", "--events", home / "events.jsonl")
    result = invoke(evaluate.app, *arguments, "--items", home / "items.jsonl", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    variants = {row["variant"] for row in found["rows"] if row["cohort"] == "all"}
    assert variants >= {"adapted", "steps off", "popularity"}
    table = invoke(evaluate.app, *arguments, "--items", home / "items.jsonl")
    assert table.stdout.startswith("model 20")
    assert " popularity by " in table.stdout


def test_evaluation_takes_every_option_of_the_protocol(
    trained: Result, home: Path, tmp_path: Path
) -> None:
    """Options reach the figures, and the JSON says which they were; the picture is drawn."""
    result = invoke(
        evaluate.app,
        *("--bundle", home / "model", "--events", home / "events.jsonl"),
        *("--items", home / "items.jsonl", "--json", "--horizon", 1, "--positions", 60),
        *("--label-delay", 3_600, "--partitions", 4, "--signal-delay", 5, "--rebuilt"),
        *("--diversity", 0.5, "--repeats", "--picture", tmp_path / "shots.svg"),
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["protocol"] == {
        "from": None,
        "positions": 60,
        "horizon": 1,
        "repeats": True,
        "label_delay": 3_600.0,
        "partitions": 4,
        "signal_delay": 5.0,
    }
    rows = {row["variant"]: row for row in found["rows"] if row["cohort"] == "all"}
    assert set(rows) >= {"adapted", "rebuilt", "diversity 0.5", "repeat", "experts only"}
    assert rows["adapted"]["positions"] == 60
    assert set(rows["adapted"]["figures"]) >= {"ndcg@10", "mrr@20", "novelty", "miscalibration"}
    assert (tmp_path / "shots.svg").read_text().startswith("<?xml")


def test_all_positions_count_unless_fewer_are_asked_for(trained: Result, home: Path) -> None:
    """By default every event with a later positive is judged, those of trained users too."""
    result = invoke(
        evaluate.app,
        *("--bundle", home / "model", "--events", home / "events.jsonl"),
        *("--items", home / "items.jsonl", "--json", "--from", "1970-01-01T00:00:00Z"),
    )
    rows = json.loads(result.stdout)["rows"]
    assert {row["positions"] for row in rows if row["cohort"] == "all"} == {1_200}
    assert "figures are too good" in result.stderr


def test_evaluation_may_begin_anywhere(trained: Result, home: Path) -> None:
    """`--from` after the last event leaves nothing to measure, and says so."""
    result = invoke(
        evaluate.app,
        *("--bundle", home / "model", "--events", home / "events.jsonl"),
        *("--items", home / "items.jsonl", "--from", "2030-01-01T00:00:00Z"),
    )
    assert "nothing to measure" in said(result).detail


def test_a_log_of_later_events_alone_keeps_what_the_bundle_knows(
    trained: Result, home: Path
) -> None:
    """Co-visitation of training counts from the first list on, of users nobody has met."""
    later = home / "later.jsonl"
    events = [json.loads(line) for line in (home / "events.jsonl").read_text().splitlines()]
    for event in events:
        event |= {"timestamp": event["timestamp"] + 20 * DAY, "user": f"new-{event['user']}"}
    later.write_text("\n".join(map(json.dumps, events)))
    result = invoke(
        evaluate.app,
        *("--bundle", home / "model", "--events", later),
        *("--items", home / "items.jsonl", "--json", "--positions", 200),
    )
    rows = {r["variant"]: r for r in json.loads(result.stdout)["rows"] if r["cohort"] == "all"}
    assert rows["item-kNN"]["ndcg"]["mean"] > 1.5 * rows["popularity"]["ndcg"]["mean"]


@pytest.mark.parametrize("picture", ["shots.txt", "nowhere/shots.svg"])
def test_a_picture_that_cannot_be_drawn_is_refused_at_once(home: Path, picture: str) -> None:
    """A wrong ending or folder is told before anything is read."""
    result = invoke(
        evaluate.app, "--bundle", home, "-e", "x", "-i", "x", "--picture", home / picture
    )
    assert picture.split("/")[0] in said(result).detail


def test_a_bundle_that_is_none_is_one_line(home: Path) -> None:
    """Evaluating a folder without a bundle names the folder and the remedy."""
    result = invoke(
        evaluate.app, "--bundle", home, "--events", home / "events.jsonl", "--items", "x"
    )
    assert "no manifest.json" in str(said(result))
    assert said(result).exit_code == 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--events": "missing.jsonl"}, "missing.jsonl"),
        ({"--items": "missing.jsonl"}, "missing.jsonl"),
        ({"--events": "few.jsonl"}, "too few"),
        ({"--events": "bad.jsonl"}, "bad.jsonl line 2"),
        ({"--items": "others.jsonl"}, "same item ids"),
        ({"--backbone": "nowhere"}, "config.json"),
        ({"--out": "items.jsonl"}, "no bundle"),
        ({"--budget": "soon"}, "no duration"),
        ({"--until": "yesterday"}, "no time"),
    ],
)
def test_mistakes_are_one_clear_line(
    trained: Result, home: Path, changed: dict[str, str], message: str
) -> None:
    """Every mistake names what is wrong, on one line, with a non-zero exit."""
    lines = (home / "events.jsonl").read_text().splitlines()
    (home / "few.jsonl").write_text("\n".join(lines[:50]))
    (home / "bad.jsonl").write_text("\n".join([lines[0], "{", *lines]))
    (home / "others.jsonl").write_text((home / "items.jsonl").read_text().replace("film-", "x-"))
    options = {
        "--events": str(home / "events.jsonl"),
        "--items": str(home / "items.jsonl"),
        "--out": str(home / "other"),
        "--backbone": str(home / "bert"),
        "--runs": str(home / "more-runs"),
        "--budget": "1s",
    }
    names = {k: v if k in ("--budget", "--until") else str(home / v) for k, v in changed.items()}
    flat = [part for pair in (options | names).items() for part in pair]
    result = invoke(train.app, *flat)
    error = said(result)
    assert message in str(error)
    assert "\n" not in str(error)
    assert error.exit_code != 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--from-kafka", "--events", "x"), "--from-kafka reads no files"),
        (("--events", "x", "--items", "x", "--window", "3d"), "--window is that of a topic"),
        (("--from-kafka", "--window", "soon"), "'soon' is no duration"),
        (("--items", "x"), "--events is missing"),
        (("--events", "x"), "--items is missing"),
    ],
)
def test_files_or_topics_are_named(given: tuple[str, ...], message: str) -> None:
    """Both, neither, or an option of the other kind: the option is named, before any reading."""
    error = said(invoke(train.app, *given, "--out", "x"))
    assert message in str(error)
    assert error.exit_code == 2


def test_durations_have_units() -> None:
    """Seconds, minutes, hours, days and bare numbers are understood; nothing else is."""
    given = ("30s", "5m", "1h", "2d", "500ms", "12")
    assert [train.parse_duration(text) for text in given] == [30, 300, 3_600, 172_800, 0.5, 12]
    for text in ("", "s", "-3s", "0", "1w", "nan"):
        with pytest.raises(ConfigError, match="no duration"):
            train.parse_duration(text)


def test_cuts_leave_later_users_out_of_training() -> None:
    """Cuts lie on buckets, in order; whoever first appears after the first cut is held out."""
    users = np.repeat(np.arange(50), 4)
    times = np.sort(np.random.default_rng(0).uniform(0, 1e6, 200))
    log = make_log(users, users % 7, users * 0, users * 0 + 1.0, times)
    request = Request(events=(), items=(), out="", settings=config.Settings(), held_out=0.1)
    cuts = training.cut(log, 3_600.0, request)
    assert cuts.fit % 3_600 == 0
    assert 0 < cuts.fit < cuts.test < times[-1]
    early = set(log.users[log.times < cuts.fit].tolist())
    assert set(log.users.tolist()) - early <= set(cuts.held_out.tolist())
    with pytest.raises(DataError, match="too little time"):
        training.cut(make_log(users, users, users, users, times / 1e6), 3_600.0, request)


def test_a_training_from_kafka_leaves_its_whole_last_part_to_the_gate() -> None:
    """Of files the last 4,000 events are enough to measure on; of the topics it is a tenth."""
    events = 100_000
    users, times = np.arange(events) % 500, np.arange(events) * 600.0 + 1e9
    log = make_log(users, users, users * 0, users * 0 + 1, times)
    files = Request(out="", settings=config.Settings(), events=["a"], items=["b"])
    topics = replace(files, events=(), items=(), kafka=FromKafka())
    late = {
        name: float((times >= training.cut(log, 3_600.0, request).test).mean())
        for name, request in (("files", files), ("topics", topics))
    }
    assert late == pytest.approx({"files": 0.04, "topics": 0.1}, abs=1e-3)
