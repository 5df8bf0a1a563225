"""Promote, withdraw, roll back: from a bundle and the topic `models` to its next record."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from export.bundle import Bundle
from stream import bundles, gate, succession
from stream.config import Settings
from stream.errors import BundleError, GateRefused, ReleaseError
from stream.files import now_ms
from stream.gate_data import Source
from stream.inspection import standing
from stream.kafka.producer import TransactionalProducer
from stream.progress import Reporter
from stream.releases import ModelRef, Release
from stream.succession import Asked, Change, Gate, Standing
from stream.terms import Terms

OnVerdict = Callable[[Gate], None]
"""Told the verdict before anything follows from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """A bundle that is to serve, and what it has to show for it."""

    bundle: str  # its address
    settings: Settings
    source: Source | None = None  # to judge on; None = the verdict in its manifest
    start: float | None = None  # unix seconds: where the slice begins
    positions: int = gate.POSITIONS
    share: float | None = None  # of the users, as a canary; None = all of them
    force: bool = False
    note: str | None = None


def promote(asked: Promotion, reporter: Reporter, on_verdict: OnVerdict) -> Release:
    """Judge a bundle, keep it in the registry, and publish it; returns the new record.

    Raises `GateRefused`; `ReleaseError` where it cannot stand beside or after the champion, was
    not judged, or has seen what it is to be judged on; `Overtaken`; `BundleError` and `DataError`.
    """
    seen = standing(asked.settings)
    challenger = bundles.load(asked.bundle)
    verdict = _verdict(asked, challenger, seen, reporter)
    on_verdict(verdict)
    if not (verdict["promoted"] or asked.force):
        raise GateRefused("; ".join(verdict["reasons"]))
    address = bundles.put(asked.bundle, asked.settings.model.registry)
    model = ModelRef(version=challenger.manifest.version, bundle=address)
    return _published(asked.settings, _change(asked, model, verdict, seen), seen)


def promote_challenger(settings: Settings, why: Asked) -> Release:
    """The challenger of the topic becomes the champion. Raises `ReleaseError`."""
    seen = standing(settings)
    return _published(settings, succession.takeover(seen, why), seen)


def withdraw(settings: Settings) -> Release:
    """The challenger serves nobody any more; returns its last record. Raises `ReleaseError`."""
    seen = standing(settings)
    gone = succession.required_challenger(seen)
    _publish(settings, succession.withdrawal(seen), seen)
    return gone


def roll_back(settings: Settings, why: Asked) -> Release:
    """The champion's parent serves again, if it can still be read.

    Raises `ReleaseError` where there is no parent, `BundleError` for one that was lost or damaged.
    """
    seen = standing(settings)
    parent = bundles.load(succession.required_parent(seen).bundle)
    return _published(settings, succession.rollback(seen, parent.manifest.gate, why), seen)


def require_alike(challenger: Bundle, champion: Bundle) -> None:
    """Raise `ReleaseError` where what is stored would not fit the new model: workers refuse it."""
    try:
        Terms.of_bundle(champion).require(Terms.of_bundle(challenger))
    except BundleError as refused:
        raise ReleaseError(refused.detail, remedy=refused.remedy) from None


# -- steps --------------------------------------------------------------------------------------


def _change(asked: Promotion, model: ModelRef, verdict: Gate, seen: Standing) -> Change:
    why = Asked(at=now_ms(), force=asked.force, note=asked.note)
    if asked.share is None:
        return succession.promotion(seen, model, verdict, why)
    return succession.canary(seen, model, asked.share, verdict, why)


def _require_sense(
    seen: Standing, challenger: Bundle, champion: Bundle | None, canary: bool
) -> None:
    """Refuse what could not serve next, before any time is spent on it."""
    version = challenger.manifest.version
    succession.require_other(seen, version)
    if canary:
        succession.required_champion(seen)
    if champion is not None:
        require_alike(challenger, champion)


def _champion(seen: Standing, asked: Promotion) -> Bundle | None:
    """The champion's bundle. One that cannot be read any more stops nobody who insists."""
    if seen.champion is None:
        return None
    try:
        return bundles.load(seen.champion.bundle)
    except BundleError as error:
        if asked.force and asked.source is None:
            return None
        raise BundleError(
            f"the champion {seen.champion.version} cannot be read: {error.detail}",
            remedy="Bring its bundle back, or promote with --force --reason and without a slice.",
        ) from None


def _verdict(asked: Promotion, challenger: Bundle, seen: Standing, reporter: Reporter) -> Gate:
    """A new verdict, which goes into the manifest; or the one that is there; or none at all."""
    champion = _champion(seen, asked)
    _require_sense(seen, challenger, champion, asked.share is not None)
    if asked.source is None:
        return _known(asked, challenger, seen)
    data = asked.source.read(asked.settings, challenger, reporter)
    part = gate.Slice(data=data, start=asked.start, positions=asked.positions)
    found = gate.evaluated(challenger, champion, part, asked.settings, reporter)
    bundles.put_gate(asked.bundle, found)
    return found


def _known(asked: Promotion, challenger: Bundle, seen: Standing) -> Gate:
    """The verdict in the manifest if it is about this champion. Raises `ReleaseError`."""
    version, known = challenger.manifest.version, challenger.manifest.gate
    against = None if seen.champion is None else seen.champion.version
    if known is not None and known.get("champion") == against:
        return known
    if not asked.force:
        raise ReleaseError(
            f"{version} was not judged "
            + ("on any slice" if against is None else f"against the champion {against}"),
            remedy="Say what on: --from-kafka, or --events and --items.",
        )
    return _unjudged(version, against)


def _unjudged(version: str, against: str | None) -> dict[str, Any]:
    """What a model is published with that nobody has judged."""
    return {
        "promoted": False,
        "reasons": ["not judged"],
        "challenger": version,
        "champion": against,
    }


def _published(settings: Settings, change: Change, seen: Standing) -> Release:
    _publish(settings, change, seen)
    return next(release for release in change.values() if release is not None)


def _publish(settings: Settings, change: Change, seen: Standing) -> None:
    producer = TransactionalProducer(settings, f"{settings.kafka.group_id}-models")
    with closing(producer):
        topic = settings.kafka.topic("models")
        succession.publish(producer, topic, change, seen, lambda: standing(settings))
