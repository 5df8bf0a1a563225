"""The registry: bundles copied whole to an address that stays, and verdicts in their manifests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import fsspec
import msgspec
import pytest

from export import bundle as bundles
from export import registry
from export.bundle import FILES, MANIFEST_FILE
from export.errors import BundleRefused
from tests.unit.bundles import unsaved

GATE = {"promoted": False, "reasons": ["at 8-15 shots"]}


@pytest.fixture
def source(tmp_path: Path) -> str:
    """The address of a bundle that was trained somewhere."""
    bundles.save(unsaved(tmp_path), str(tmp_path / "trained"))
    return str(tmp_path / "trained")


def test_a_bundle_is_copied_under_its_version(source: str, tmp_path: Path) -> None:
    """The copy has an absolute address, loads as the same version, and outlives its source."""
    address = registry.put(source, str(tmp_path / "models"))
    manifest = bundles.load(source).manifest
    assert address == str(tmp_path / "models" / manifest.version)
    bundles.save(unsaved(tmp_path / "trained"), str(tmp_path / "other"))
    assert bundles.load(address).manifest == manifest
    assert sorted(p.name for p in Path(address).iterdir()) == sorted([*FILES, MANIFEST_FILE])
    assert [p.name for p in Path(address).parent.iterdir()] == [manifest.version]


def test_a_relative_registry_is_the_same_place_for_every_worker(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is published names the place, wherever the command was run."""
    monkeypatch.chdir(tmp_path)
    assert registry.put(source, "models").startswith(str(tmp_path / "models"))


def test_an_object_store_gets_the_manifest_last(source: str, tmp_path: Path) -> None:
    """On another file system the address keeps its protocol and the bundle loads from there."""
    address = registry.put(source, "memory://registry/films/")
    version = bundles.load(source).manifest.version
    assert address == f"memory://registry/films/{version}"
    assert bundles.load(address, cache=tmp_path / "cache").manifest.version == version
    registry.put_gate(address, GATE)
    assert bundles.load(address, cache=tmp_path / "cache").manifest.gate == GATE


def test_what_lies_there_already_is_not_written_again(source: str, tmp_path: Path) -> None:
    """A second copy leaves the files alone and takes over the newer verdict."""
    address = registry.put(source, str(tmp_path / "models"))
    before = {name: (Path(address) / name).stat().st_ino for name in FILES}
    registry.put_gate(source, GATE)
    assert registry.put(source, str(tmp_path / "models")) == address
    assert {name: (Path(address) / name).stat().st_ino for name in FILES} == before
    assert bundles.load(address).manifest.gate == GATE


@pytest.mark.parametrize("registry_url", ["models", "memory://damaged"])
def test_a_damaged_copy_is_replaced(source: str, tmp_path: Path, registry_url: str) -> None:
    """A copy that was cut short is written anew, so that a rollback finds it whole."""
    local = registry_url == "models"
    address = registry.put(source, str(tmp_path / "models") if local else registry_url)
    files, path = fsspec.core.url_to_fs(address)
    files.pipe_file(f"{path}/items.safetensors", b"short")
    assert registry.put(source, address.rsplit("/", 1)[0]) == address
    bundles.load(address, cache=tmp_path / "cache")


def test_a_verdict_changes_neither_version_nor_hashes(source: str) -> None:
    """The manifest with a verdict differs from the one before in the verdict alone."""
    path = Path(source) / MANIFEST_FILE
    before = json.loads(path.read_text())
    path.write_text(json.dumps({**before, "from_a_later_release": 1}))
    registry.put_gate(source, GATE)
    assert json.loads(path.read_text()) == {**before, "gate": GATE, "from_a_later_release": 1}
    assert bundles.load(source).manifest.gate == GATE
    assert [p.name for p in Path(source).iterdir() if p.name.startswith(".")] == []


def test_a_new_version_comes_without_a_verdict(source: str, tmp_path: Path) -> None:
    """A bundle that is derived from a judged one has to be judged itself; a moved one keeps it."""
    registry.put_gate(source, GATE)
    judged = bundles.load(source)
    moved = bundles.save(judged, str(tmp_path / "moved"))
    assert moved.manifest == judged.manifest
    manifest = msgspec.structs.replace(judged.manifest, version="", name="smaller")
    derived = bundles.save(replace(judged, manifest=manifest), str(tmp_path / "derived"))
    assert derived.manifest.gate is None


def test_a_damaged_source_is_not_published(source: str, tmp_path: Path) -> None:
    """A bundle whose file was changed is refused, and nothing appears in the registry."""
    (Path(source) / "tokenizer.json").write_text("[]")
    with pytest.raises(BundleRefused, match="tokenizer"):
        registry.put(source, str(tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_a_verdict_cannot_be_written_to_nothing(tmp_path: Path) -> None:
    """A folder that is no bundle is refused, not made into one."""
    with pytest.raises(BundleRefused):
        registry.put_gate(str(tmp_path), GATE)
    assert not (tmp_path / MANIFEST_FILE).exists()
