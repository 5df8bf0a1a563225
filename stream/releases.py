"""Which model serves: the records of `models`, one for each role.

The champion serves everybody. A challenger, where there is one, serves a share of the users, chosen
by hash, until it is promoted or withdrawn by a null. The newest record of a role counts.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from stream.ports import Record

SCHEMA_VERSION = 1

Role = Literal["champion", "challenger"]
Reason = Literal["first", "gate", "forced", "rollback", "canary"]

ROLES: tuple[Role, ...] = ("champion", "challenger")


class ModelRef(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle: the version in its manifest, and the fsspec address every worker reads it from."""

    version: str
    bundle: str


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """A record of `models`; its key is the role."""

    schema_version: int = SCHEMA_VERSION
    role: Role
    version: str
    bundle: str
    share: float = 1.0  # of the users; 1 for the champion
    parent: ModelRef | None = None  # the champion before; rollback names it again
    reason: Reason
    published_at: int  # ms since the epoch
    gate: dict[str, Any] | None = None  # figures and verdict, as in the bundle's manifest
    note: str | None = None  # why, in the words of whoever asked for it

    def __post_init__(self) -> None:
        """Raises `ValueError` for a share that the role cannot have."""
        if self.role == "champion" and self.share != 1:
            raise ValueError("share of a champion must be 1")
        if not 0 < self.share <= 1:
            raise ValueError("share must lie in (0, 1]")


class ReleaseRefused(Exception):
    """A record of `models` that says nothing a worker could follow; `str` names the field."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Release)


def encode_release(release: Release) -> tuple[bytes, bytes]:
    """Key and value of the record."""
    return release.role.encode(), _encoder.encode(release)


def read_release(record: Record) -> tuple[Role, Release | None]:
    """The role of a record and its release, None for a role that was withdrawn.

    Raises `ReleaseRefused` for keys and values that are none; a champion cannot be withdrawn.
    """
    role = _role(record.key)
    if record.value is None:
        if role == "champion":
            raise ReleaseRefused("a champion cannot be withdrawn; promote or roll back instead")
        return role, None
    try:
        release = _decoder.decode(record.value)
    except msgspec.MsgspecError as error:
        raise ReleaseRefused(str(error)) from None
    if release.schema_version > SCHEMA_VERSION:
        raise ReleaseRefused(f"schema_version {release.schema_version} is newer than this release")
    if release.role != role:
        raise ReleaseRefused(f"role {release.role!r} stands under the key {role!r}")
    return role, release


def _role(key: bytes | None) -> Role:
    for role in ROLES:
        if key == role.encode():
            return role
    raise ReleaseRefused(f"key {key!r} is no role; roles are {', '.join(ROLES)}")
