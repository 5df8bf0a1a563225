"""What models that follow one another must agree on: what is stored goes on under all of them."""

from __future__ import annotations

import msgspec

from adapters.types import ModelConfig
from export.bundle import Bundle
from stream.errors import BundleError


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What models that follow one another must agree on, or signals would mean something else."""

    half_lives: tuple[float, ...]  # seconds
    bucket: float  # seconds
    neighbours: int
    since: float  # unix seconds: what came before is in the prior, what comes after in `signals`
    actions: tuple[str, ...]  # records name actions by their place here

    @classmethod
    def of(cls, config: ModelConfig, since: float) -> Terms:
        """Those of a model whose prior ends at `since`, unix seconds."""
        return cls(
            half_lives=config.half_lives,
            bucket=config.bucket,
            neighbours=config.neighbours,
            since=since,
            actions=config.actions,
        )

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Terms:
        """Those of a bundle."""
        return cls.of(bundle.meta.config, bundle.items.prior.time)

    def require(self, other: Terms) -> None:
        """Raise `BundleError` where a model with `other` terms cannot follow one with these."""
        for name in ("half_lives", "bucket", "neighbours"):
            mine, found = getattr(self, name), getattr(other, name)
            if mine != found:
                raise BundleError(
                    f"its signals have {name} {found}, those that are counted {mine}", remedy=_ALIKE
                )
        if self.since != other.since:
            raise BundleError(
                f"its prior ends at {other.since:.0f}, the counting of workers begins at "
                f"{self.since:.0f}: events between the two would count twice or never",
                remedy="Train it with --parent champion, which carries the prior on.",
            )
        shared = min(len(self.actions), len(other.actions))
        if self.actions[:shared] != other.actions[:shared]:
            raise BundleError(
                f"its actions are {', '.join(other.actions)}, users' records have "
                f"{', '.join(self.actions)}",
                remedy="Name new actions behind the old ones in messages.actions, and train again.",
            )


_ALIKE = "Train it with the champion's settings, or give workers topics of another --prefix."
