"""`innerloop train --experts-only`: the model stays, the experts' weights follow the stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import Result

from stream import bundles
from stream.commands import train
from stream.errors import BundleError, ConfigError, DataError
from tests.unit.small_training import DAY, home_of, invoke, said, small_bert

HALF = 1_400_000_000_000 + 5 * DAY
"""Time at which half of the log is over, ms."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data, a BERT, and `parent`, a model of the first half of the log."""
    with home_of(tmp_path_factory.mktemp("home")) as folder:
        made = run(folder, "parent", "--until", HALF, "--set", "learning.steps=20")
        assert made.exit_code == 0, made.output
        yield folder


def run(home: Path, out: str, *more: object, bert: str = "bert") -> Result:
    """`innerloop train` on the whole log."""
    return invoke(
        train.app,
        *("--events", home / "events.jsonl", "--items", home / "items.jsonl"),
        *("--out", home / out, "--backbone", home / bert, "--runs", home / "runs", *more),
    )


def test_the_model_stays_and_its_experts_are_fitted_anew(home: Path) -> None:
    """Tensors that training moves are the parent's, the weights are of what came after it."""
    result = run(home, "child", "--parent", home / "parent", "--experts-only")
    assert result.exit_code == 0, result.output
    parent, child = (bundles.load(str(home / name)) for name in ("parent", "child"))
    assert child.manifest.parent == parent.manifest.version
    assert child.manifest.window.last > parent.manifest.window.last
    assert child.manifest.metrics["training"]["steps"] == 0
    kept = [n for n in parent.meta.tensors if n.startswith("adapter.") or n == "item.text"]
    assert len(kept) > 3
    for name in kept:
        torch.testing.assert_close(child.meta[name], parent.meta[name], rtol=0, atol=0)
    assert not torch.equal(child.meta["expert_weight"], parent.meta["expert_weight"])
    known = (parent.items.id_rows >= 0) & (child.items.id_rows >= 0)
    assert parent.items.ids == child.items.ids
    assert known.sum() > 20
    before, after = (
        bundle.meta["item.id"][bundle.items.id_rows[known]] for bundle in (parent, child)
    )
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_without_a_parent_there_is_nothing_to_keep(home: Path) -> None:
    """Neither is a model of random weights made, nor one that the stream's events trained."""
    for more in ((), ("--parent", "none"), ("--parent", home / "parent", "--start", "base")):
        refused = said(run(home, "no", "--experts-only", *more))
        assert isinstance(refused, ConfigError)
        assert "no parent has weights to keep" in refused.detail
    assert not (home / "no").exists()


def test_another_backbone_is_refused(home: Path) -> None:
    """The parent's weights say nothing of its vectors."""
    small_bert(home / "other", layers=2)
    refused = said(
        run(home, "no", "--experts-only", "--parent", home / "parent", bert="other"),
    )
    assert isinstance(refused, BundleError)
    assert "another backbone" in refused.detail


def test_events_that_the_model_has_learned_from_are_refused(home: Path) -> None:
    """Its scores are too good there, and the weights would trust them too much."""
    early = ("--until", HALF - 2 * DAY)
    refused = said(run(home, "no", "--experts-only", "--parent", home / "parent", *early))
    assert isinstance(refused, DataError)
    assert "has learned from events" in refused.detail


@pytest.mark.parametrize("option", ["--budget", "--pretrain"])
def test_time_for_what_is_not_trained_is_refused(home: Path, option: str) -> None:
    """Rather than ignored."""
    refused = said(run(home, "no", "--experts-only", "--parent", home / "parent", option, "5m"))
    assert isinstance(refused, ConfigError)
    assert option in refused.detail
