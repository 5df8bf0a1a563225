"""Which model serves which user: the champion all of them, but for the challenger's share.

A user is always in the same share: it follows from a hash of the id that is neither the one of
`ranking.control_share` nor that of partitions, so that the three are independent. A larger share
keeps everybody of a smaller one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
import xxhash
from numpy.typing import NDArray

from stream.config import Settings
from stream.learning import Learner
from stream.messages import DecodedBatch
from stream.recommend import Recommender
from stream.serving import Serving
from stream.user_state import Layout, hash_id

Bools = NDArray[np.bool_]

SEED = 2
"""Of the hash that chooses users; 1 is that of `ranking.control_share`."""


class ServedModel:
    """A model and what takes events to its users' records and lists."""

    def __init__(self, settings: Settings, serving: Serving, clock: Callable[[], float]) -> None:
        self.serving = serving
        self.version = serving.version
        self.hash = hash_id(serving.version)  # as records name the model
        self.layout = Layout.of(serving.meta.config, repeats=settings.ranking.repeats)
        self.learner = Learner(settings, serving)
        self.recommender = Recommender(settings, serving, clock)


@dataclass(frozen=True)
class Roles:
    """The models that serve now; replaced as a whole between two batches."""

    champion: ServedModel
    challenger: ServedModel | None = None
    share: float = 0.0  # of the users, the challenger's

    def models(self) -> list[ServedModel]:
        """Champion first."""
        return [self.champion] if self.challenger is None else [self.champion, self.challenger]

    def shares(self) -> dict[str, float]:
        """The part of the users that each version serves."""
        found = {self.champion.version: 1.0 - self.share}
        if self.challenger is not None:
            found[self.challenger.version] = self.share
        return found

    def parts(self, batch: DecodedBatch) -> list[tuple[ServedModel, DecodedBatch]]:
        """The events of a batch by the model of their users; places stay those of its records."""
        if self.challenger is None:
            return [(self.champion, batch)]
        tried = challenged([event.user for event in batch.accepted], self.share)
        found = [(self.champion, _only(batch, ~tried)), (self.challenger, _only(batch, tried))]
        return [(model, some) for model, some in found if some.accepted]

    def split(self, names: Sequence[str]) -> list[tuple[ServedModel, NDArray[np.int64]]]:
        """Places of users [n] by the model that serves them."""
        tried = challenged(names, self.share)
        found = [(self.champion, ~tried), (self.challenger, tried)]
        return [(m, np.flatnonzero(mine)) for m, mine in found if m is not None and mine.any()]


def challenged(names: Sequence[str], share: float) -> Bools:
    """Users [n] whom a challenger with this share of them serves."""
    if share == 0:
        return np.zeros(len(names), np.bool_)
    hashes = (xxhash.xxh3_64_intdigest(name.encode(), seed=SEED) for name in names)
    return np.fromiter((h < share * 2**64 for h in hashes), np.bool_, len(names))


def _only(batch: DecodedBatch, wanted: Bools) -> DecodedBatch:
    accepted, places = list(compress(batch.accepted, wanted)), list(compress(batch.places, wanted))
    return replace(batch, accepted=accepted, places=places)
