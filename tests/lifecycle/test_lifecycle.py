"""What `make lifecycle` judges by: reigns, the spoiled model, and when a run counts as passed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson

from benchmarks.freshness import Freshness, Span
from stream import bundles
from stream.ports import Record
from stream.releases import Release
from tests.chaos.checker import Verdict
from tests.lifecycle.commands import spoil
from tests.lifecycle.reigns import Reign, strays
from tests.lifecycle.result import Change, Judged, Result

REIGNS = [Reign(version="a", start=10.0, end=21.0), Reign(version="b", start=20.0, end=30.0)]


def made(version: str, at: float) -> Record:
    """A list of a model at a time in seconds."""
    value = orjson.dumps({"model_version": version})
    return Record(
        topic="r", partition=0, offset=int(at), key=b"u", value=value, timestamp=int(1000 * at)
    )


def test_a_list_by_a_model_that_did_not_serve_is_a_stray() -> None:
    """Both may answer while workers change over; before and after it only one of them."""
    right = [made("a", 10.0), made("a", 20.5), made("b", 20.5), made("b", 29.0)]
    wrong = [made("b", 19.0), made("a", 22.0), made("c", 25.0)]
    found = list(strays([*right, *wrong], REIGNS))
    assert [f"recommendations[0]:{n}: by {v}" for n, v in ((19, "b"), (22, "a"), (25, "c"))] == [
        sentence.partition(",")[0] for sentence in found
    ]


def test_the_spoiled_model_is_a_sound_bundle_with_other_weights(
    bundle: Path, tmp_path: Path
) -> None:
    """It loads, has a version of its own and no verdict; its tensors hold the same numbers."""
    version = spoil(str(bundle), str(tmp_path / "spoiled"))
    good, bad = bundles.load(str(bundle)), bundles.load(str(tmp_path / "spoiled"))
    assert bad.manifest.version == version != good.manifest.version
    assert bad.manifest.gate is None
    assert bad.manifest.counted_from == good.manifest.counted_from
    moved = 0
    for name, tensor in good.meta.tensors.items():
        assert tensor.flatten().sort().values.equal(bad.meta[name].flatten().sort().values)
        moved += not tensor.equal(bad.meta[name])
    assert moved > 3


def release(version: str) -> Release:
    """A champion."""
    return Release(role="champion", version=version, bundle="x", reason="gate", published_at=1)


def fresh(p99: float) -> Freshness:
    """Ages of some lists."""
    return Freshness(span=Span(name="x", start=0, end=1), lists=9, p50=p99 / 2, p99=p99)


def good() -> Result:
    """A run in which everything held."""
    verdict = Verdict(
        events=9,
        users=3,
        lists=9,
        lost=(),
        repeated=(),
        regressions=(),
        longest_wait=0.0,
        waiting_share=0.0,
    )
    gates = ({"promoted": True, "cohorts": []}, {"promoted": False, "cohorts": []})
    change = Change(before=fresh(0.02), during=fresh(0.05), after=fresh(0.03))
    return Result(
        releases=tuple(release(version) for version in ("v1", "v2", "v3", "v2")),
        judged=tuple(Judged(name=str(n), gate=gate) for n, gate in enumerate(gates)),
        changes=(change, replace(change, during=fresh(0.04)), change),
        migrated=1_234,
        verdict=verdict,
        strays=(),
        troubles=(),
    )


def test_the_last_line_has_every_figure() -> None:
    """Versions by letter, so that a way back shows; the worst p99 of all changes."""
    assert good().line() == (
        "versions A -> B -> C -> B, gate promoted 1 refused 1, "
        "freshness p99 before/during/after 20/50/30 ms, users migrated 1,234: "
        "lost 0, repeated 0, regressions 0"
    )


def test_a_run_passes_only_if_all_of_it_held() -> None:
    """Each thing that may be amiss is enough to fail it."""
    run = good()
    assert run.passed
    assert not replace(run, strays=("one",)).passed
    assert not replace(run, troubles=("one",)).passed
    assert not replace(run, migrated=0).passed
    assert not replace(run, judged=run.judged[:1]).passed
    assert not replace(run, judged=run.judged[1:]).passed
    assert not replace(run, changes=run.changes[:2]).passed
    assert not replace(run, verdict=replace(run.verdict, lost=("one",))).passed
