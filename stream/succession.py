"""Which model serves in which role, and what a promotion or a rollback makes of it.

Pure functions from the roles as they are to the records that change them, and the one place that
writes these records.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from stream.errors import Aborted, Fenced, Overtaken, ReleaseError
from stream.ports import Message, Record, TransactionalProducer
from stream.releases import ModelRef, Reason, Release, ReleaseRefused, Role, read_release
from stream.releases import encode_release as encode

log = logging.getLogger(__name__)

Gate = dict[str, Any]
"""Verdict and figures of the gate, as in a manifest."""

Change = dict[Role, Release | None]
"""New records by role; None = there is none any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What serves now, and what served before."""

    champion: Release | None = None
    challenger: Release | None = None
    before: tuple[Release, ...] = ()  # earlier champions that the topic still holds, newest first

    @property
    def versions(self) -> set[str]:
        """What serves now."""
        return {release.version for release in (self.champion, self.challenger) if release}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Why and when a model is published."""

    at: int  # ms since the epoch
    force: bool = False  # against the gate, or without one
    note: str | None = None  # why, in the words of whoever asks


def read_standing(records: Iterable[Record]) -> Standing:
    """The roles after these records of `models`; as for workers, strange records change nothing."""
    now: Change = {}
    champions: list[Release] = []
    for record in records:
        try:
            role, release = read_release(record)
        except ReleaseRefused as refused:
            log.warning("record %d of %s passed over: %s", record.offset, record.topic, refused)
            continue
        now[role] = release
        if role == "champion" and release is not None:
            champions.append(release)
    return Standing(
        champion=now.get("champion"),
        challenger=now.get("challenger"),
        before=tuple(champions[-2::-1]),
    )


# -- what changes -------------------------------------------------------------------------------


def promotion(now: Standing, model: ModelRef, gate: Gate, asked: Asked) -> Change:
    """A model becomes the champion; if it was the challenger, that role is free again.

    Raises `ReleaseError` for the model that serves already.
    """
    require_other(now, model.version)
    reason: Reason = "forced" if not gate["promoted"] else "first" if not now.champion else "gate"
    change: Change = {"champion": _champion(now, model, reason, gate, asked)}
    if now.challenger is not None and now.challenger.version == model.version:
        change["challenger"] = None
    return change


def canary(now: Standing, model: ModelRef, share: float, gate: Gate, asked: Asked) -> Change:
    """A model serves a share of the users, in (0, 1), in place of any challenger before it.

    Raises `ReleaseError` where there is no champion, or the model is it.
    """
    require_other(now, model.version)
    champion = required_champion(now)
    release = Release(
        role="challenger",
        version=model.version,
        bundle=model.bundle,
        share=share,
        parent=_ref(champion),
        reason="canary",
        published_at=asked.at,
        gate=gate,
        note=asked.note,
    )
    return {"challenger": release}


def takeover(now: Standing, asked: Asked) -> Change:
    """The challenger becomes the champion.

    Raises `ReleaseError` where there is none, or where another champion serves than the one that
    it was judged against, unless forced.
    """
    challenger = required_challenger(now)
    against = challenger.parent and challenger.parent.version
    serving = now.champion and now.champion.version
    if against != serving and not asked.force:
        raise ReleaseError(
            f"the challenger {challenger.version} was judged against {against}, but the champion "
            f"is {serving}",
            remedy="Judge it anew: innerloop promote with its bundle.",
        )
    gate = challenger.gate or {"promoted": False}
    note = asked.note or challenger.note
    told = Asked(at=asked.at, force=asked.force, note=note)
    return promotion(now, _ref(challenger), gate, told)


def withdrawal(now: Standing) -> Change:
    """The challenger serves nobody any more. Raises `ReleaseError` where there is none."""
    required_challenger(now)
    return {"challenger": None}


def rollback(now: Standing, gate: Gate | None, asked: Asked) -> Change:
    """The champion's parent becomes the champion again; `gate` is the parent's own verdict.

    The parent of that record is the champion that goes, so that a rollback of a rollback brings it
    back. Raises `ReleaseError` where there is no parent.
    """
    model = required_parent(now)
    return {"champion": _champion(now, model, "rollback", gate, asked)}


def require_other(now: Standing, version: str) -> None:
    """Raise `ReleaseError` for the model that serves already."""
    if now.champion is not None and now.champion.version == version:
        raise ReleaseError(f"{version} is the champion already", remedy="Name another model.")


def required_champion(now: Standing) -> Release:
    """The champion. Raises `ReleaseError`."""
    if now.champion is None:
        raise ReleaseError(
            "no model has been promoted yet",
            remedy="Promote a first one: innerloop promote BUNDLE, without --canary.",
        )
    return now.champion


def required_challenger(now: Standing) -> Release:
    """The challenger. Raises `ReleaseError`."""
    if now.challenger is None:
        raise ReleaseError(
            "there is no challenger", remedy="innerloop promote BUNDLE --canary 5% makes one."
        )
    return now.challenger


def required_parent(now: Standing) -> ModelRef:
    """What served before the champion. Raises `ReleaseError`."""
    champion = required_champion(now)
    if champion.parent is None:
        raise ReleaseError(
            f"the champion {champion.version} is the first one: there is nothing to go back to",
            remedy="Promote another model instead.",
        )
    return champion.parent


def _champion(
    now: Standing, model: ModelRef, reason: Reason, gate: Gate | None, asked: Asked
) -> Release:
    return Release(
        role="champion",
        version=model.version,
        bundle=model.bundle,
        parent=None if now.champion is None else _ref(now.champion),
        reason=reason,
        published_at=asked.at,
        gate=gate,
        note=asked.note,
    )


def _ref(release: Release) -> ModelRef:
    return ModelRef(version=release.version, bundle=release.bundle)


# -- writing ------------------------------------------------------------------------------------


def publish(
    producer: TransactionalProducer,
    topic: str,
    change: Change,
    seen: Standing,
    read: Callable[[], Standing],
) -> None:
    """Write a change that was decided on `seen`, if these are still the roles.

    A gate takes minutes. So the transactional id is taken first, which ends any other change that
    is under way, and only then are the roles read again. Raises `Overtaken` where they are others,
    or where another change begins meanwhile.
    """
    try:
        producer.init()
        _require_same(seen, read())
        producer.begin()
        producer.produce(_messages(topic, change))
        producer.commit()
    except Fenced:
        raise Overtaken("another promotion has begun, or the broker gave up this one") from None
    except Aborted:
        producer.abort()
        raise


def _messages(topic: str, change: Change) -> list[Message]:
    pairs = [
        (role.encode(), None) if release is None else encode(release)
        for role, release in change.items()
    ]
    return [Message(topic, 0, key, value) for key, value in pairs]


def _require_same(seen: Standing, now: Standing) -> None:
    for role in ("champion", "challenger"):
        before, after = getattr(seen, role), getattr(now, role)
        if before != after:
            raise Overtaken(f"the {role} was {_named(before)} and is {_named(after)} now")


def _named(release: Release | None) -> str:
    return "none" if release is None else release.version
