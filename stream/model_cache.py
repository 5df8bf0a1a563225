"""Models in the state folder of a worker: the last two that served, and what they agree on.

A worker that starts while the address of its model does not answer serves the last good one. The
versions of bundles end with a digest of their content, so that a version is fetched once.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import msgspec

from export.bundle import MANIFEST_FILE, Bundle, read_manifest
from stream import bundles, log
from stream.errors import BundleError
from stream.releases import ModelRef
from stream.state_dir import explained
from stream.terms import Terms

_log = log.get("model")

KEPT = 2
"""Good models that are kept: the one that serves and the one before, for a rollback."""


class _Kept(msgspec.Struct, kw_only=True):
    """`served.json`: the good models, the newest first, of one set of topics."""

    topics: str
    terms: Terms
    versions: list[str] = []


class ModelCache:
    """The folder `models` in a state folder."""

    def __init__(self, folder: Path, topics: str) -> None:
        """`topics` is the identity of the cluster's topics: models of others are let go of."""
        self._folder = folder / "models"
        self._note = self._folder / "served.json"
        self._topics = topics
        with explained(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._kept = self._read()

    @property
    def terms(self) -> Terms | None:
        """Those of the model that served last, None where there was none."""
        return None if self._kept is None else self._kept.terms

    def good(self) -> list[str]:
        """Versions that are here and have served, the newest first."""
        kept = [] if self._kept is None else self._kept.versions
        return [version for version in kept if (self._folder / version).is_dir()]

    def load(self, version: str) -> Bundle:
        """A bundle that is here, verified. Raises `BundleError`."""
        return bundles.load(str(self._folder / version))

    def fetch(self, ref: ModelRef) -> Bundle:
        """The bundle of a release, from here if it is here and well, else from its address.

        Raises `BundleError`, `BundleUnreachable` or `StateError`.
        """
        if (self._folder / ref.version).is_dir():
            try:
                return self.load(ref.version)
            except BundleError as error:
                _log.warning("model fetched again", version=ref.version, why=error.detail)
                shutil.rmtree(self._folder / ref.version, ignore_errors=True)
        with explained(self._folder):
            found = bundles.load(ref.bundle, cache=self._folder)
        if found.manifest.version != ref.version:
            shutil.rmtree(self._folder / found.manifest.version, ignore_errors=True)
            raise BundleError(
                f"{ref.bundle} is version {found.manifest.version}, not {ref.version}",
                remedy="Promote the version that is there.",
            )
        return found

    def served(self, version: str, terms: Terms) -> None:
        """This model is good: remember it. Raises `StateError`."""
        before = [] if self._kept is None else self._kept.versions
        versions = [version, *(v for v in before if v != version)][:KEPT]
        self._kept = _Kept(topics=self._topics, terms=terms, versions=versions)
        draft = self._note.with_suffix(".new")
        with explained(self._note):
            draft.write_bytes(msgspec.json.encode(self._kept))
            draft.replace(self._note)

    def tidy(self, in_use: Collection[str]) -> None:
        """Remove what is neither good nor in use, half copies of a crash included."""
        wanted = {*in_use, *([] if self._kept is None else self._kept.versions)}
        for path in self._folder.iterdir():
            if path.is_dir() and path.name not in wanted:
                shutil.rmtree(path, ignore_errors=True)

    def encoders(self) -> set[str]:
        """The sha of every encoder that is here."""
        with bundles.refusals():
            found = [
                read_manifest(path.read_bytes(), str(path))
                for path in self._folder.glob(f"*/{MANIFEST_FILE}")
            ]
        return {manifest.encoder.sha for manifest in found}

    def _read(self) -> _Kept | None:
        try:
            kept = msgspec.json.decode(self._note.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:  # cut short by a crash of the machine
            _log.warning("note of models left out", path=str(self._note), why=str(error))
            return None
        return kept if kept.topics == self._topics else None
