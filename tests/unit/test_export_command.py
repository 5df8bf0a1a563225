"""`innerloop export`: from a bundle to a table and a bundle with another encoder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.bundle import Bundle
from export.parity import Probe
from stream import bundles, config, datasets, preparing
from stream.commands import evaluate, export, train
from stream.errors import BundleError
from stream.log import configure
from stream.messages import item_text
from tests.unit.small_training import home_of, invoke, said

VARIANTS = "fp32,fp16,int8-channels,int8-tokens"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A trained bundle with its data, and caches of their own."""
    folder = tmp_path_factory.mktemp("home")
    with home_of(folder):
        result = invoke(
            train.app,
            *("--events", folder / "events.jsonl", "--items", folder / "items.jsonl"),
            *("--out", folder / "model", "--budget", "1s", "--backbone", folder / "bert"),
        )
        assert result.exit_code == 0, result.output
        yield folder


@pytest.fixture(scope="module")
def exported(home: Path) -> Bundle:
    """`innerloop export` on events, with one 8-bit variant to choose."""
    result = invoke(
        export.app,
        *(home / "model", "--items", home / "items.jsonl", "--events", home / "events.jsonl"),
        *("--variants", "int8-tokens", "--budget", "100%", "--rounds", 1, "--out", home / "small"),
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].split()[:3] == ["variant", "MB", "speed"]
    assert f"to {home / 'small'}" in result.stderr
    return bundles.load(str(home / "small"))


def test_the_table_has_a_row_a_variant(home: Path) -> None:
    """Without events all figures but nDCG are there, fp32 loses nothing, no bundle is written."""
    result = invoke(
        export.app,
        *(home / "model", "--items", home / "items.jsonl", "--json", "--rounds", 1),
        *("--variants", VARIANTS),
    )
    assert result.exit_code == 0, result.output
    rows = {row["variant"]: row for row in json.loads(result.stdout)["variants"]}
    assert list(rows) == VARIANTS.split(",")
    assert rows["fp32"]["agreement"] > 0.99
    assert all(row["ndcg"] is None and row["speed"] > 0 for row in rows.values())
    assert rows["int8-tokens"]["size"] < rows["fp16"]["size"] < rows["fp32"]["size"]
    assert rows["int8-tokens"]["usable"]


def test_the_bundle_says_what_was_done(home: Path, exported: Bundle) -> None:
    """The manifest names variant, parent and figures; what training said stays."""
    parent = bundles.load(str(home / "model")).manifest
    manifest = exported.manifest
    assert (manifest.encoder.variant, manifest.encoder.kind) == ("int8-tokens", "int8")
    assert manifest.encoder.sha != parent.encoder.sha
    assert manifest.parent == parent.version
    assert manifest.version != parent.version
    figures = manifest.metrics["export"]
    assert figures["variant"] == manifest.encoder.variant
    assert set(figures["ndcg"]) == {"mean", "low", "high"}
    assert manifest.metrics["report"] == parent.metrics["report"]


def test_vectors_are_those_of_the_bundles_own_encoder(home: Path, exported: Bundle) -> None:
    """Items of the bundle, the probe, and whatever a worker encodes come from one encoder."""
    parent = bundles.load(str(home / "model"))
    encoder = bundles.encoder(exported, device="cpu", threads=1)
    films = datasets.read_items([str(home / "items.jsonl")], config.Messages())
    found = encoder.encode([item_text(film.fields) for film in films])
    np.testing.assert_allclose(exported.items.text, found, atol=1e-3)
    assert not np.allclose(exported.items.text, parent.items.text, atol=1e-3)
    assert np.array_equal(exported.items.content, parent.items.content)
    assert exported.probe.own is not None
    np.testing.assert_allclose(encoder.encode(exported.probe.texts), exported.probe.own, atol=1e-5)
    assert np.array_equal(exported.probe.vectors, parent.probe.vectors)


def test_an_item_that_is_not_at_hand_is_encoded_when_it_comes(home: Path) -> None:
    """Without its message an item keeps its vector as evidence, and no hash that would pin it."""
    some = home / "some.jsonl"
    some.write_text("\n".join((home / "items.jsonl").read_text().splitlines()[:40]))
    result = invoke(
        export.app,
        *(home / "model", "--items", some, "--rounds", 1, "--budget", "100%"),
        *("--variants", "fp16", "--out", home / "partly"),
    )
    assert result.exit_code == 0, result.output
    made, parent = bundles.load(str(home / "partly")), bundles.load(str(home / "model"))
    assert (made.items.content[:40] == parent.items.content[:40]).all()
    assert (made.items.content[40:] == 0).all()
    assert np.array_equal(made.items.text[40:], parent.items.text[40:])


def test_an_exported_bundle_is_served_like_any_other(home: Path, exported: Bundle) -> None:
    """`evaluate` reads it, encodes with its encoder, and prints its table."""
    result = invoke(
        evaluate.app,
        *("--bundle", home / "small", "--events", home / "events.jsonl"),
        *("--items", home / "items.jsonl", "--positions", 50),
    )
    assert result.exit_code == 0, result.output
    assert f"model {exported.manifest.version}" in result.stdout


def test_the_log_says_what_encodes_and_where(
    exported: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundle at work names the variant of its encoder and the provider it runs on, if asked."""
    configure(config.Log(format="json"))
    preparing.opened(config.Settings(), exported).say()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if "{" in line]
    (line,) = [line for line in lines if line["event"] == "encoder"]
    assert (line["variant"], line["provider"]) == ("int8-tokens", "CPUExecutionProvider")


def test_an_encoder_that_says_something_else_here_is_refused(home: Path) -> None:
    """Where the probe is not reproduced the bundle is refused, with what to do."""
    bundle = bundles.load(str(home / "model"))
    turned = np.roll(bundle.probe.vectors, 1, 0)
    other = replace(bundle, probe=Probe(texts=bundle.probe.texts, vectors=turned))
    with pytest.raises(BundleError, match="on this machine") as caught:
        bundles.encoder(other, device="cpu", threads=1)
    assert "fp32" in str(caught.value)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--variants", "int3"), "no variant 'int3'"),
        (("--budget", "much"), "no share"),
        (("--budget", "120%"), "no share"),
        (("--items", "missing.jsonl"), "missing.jsonl"),
        (("--variants", "heads-6"), "6 heads of 2"),
        (("--variants", "layers-3"), "3 layers of 1"),
        (("--recovery", "soon"), "no duration"),
        (("--from", "yesterday"), "no time"),
    ],
)
def test_mistakes_are_one_clear_line(home: Path, changed: tuple[str, str], message: str) -> None:
    """Every mistake names what is wrong, on one line, with a non-zero exit."""
    options = {"--items": str(home / "items.jsonl"), "--rounds": "1", "--variants": "fp32"}
    name, value = changed
    options[name] = str(home / value) if name == "--items" else value
    result = invoke(export.app, home / "model", *(x for pair in options.items() for x in pair))
    error = said(result)
    assert message in str(error)
    assert "\n" not in str(error)
    assert error.exit_code != 0


def test_a_variant_is_no_ground_for_another(home: Path) -> None:
    """What was quantised cannot be quantised again: the remedy names the parent."""
    arguments = ("--items", home / "items.jsonl", "--rounds", 1, "--variants", "fp16")
    result = invoke(
        export.app, home / "model", *arguments, "--budget", "100%", "--out", home / "half"
    )
    assert result.exit_code == 0, result.output
    made = bundles.load(str(home / "half")).manifest
    error = said(invoke(export.app, home / "half", *arguments))
    assert "the variant fp16 already" in str(error)
    assert str(made.parent) in str(error)
