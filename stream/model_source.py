"""Where a worker's models come from: `models`, its disk, addresses, and `items`."""

from __future__ import annotations

from export.bundle import Bundle
from stream import checkpoints, first_model, inspection, log, preparing
from stream.checkpoints import Checkpoint
from stream.config import Settings
from stream.errors import InnerloopError
from stream.messages import Deletion, Item, decode_items
from stream.model_cache import ModelCache
from stream.models import Refusal
from stream.preparing import OpenModel, Preparer
from stream.releases import ModelRef
from stream.store import Stores

_log = log.get("model")


class ModelSource:
    """Opens bundles for one worker. All but `first` may be called in another thread."""

    def __init__(
        self, settings: Settings, stores: Stores, checkpoint: Checkpoint = checkpoints.ignore
    ) -> None:
        """`checkpoint` is told when a release is about to be read and when it is on the disk."""
        self._settings = settings
        self._stores = stores
        self._checkpoint = checkpoint
        self._encoders: dict[str, str] = {}  # sha by version
        self.cache = ModelCache(settings.state.dir, stores.topics)

    def first(self) -> tuple[OpenModel, Refusal | None]:
        """What the worker begins with, see `first_model.first`; older models go.

        Raises `BundleError` and `TopicError`.
        """
        now = first_model.followed(self._settings)
        found = first_model.first(self._settings, now.champion, self.cache, self._work)
        if self._settings.model.follow:
            self.cache.served(found[0].version, found[0].terms)
            self.tidy({found[0].version, *now.versions})
        return found

    def preparer(self) -> Preparer:
        """Makes models of releases."""
        return Preparer(self._open, self._items, self._settings.model.threads or 1)

    def tidy(self, versions: set[str]) -> None:
        """Let go of models, and of vectors of encoders, that are neither wanted nor kept."""
        try:
            self.cache.tidy(versions)
            mine = {self._encoders[v] for v in versions if v in self._encoders}
            self._stores.keep_vectors(mine | self.cache.encoders())
        except InnerloopError as error:
            _log.warning("older models stay", why=error.detail)

    def _open(self, ref: ModelRef) -> OpenModel:
        self._checkpoint(checkpoints.PREPARING)
        bundle = self.cache.fetch(ref)
        self._checkpoint(checkpoints.COPIED)
        return self._work(bundle)

    def _work(self, bundle: Bundle) -> OpenModel:
        sha = self._encoders[bundle.manifest.version] = bundle.manifest.encoder.sha
        return preparing.opened(self._settings, bundle, self._stores.vectors(sha))

    def _items(self) -> list[Item | Deletion]:
        """Everything that `items` says now; what cannot be read is the loop's to report."""
        read = list(inspection.records(self._settings, "items"))
        return decode_items(read, self._settings.messages).accepted
