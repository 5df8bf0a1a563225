"""Bundles: what is saved is what is loaded, and nothing damaged is ever loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import fsspec
import msgspec
import numpy as np
import pytest
import torch

from export import bundle as bundles
from export.bundle import FILES, MANIFEST_FILE, Bundle
from export.bundle_tensors import Items, read_items, write_items
from export.errors import BundleRefused
from tests.unit.bundles import CONFIG, unsaved


@pytest.fixture
def made(tmp_path: Path) -> Bundle:
    """A bundle that has not been saved yet."""
    return unsaved(tmp_path)


def same(one: Items, other: Items) -> bool:
    """Whether all columns are equal."""
    columns = ("content", "text", "attributes", "id_rows", "dense")
    priors = ("time", "counts", "neighbour_items", "neighbour_weights", "returns")
    return (
        one.ids == other.ids
        and one.dense_field == other.dense_field
        and all(np.array_equal(getattr(one, c), getattr(other, c)) for c in columns)
        and all(np.array_equal(getattr(one.prior, c), getattr(other.prior, c)) for c in priors)
    )


def test_a_saved_bundle_loads_unchanged(made: Bundle, tmp_path: Path) -> None:
    """Saving and loading gives the same manifest, tensors, items, probe and encoder files."""
    saved = bundles.save(made, str(tmp_path / "out"))
    loaded = bundles.load(str(tmp_path / "out"))
    assert loaded.manifest == saved.manifest
    assert loaded.meta.config == CONFIG
    assert torch.equal(loaded.meta["W"], made.meta["W"])
    assert same(loaded.items, made.items)
    assert loaded.probe.texts == made.probe.texts
    assert loaded.encoder == saved.encoder
    assert loaded.encoder.model.read_bytes() == made.encoder.model.read_bytes()


def test_items_of_before_know_nothing_of_returns(made: Bundle, tmp_path: Path) -> None:
    """A bundle that did not count who comes back to its items is read."""
    old = replace(made.items, prior=replace(made.items.prior, returns=None))
    write_items(old, tmp_path / "items.safetensors")
    assert read_items(tmp_path / "items.safetensors").prior.returns is None
    short = replace(made.items.prior, returns=np.zeros((2, 2), np.float32))
    write_items(replace(made.items, prior=short), tmp_path / "short.safetensors")
    with pytest.raises(BundleRefused, match="different lengths"):
        read_items(tmp_path / "short.safetensors")


def test_versions_sort_by_creation_and_depend_on_content(made: Bundle, tmp_path: Path) -> None:
    """A later bundle has a larger version; the same content at the same time has the same one."""
    one = bundles.save(made, str(tmp_path / "a")).manifest.version
    again = bundles.save(made, str(tmp_path / "b")).manifest.version
    later = msgspec.structs.replace(made.manifest, created="2026-11-03T14:00:01+01:00")
    other = bundles.save(replace(made, manifest=later), str(tmp_path / "c")).manifest.version
    assert one == again
    assert one < other
    assert one.startswith("20261103T120000Z-")


def test_a_moved_bundle_keeps_its_version(made: Bundle, tmp_path: Path) -> None:
    """A bundle that is loaded and saved elsewhere stays the same version."""
    one = bundles.save(made, str(tmp_path / "a"))
    two = bundles.save(bundles.load(str(tmp_path / "a")), str(tmp_path / "b"))
    assert one.manifest == two.manifest


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_refused(made: Bundle, tmp_path: Path, name: str) -> None:
    """One flipped bit in any file is found before anything is read from it."""
    bundles.save(made, str(tmp_path / "out"))
    path = tmp_path / "out" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleRefused, match=f"{name} is not what the manifest says"):
        bundles.load(str(tmp_path / "out"))


def test_a_file_that_is_cut_short_is_refused(made: Bundle, tmp_path: Path) -> None:
    """A truncated file is named as such."""
    bundles.save(made, str(tmp_path / "out"))
    path = tmp_path / "out" / "items.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BundleRefused, match="cut short"):
        bundles.load(str(tmp_path / "out"))


@pytest.mark.parametrize("name", [MANIFEST_FILE, "meta.safetensors"])
def test_a_half_written_bundle_is_refused(made: Bundle, tmp_path: Path, name: str) -> None:
    """A missing file or manifest is said to be a half-written bundle."""
    bundles.save(made, str(tmp_path / "out"))
    (tmp_path / "out" / name).unlink()
    with pytest.raises(BundleRefused, match="half-written"):
        bundles.load(str(tmp_path / "out"))


def test_a_newer_format_is_refused_with_the_remedy(made: Bundle, tmp_path: Path) -> None:
    """A bundle of a later release asks for that release, whatever else its manifest holds."""
    bundles.save(made, str(tmp_path / "out"))
    path = tmp_path / "out" / MANIFEST_FILE
    path.write_text(json.dumps({"format_version": 99, "anything": "else"}))
    with pytest.raises(BundleRefused, match="format 99") as caught:
        bundles.load(str(tmp_path / "out"))
    assert "newer release" in caught.value.remedy


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format_version": 1}', '{"format_version": "one"}', "\x00\xff"]
)
def test_a_manifest_that_is_none_is_refused(made: Bundle, tmp_path: Path, text: str) -> None:
    """Whatever stands in the manifest's place, loading ends in a refusal."""
    bundles.save(made, str(tmp_path / "out"))
    (tmp_path / "out" / MANIFEST_FILE).write_text(text, encoding="latin-1")
    with pytest.raises(BundleRefused):
        bundles.load(str(tmp_path / "out"))


def test_a_manifest_cannot_name_files_elsewhere(made: Bundle, tmp_path: Path) -> None:
    """A manifest that names other files than a bundle's own is refused."""
    bundles.save(made, str(tmp_path / "out"))
    path = tmp_path / "out" / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    manifest["files"]["../secret"] = manifest["files"].pop("encoder.onnx")
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleRefused, match="does not name the files"):
        bundles.load(str(tmp_path / "out"))


def test_no_bundle_without_parity(made: Bundle, tmp_path: Path) -> None:
    """A bundle whose encoder failed the parity check is not written."""
    bad = msgspec.structs.replace(made.manifest.parity, agreement=0.77)
    manifest = msgspec.structs.replace(made.manifest, parity=bad)
    with pytest.raises(BundleRefused, match="differs"):
        bundles.save(replace(made, manifest=manifest), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_saving_replaces_a_bundle_and_nothing_else(made: Bundle, tmp_path: Path) -> None:
    """An older bundle is replaced whole; a folder with anything else in it is left alone."""
    out = tmp_path / "out"
    bundles.save(made, str(out))
    (out / "left-over").write_text("old")
    bundles.save(made, str(out))
    assert sorted(p.name for p in out.iterdir()) == sorted([*FILES, MANIFEST_FILE])
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("dear")
    with pytest.raises(BundleRefused, match="no bundle"):
        bundles.save(made, str(home))
    assert [p.name for p in home.iterdir()] == ["thesis.txt"]


def test_a_failed_write_leaves_the_old_bundle(made: Bundle, tmp_path: Path) -> None:
    """When writing fails, what was there still loads and no temporary folder stays behind."""
    out = tmp_path / "home" / "out"
    version = bundles.save(made, str(out)).manifest.version
    gone = replace(made, encoder=replace(made.encoder, model=tmp_path / "missing"))
    with pytest.raises(BundleRefused, match="cannot be written"):
        bundles.save(gone, str(out))
    assert bundles.load(str(out)).manifest.version == version
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_an_object_store_works_like_a_folder(made: Bundle, tmp_path: Path) -> None:
    """Another file system gets the manifest last; loading copies to the cache and verifies."""
    url = "memory://models/films"
    saved = bundles.save(made, url)
    loaded = bundles.load(url, cache=tmp_path / "cache")
    assert loaded.manifest == saved.manifest
    assert loaded.encoder.model.parent == tmp_path / "cache" / saved.manifest.version
    assert bundles.load(url, cache=tmp_path / "cache").manifest == saved.manifest
    files = fsspec.filesystem("memory")
    files.pipe_file("/models/films/encoder.onnx", b"short")
    with pytest.raises(BundleRefused, match="cut short"):
        bundles.load(url, cache=tmp_path / "other")
    files.rm_file(f"/models/films/{MANIFEST_FILE}")
    with pytest.raises(BundleRefused, match="half-written"):
        bundles.load(url, cache=tmp_path / "other")


@pytest.mark.parametrize("url", ["/nowhere/at/all", "nonsense://bucket/x"])
def test_an_address_without_a_bundle_is_refused(url: str) -> None:
    """A missing folder and an unknown protocol are refused with a sentence, not a traceback."""
    with pytest.raises(BundleRefused):
        bundles.load(url)
