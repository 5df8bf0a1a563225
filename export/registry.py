"""Bundles at an address that stays: each whole under its version, with the gate's verdict.

What serves is named by an address that every worker can read, and a rollback names an older one
again. So a bundle is copied to `registry/version` before it is published, and stays there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
from fsspec.implementations.local import LocalFileSystem

from export import bundle as bundles
from export.bundle import MANIFEST_FILE, Manifest
from export.errors import BundleRefused


def put(url: str, registry: str) -> str:
    """The address of the bundle at `url` in `registry`, after it was put there.

    One that lies there already stays and is given the verdict of the one at `url`. Raises
    `BundleRefused` where either cannot be read or written, or differs from its manifest.
    """
    folder = bundles.local_folder(url)
    manifest = bundles.verified(folder)
    address = _address(registry, manifest.version)
    found = _there(address, manifest)
    if found is None:
        _copy(folder, manifest, address)
    elif found.gate != manifest.gate:
        put_gate(address, manifest.gate)
    return address


def put_gate(url: str, gate: dict[str, Any] | None) -> None:
    """Write a verdict into the manifest of a bundle, at once; all else in it stays as it is.

    Raises `BundleRefused` where it cannot be read or written.
    """
    files, path = bundles.open_url(url)
    where = f"{path}/{MANIFEST_FILE}"
    with bundles.writing(url):
        data = files.cat_file(where)
        bundles.read_manifest(data, url)
        changed = {**msgspec.json.decode(data), "gate": gate}
        text = msgspec.json.format(msgspec.json.encode(changed), indent=2)
        if isinstance(files, LocalFileSystem):
            _replace(Path(where), text)
        else:
            files.pipe_file(where, text)


def _address(registry: str, version: str) -> str:
    """Where a version lies; a local folder gets its absolute path, which is the same for all."""
    files, path = bundles.open_url(registry)
    root = path if isinstance(files, LocalFileSystem) else registry.rstrip("/")
    return f"{root}/{version}"


def _there(address: str, manifest: Manifest) -> Manifest | None:
    """The manifest at an address if these very files lie there; None = they do not."""
    files, path = bundles.open_url(address)
    try:
        found = bundles.read_manifest(files.cat_file(f"{path}/{MANIFEST_FILE}"), address)
        sizes = {name: files.size(f"{path}/{name}") for name in found.files}
        if isinstance(files, LocalFileSystem):
            bundles.verified(Path(path))
    except (OSError, BundleRefused):
        return None
    whole = all(sizes[name] == entry.size for name, entry in found.files.items())
    return found if whole and found.files == manifest.files else None


def _copy(folder: Path, manifest: Manifest, address: str) -> None:
    files, path = bundles.open_url(address)
    with bundles.writing(address):
        if not isinstance(files, LocalFileSystem):
            bundles.upload(files, folder, path)
            return
        with bundles.appearing(Path(path)) as new:
            for name in (*manifest.files, MANIFEST_FILE):
                shutil.copyfile(folder / name, new / name)
            bundles.verified(new)


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old or the new one."""
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
