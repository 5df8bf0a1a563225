"""A trained model as a folder that any worker can verify, load and name.

    manifest.json       what it is, and the sha256 of every other file; written last
    encoder.onnx        the backbone, tokenizer.json beside it
    meta.safetensors    item tower, adapter start, step sizes, read-out, expert weights
    items.safetensors   the items of training: ids, content hashes, vectors, priors
    probe.safetensors   texts with the trained encoder's vectors, to check any export against,
                        and with those of the bundle's own encoder where it is another variant

The folder is written under a temporary name and renamed; on an object store the files go first
and the manifest last. A folder without a manifest, or whose files differ from it, is refused.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import platformdirs
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError

from adapters.types import Meta
from export import bundle_tensors, parity
from export.bundle_tensors import Items
from export.encoder import MODEL_FILE, TOKENIZER_FILE, EncoderFiles
from export.errors import BundleRefused, BundleUnreachable
from export.parity import Parity, Probe

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
_TENSOR_FILES = ("meta.safetensors", "items.safetensors", "probe.safetensors")
FILES = (MODEL_FILE, TOKENIZER_FILE, *_TENSOR_FILES)


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Size in bytes and digest of a file."""

    size: int
    sha256: str


class EncoderEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What the vectors of the encoder depend on."""

    sha: str
    dim: int
    max_length: int
    variant: str = parity.FP32  # the name of what was done to the trained encoder
    kind: str = parity.FP32  # which limits of parity hold, see `parity.EXPORTED`


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The events that the model was trained on; times in unix seconds, both ends included."""

    first: float
    last: float
    events: int
    users: int
    items: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json`. `version` sorts by creation and ends with a digest of the content.

    `gate` is the last verdict on this version. It came after the version and is no part of the
    digest: writing it anew changes neither version nor hashes.
    """

    format_version: int
    name: str
    created: str  # RFC 3339, UTC
    window: Window
    config: dict[str, Any]  # adapters.types.ModelConfig
    actions: dict[str, dict[str, Any]]  # weights of the actions in training
    encoder: EncoderEntry
    parity: Parity
    metrics: dict[str, Any] = {}
    parent: str | None = None  # version of the model that training went on from
    counted_from: float | None = None  # unix seconds from which workers add to the prior's counters
    gate: dict[str, Any] | None = None
    version: str = ""
    files: dict[str, FileEntry] = {}

    def cut(self, part: str) -> float | None:
        """Unix seconds at which a part of the training's log begins, `fit` or `test`, if known."""
        found = self.metrics.get("cuts", {}).get(part)
        return float(found) if isinstance(found, float | int) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A model in memory; the encoder stays a file."""

    manifest: Manifest
    meta: Meta
    items: Items
    encoder: EncoderFiles
    probe: Probe


def save(bundle: Bundle, url: str) -> Bundle:
    """Write `bundle` to the folder `url`, replacing a bundle there; what was written is returned.

    `url` is a path or any fsspec address. A bundle without a version gets one. Raises
    `BundleRefused` when parity fails, when the folder holds anything but a bundle, or when it
    cannot be written; what was there stays as it was.
    """
    parity.require(bundle.manifest.parity, bundle.manifest.encoder.kind)
    files, path = open_url(url)
    with writing(url):
        if isinstance(files, LocalFileSystem):
            return _save_local(bundle, Path(path))
        with tempfile.TemporaryDirectory(prefix="innerloop-") as name:
            written = _write(bundle, Path(name))
            upload(files, Path(name), path)
            return written


def load(url: str, *, cache: Path | None = None) -> Bundle:
    """The bundle at `url`, verified; it is copied to a folder of its version below `cache`.

    Without `cache` a bundle on this machine is read where it is, others go to the user's cache.
    Raises `BundleUnreachable` where nothing answers, `BundleRefused` for a folder that is
    half-written, differs from its manifest or has a newer format.
    """
    return _load_local(local_folder(url, cache=cache))


def local_folder(url: str, *, cache: Path | None = None) -> Path:
    """The folder of a bundle on this machine; copied as by `load`, and only then verified.

    Raises `BundleRefused`, of which `BundleUnreachable` is one.
    """
    files, path = open_url(url)
    if cache is None and isinstance(files, LocalFileSystem):
        return Path(path)
    try:
        manifest = read_manifest(files.cat_file(f"{path}/{MANIFEST_FILE}"), url)
        folder = (cache or platformdirs.user_cache_path("innerloop") / "bundles") / manifest.version
        if not _matches(folder, manifest):
            _download(files, path, folder, manifest)
    except (FileNotFoundError, NotADirectoryError):
        raise _not_a_bundle(url) from None
    except OSError as error:
        raise BundleUnreachable(f"{url}: {error}") from None
    return folder


def verified(folder: Path) -> Manifest:
    """The manifest of a folder whose files are what it says. Raises `BundleRefused`."""
    try:
        manifest = read_manifest((folder / MANIFEST_FILE).read_bytes(), str(folder))
    except (FileNotFoundError, NotADirectoryError):
        raise _not_a_bundle(str(folder)) from None
    except OSError as error:
        raise BundleRefused(f"{folder}: {error.strerror}") from None
    for name, entry in manifest.files.items():
        _verify(folder / name, entry)
    return manifest


def read_manifest(data: bytes, where: str) -> Manifest:
    """A manifest from its bytes, checked. Raises `BundleRefused`."""
    try:
        version = msgspec.json.decode(data, type=_Format).format_version
        if version > FORMAT_VERSION:
            raise BundleRefused(
                f"{where} has format {version}, this release reads up to {FORMAT_VERSION}",
                remedy="Install a newer release of innerloop.",
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError as error:
        raise BundleRefused(f"{where}: {MANIFEST_FILE} cannot be read: {error}") from None
    if set(manifest.files) != set(FILES) or not _plain(manifest.version):
        raise BundleRefused(f"{where}: {MANIFEST_FILE} does not name the files of a bundle")
    return manifest


class _Format(msgspec.Struct):
    format_version: int


# -- writing ------------------------------------------------------------------------------------


def _save_local(bundle: Bundle, target: Path) -> Bundle:
    if target.exists() and not _replaceable(target):
        raise BundleRefused(
            f"{target} exists and is no bundle", remedy="Name a folder that does not exist yet."
        )
    with appearing(target) as new:
        written = _write(bundle, new)
    return replace(written, encoder=_encoder_files(target, written.manifest))


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A folder to be filled, which then takes the place of `target` at once and whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as name:
        new, old = Path(name) / "new", Path(name) / "old"
        new.mkdir()
        yield new
        _exchange(new, target, old)


def _exchange(new: Path, target: Path, old: Path) -> None:
    replaced = target.exists()
    if replaced:
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if replaced:
            old.rename(target)
        raise


def _replaceable(target: Path) -> bool:
    return target.is_dir() and ((target / MANIFEST_FILE).is_file() or not any(target.iterdir()))


def _write(bundle: Bundle, folder: Path) -> Bundle:
    shutil.copyfile(bundle.encoder.model, folder / MODEL_FILE)
    shutil.copyfile(bundle.encoder.tokenizer, folder / TOKENIZER_FILE)
    bundle_tensors.write_meta(bundle.meta, folder / "meta.safetensors")
    bundle_tensors.write_items(bundle.items, folder / "items.safetensors")
    bundle_tensors.write_probe(bundle.probe, folder / "probe.safetensors")
    manifest = _complete(bundle.manifest, {name: _entry(folder / name) for name in FILES})
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / MANIFEST_FILE).write_bytes(text)
    manifest = read_manifest(text, str(folder))  # tuples become lists, as for every reader
    return replace(bundle, manifest=manifest, encoder=_encoder_files(folder, manifest))


def _complete(manifest: Manifest, files: dict[str, FileEntry]) -> Manifest:
    """With the files, and a version from creation time and content where there is none.

    A new version comes without a verdict: the one there was is of other content.
    """
    if manifest.version:
        return msgspec.structs.replace(manifest, files=files)
    described = msgspec.structs.replace(manifest, files=files, gate=None)
    digest = hashlib.sha256(msgspec.json.encode(described, order="sorted")).hexdigest()
    stamp = datetime.fromisoformat(manifest.created).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    return msgspec.structs.replace(described, version=f"{stamp}-{digest[:12]}")


def upload(files: Any, folder: Path, path: str) -> None:
    """Put a bundle's folder on another file system, the manifest last."""
    if files.exists(f"{path}/{MANIFEST_FILE}"):
        files.rm_file(f"{path}/{MANIFEST_FILE}")
    files.makedirs(path, exist_ok=True)
    for name in (*FILES, MANIFEST_FILE):
        files.put_file(str(folder / name), f"{path}/{name}")


@contextmanager
def writing(url: str) -> Iterator[None]:
    """Turns what goes wrong while a bundle is written into `BundleRefused`."""
    try:
        yield
    except OSError as error:
        raise BundleRefused(
            f"{url} cannot be written: {error.strerror or error}",
            remedy="Free some space or name another folder.",
        ) from None
    except SafetensorError as error:  # among others when the disk is full
        raise BundleRefused(
            f"{url} cannot be written: {error}", remedy="Free some space or name another folder."
        ) from None


# -- reading ------------------------------------------------------------------------------------


def _load_local(folder: Path) -> Bundle:
    manifest = verified(folder)
    return Bundle(
        manifest=manifest,
        meta=bundle_tensors.read_meta(folder / "meta.safetensors", manifest.config),
        items=bundle_tensors.read_items(folder / "items.safetensors"),
        encoder=_encoder_files(folder, manifest),
        probe=bundle_tensors.read_probe(folder / "probe.safetensors"),
    )


def _verify(path: Path, entry: FileEntry, name: str = "") -> None:
    """Raise `BundleRefused` unless the file is what `entry` says; `name` is what to call it."""
    name = name or str(path)
    try:
        size = path.stat().st_size
        same = size == entry.size and _entry(path) == entry
    except FileNotFoundError:
        raise BundleRefused(f"{name} is missing: the bundle is half-written") from None
    except OSError as error:
        raise BundleRefused(f"{name}: {error.strerror}") from None
    if not same:
        what = "is cut short" if size < entry.size else "is not what the manifest says"
        raise BundleRefused(f"{name} {what}: the bundle is damaged")


def _matches(folder: Path, manifest: Manifest) -> bool:
    try:
        return read_manifest((folder / MANIFEST_FILE).read_bytes(), str(folder)) == manifest
    except (OSError, BundleRefused):
        return False


def _download(files: Any, path: str, folder: Path, manifest: Manifest) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as name:
        new = Path(name) / "new"
        new.mkdir()
        for file, entry in manifest.files.items():
            _fetch(files, f"{path}/{file}", new / file)
            _verify(new / file, entry, f"{path}/{file}")
        (new / MANIFEST_FILE).write_bytes(msgspec.json.encode(manifest))
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)


def _fetch(files: Any, source: str, target: Path) -> None:
    try:
        files.get_file(source, str(target))
    except FileNotFoundError:
        raise BundleRefused(f"{source} is missing: the bundle is half-written") from None


def _encoder_files(folder: Path, manifest: Manifest) -> EncoderFiles:
    return EncoderFiles(
        model=folder / MODEL_FILE,
        tokenizer=folder / TOKENIZER_FILE,
        max_length=manifest.encoder.max_length,
        dim=manifest.encoder.dim,
        sha=manifest.encoder.sha,
        kind=manifest.encoder.kind,
    )


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(size=path.stat().st_size, sha256=digest)


def open_url(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it. Raises `BundleRefused`."""
    try:
        files, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise BundleRefused(
            f"{url}: {error}", remedy="Name a folder, or install the package fsspec asks for."
        ) from None
    return files, str(path).rstrip("/")


def _not_a_bundle(where: str) -> BundleUnreachable:
    return BundleUnreachable(
        f"{where} has no {MANIFEST_FILE}: no bundle, or one that is half-written"
    )


def _plain(version: str) -> bool:
    return bool(version) and version.replace("-", "").replace("_", "").isalnum()
