"""`innerloop train` with a backbone of its own: pretrained or tuned, to a bundle like any other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters import backbone
from export.bundle import Bundle
from stream import bundles, config, recipes
from stream.commands import train
from stream.errors import ConfigError, DataError
from stream.message_checks import Limits
from stream.messages import item_text, read_item
from stream.training_backbone import FIGURES_FILE, item_texts
from tests.unit.small_training import home_of, invoke, said

NOISE = ["red", "blue", "green", "white", "gold", "dog", "cat", "cow", "pig", "fox", "owl", "bee"]
NOISE += ["one", "two", "three", "rain", "snow", "wind", "sun", "moon", "sea", "hill", "tree"]
OTHERS = ("spring", "summer", "autumn", "winter")
STEPS = ("--set", "learning.steps=20", "--set", "learning.batch=16")


def bury_themes(folder: Path) -> None:
    """Put the word of each title that says what the film is about among eight that say nothing.

    In `misleading.jsonl` one of the eight is the category, and what people like is not.
    """
    rng, path = np.random.default_rng(0), folder / "items.jsonl"
    films = [json.loads(line) for line in path.read_text().splitlines()]
    false = []
    for row, film in enumerate(films):
        title, category = film["fields"]
        words, other = rng.choice(NOISE, 8).tolist(), OTHERS[row // 4 % 4]
        title["value"] = " ".join([*words[:4], category["value"][0], *words[4:]])
        fields = [{**title, "value": f"{other} {title['value']}"}, {**category, "value": [other]}]
        false.append({**film, "fields": fields})
    path.write_text("\n".join(map(json.dumps, films)))
    (folder / "misleading.jsonl").write_text("\n".join(map(json.dumps, false)))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data of enough users to judge a backbone by, a small BERT of two layers, and caches."""
    with home_of(tmp_path_factory.mktemp("home"), users=900, layers=2) as made:
        bury_themes(made)
        yield made


@pytest.fixture(scope="module")
def small_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same with fewer users."""
    with home_of(tmp_path_factory.mktemp("home"), layers=2) as made:
        bury_themes(made)
        yield made


def options(home: Path, name: str, *more: str) -> list[str]:
    """What to train on, and where to."""
    return [
        *("--events", str(home / "events.jsonl"), "--items", str(home / "items.jsonl")),
        *(
            "--out",
            str(home / name),
            "--backbone",
            str(home / "bert"),
            "--runs",
            str(home / "runs"),
        ),
        *("--name", name, *STEPS, *more),
    ]


def the_run(home: Path, name: str) -> Path:
    """The folder of the run with this name."""
    (folder,) = (home / "runs").glob(f"{name}-2*")
    return folder


def trained(home: Path, name: str, *more: str) -> tuple[Bundle, Path, str]:
    """A training from files to a bundle: the bundle, the folder of the run, what was said."""
    result = invoke(train.app, *options(home, name, *more))
    assert result.exit_code == 0, result.output
    return bundles.load(str(home / name)), the_run(home, name), result.stderr


def figures(run: Path) -> Any:
    """What became of pretraining."""
    return json.loads((run / "metrics.json").read_text())["backbone"]["pretrained"]


def texts(path: Path) -> list[str]:
    """What the backbone reads of each item of a file."""
    limits = Limits.of(config.Messages(), 0)
    items = [read_item(line.encode(), limits) for line in path.read_text().splitlines()]
    return [item_text(item.fields) for item in items]


def serves(bundle: Bundle, folder: Path, items: Path) -> None:
    """The bundle's encoder, its items and its probe say what the BERT in `folder` says."""
    bert = backbone.load(folder)
    assert bundle.encoder.sha == bundle.manifest.encoder.sha == bert.sha
    expected = backbone.encode(bert, bundle.probe.texts).numpy()
    vectors = bundles.encoder(bundle, device="cpu").encode(bundle.probe.texts)
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    np.testing.assert_allclose(bundle.probe.vectors, expected, atol=1e-6)
    own = backbone.encode(bert, texts(items)).numpy()
    np.testing.assert_allclose(bundle.items.text, own, atol=2e-3)


@pytest.mark.parametrize("kind", ["lora", "last_layers"])
def test_a_tuned_backbone_is_what_the_bundle_serves(small_home: Path, kind: str) -> None:
    """Vectors of encoder, items and probe are those of the tuned weights, and not of the old."""
    bundle, run, _ = trained(small_home, kind, "--set", f"learning.tune_backbone={kind}")
    serves(bundle, run / "tuned", small_home / "items.jsonl")
    old = backbone.encode(backbone.load(small_home / "bert"), bundle.probe.texts).numpy()
    assert np.abs(bundle.probe.vectors - old).max() > 1e-5
    assert not any(name.startswith("backbone.") for name in bundle.meta.tensors)
    assert bundle.manifest.parity.max_difference < 1e-4
    assert bundle.manifest.metrics["backbone"] == {"tuned": kind}


HELPS = (
    *("--pretrain", "60s", "--set", "learning.pretrain_steps=150"),
    *("--set", "learning.pretrain_rate=0.003"),
)


@pytest.fixture(scope="module")
def further(home: Path) -> tuple[Bundle, Path, str]:
    """A training whose backbone learned from the items' texts first."""
    return trained(home, "further", *HELPS)


def test_a_pretrained_backbone_that_helps_is_kept(
    home: Path, further: tuple[Bundle, Path, str]
) -> None:
    """Its vectors find more of what held-out users took next; the bundle serves it, and says so.

    A run that goes on takes it as it is.
    """
    bundle, run, told = further
    found = figures(run)
    assert found["kept"], found
    assert found["validation_loss"] < found["loss_before"]
    assert found["check"]["ahead"]["low"] > 0
    assert "it is kept" in told
    serves(bundle, run / "pretrained", home / "items.jsonl")
    assert bundle.manifest.metrics["backbone"]["pretrained"]["kept"] is True
    result = invoke(train.app, *options(home, "further", *HELPS), "--resume", run)
    assert result.exit_code == 0, result.output
    assert "pretrain the backbone" not in result.stderr
    assert bundles.load(str(home / "further")).encoder.sha == bundle.encoder.sha


def test_a_backbone_made_worse_is_not_kept(home: Path, further: tuple[Bundle, Path, str]) -> None:
    """Where categories lead a backbone away from what people like, the bundle serves the old one.

    A run that goes on does not pretrain again.
    """
    good, items = further[1] / "pretrained", home / "misleading.jsonl"
    worse = (*HELPS, "--backbone", str(good), "--items", str(items))
    bundle, run, told = trained(home, "worse", *worse)
    found = figures(run)
    assert not found["kept"]
    assert found["validation_loss"] < found["loss_before"]
    assert found["check"]["ahead"]["high"] < 0
    assert "not clearly better, so the backbone stays as it was" in told
    assert not (run / "pretrained").exists()
    serves(bundle, good, items)
    before = (run / FIGURES_FILE).stat().st_mtime_ns
    result = invoke(train.app, *options(home, "worse", *worse), "--resume", run)
    assert result.exit_code == 0, result.output
    assert "pretrain the backbone" not in result.stderr
    assert (run / FIGURES_FILE).stat().st_mtime_ns == before
    assert bundles.load(str(home / "worse")).encoder.sha == bundle.encoder.sha


def test_a_backbone_whose_vectors_became_alike_is_not_kept(small_home: Path) -> None:
    """One that tells no item from another ends no training: the old one serves."""
    more = ("--set", "learning.pretrain_steps=5", "--set", "learning.pretrain_rate=1")
    bundle, run, told = trained(small_home, "alike", *more)
    assert not figures(run)["kept"]
    assert "the backbone stays as it was" in told
    serves(bundle, small_home / "bert", small_home / "items.jsonl")


def test_titles_and_the_rest_are_told_apart() -> None:
    """The title is one side of a pair, all other text of the item the other."""
    fields = b"""[{"name": "title", "value": "Alien"}, {"name": "category", "value": ["Horror"]},
        {"name": "year", "value": 1979}, {"name": "plot", "value": "In space."}]"""
    value = b'{"event": "item", "id": "1", "timestamp": 0, "item": "a", "fields": %s}' % fields
    sides = item_texts([read_item(value, Limits.of(config.Messages(), 0))])
    assert (sides.titles, sides.rests) == (["Alien"], ["Horror. In space"])
    assert sides.whole == ["Alien. Horror. In space"]


def test_settings_say_what_is_trained() -> None:
    """Without settings nothing is; `off` may be written as YAML reads it."""
    plain = config.Learning()
    assert (recipes.pretraining(plain), recipes.tuning(plain)) == (None, None)
    assert config.load(None, {"learning.tune_backbone": False}).learning == plain
    asked = config.Learning(
        pretrain_steps=7, pretrain_rate=1e-4, tune_backbone="lora", tune_layers=2, tune_rank=3
    )
    further, tuned = recipes.pretraining(asked), recipes.tuning(asked)
    assert further is not None
    assert tuned is not None
    assert (further.steps, further.budget_s, further.learning_rate) == (7, None, 1e-4)
    assert (tuned.kind, tuned.layers, tuned.rank) == ("lora", 2, 3)


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        (("learning.tune_backbone=all",), ConfigError, "learning.tune_backbone"),
        (
            ("learning.tune_backbone=lora", "learning.item_features=id"),
            ConfigError,
            "tune_backbone trains texts",
        ),
        (("learning.tune_backbone=lora", "learning.tune_layers=3"), DataError, "tune_layers"),
        (("learning.pretrain_s=0",), ConfigError, "learning.pretrain_s"),
        (
            ("learning.pretrain_steps=9", "learning.pretrain_rate=1e30"),
            ConfigError,
            "learning.pretrain_rate",
        ),
    ],
)
def test_mistakes_are_one_clear_line(
    small_home: Path, more: tuple[str, ...], kind: type[Exception], message: str
) -> None:
    """What cannot be trained is named with the setting to change, and leaves no bundle."""
    flags = [part for setting in more for part in ("--set", setting)]
    error = said(invoke(train.app, *options(small_home, "mistake", *flags)))
    assert isinstance(error, kind)
    assert message in str(error)
    assert "\n" not in str(error)
    assert not (small_home / "mistake").exists()


def test_a_duration_that_is_none_is_refused(small_home: Path) -> None:
    """`--pretrain` wants a time such as 5m."""
    result = invoke(train.app, *options(small_home, "mistake", "--pretrain", "much"))
    assert "no duration" in str(said(result))
