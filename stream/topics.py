"""The settings that every topic must have: made by `create`, checked by `check`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stream.config import Settings
from stream.errors import TopicError
from stream.kafka.admin import Admin, NewTopic
from stream.kafka.properties import HEADROOM_BYTES

ALIGNED = ("events", "state", "signals", "recommendations")
"""Roles whose partition p belongs together: their counts agree and never change."""

_FEW = {"items": 1, "models": 1, "retraining": 1, "dead_letters": 4}
_HOUR_MS = 3_600_000
_RETENTION_MS = 7 * 24 * _HOUR_MS
_BATCH_BYTES = 1_048_588  # Kafka's default; a batch of our producers must fit in
_MOVE = "Create topics under another --prefix and load them again; do not change the count."


@dataclass(frozen=True)
class Rule:
    """What a setting of a topic has to be."""

    setting: str
    wanted: str
    test: Literal["is", "at most", "at least"] = "is"

    def holds(self, found: str) -> bool:
        """Whether this value of the setting will do."""
        if self.test == "is":
            return found == self.wanted
        if self.test == "at most":
            return int(found) <= int(self.wanted)
        return int(found) >= int(self.wanted)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A topic as it should be. `defaults` are set at creation and may be changed afterwards."""

    role: str
    name: str
    partitions: int
    rules: tuple[Rule, ...]
    defaults: Mapping[str, str]

    @property
    def config(self) -> dict[str, str]:
        """Settings at creation."""
        return {**self.defaults, **{rule.setting: rule.wanted for rule in self.rules}}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with a topic."""

    topic: str
    setting: str
    found: str
    wanted: str
    remedy: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.topic}: {self.setting} is {self.found}, must be {self.wanted}"


def specs(settings: Settings, partitions: int | None = None) -> dict[str, Spec]:
    """Every topic by role; `partitions` = the count of the aligned ones, if it is known."""
    aligned = partitions or settings.kafka.partitions
    return {
        role: Spec(
            role=role,
            name=settings.kafka.topic(role),
            partitions=_FEW.get(role, aligned),
            rules=(*_common(settings), *_special(role, settings)),
            defaults=_defaults(role),
        )
        for role in type(settings.kafka.topics).model_fields
    }


def create(settings: Settings, *, alter: bool = False) -> list[str]:
    """Make the topics that are missing; returns their names.

    Existing topics stay as they are, unless `alter` sets the settings that `check` complains of.
    New aligned topics take the partition count of those that exist. Raises `TopicError`.
    """
    with Admin(settings.kafka) as admin:
        cluster = admin.cluster()
        wanted = specs(settings, _aligned_count(settings, cluster.partitions))
        made = admin.create(
            [
                NewTopic(spec.name, spec.partitions, settings.kafka.replication, spec.config)
                for spec in wanted.values()
                if spec.name not in cluster.partitions
            ]
        )
        if alter:
            admin.alter(_changes(settings, admin))
    return made


def check(settings: Settings) -> list[Problem]:
    """What is wrong with the topics of these settings; empty when a worker may start."""
    with Admin(settings.kafka) as admin:
        found = admin.cluster().partitions
        present = {r: s for r, s in specs(settings).items() if s.name in found}
        names = [spec.name for spec in present.values()]
        replicas, configs = admin.replication(names), admin.configs(names)
    problems = [_missing(spec) for role, spec in specs(settings).items() if role not in present]
    problems += _misaligned(settings, found)
    for spec in present.values():
        problems += _wrong_replication(settings, spec.name, replicas[spec.name])
        problems += _wrong_settings(spec, configs[spec.name])
    if {"events", "dead_letters"} <= present.keys():
        problems += _tight_dead_letters(settings, configs)
    return problems


def require(settings: Settings) -> int:
    """The partition count of the aligned topics. Raises `TopicError` that names what is wrong."""
    problems = check(settings)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise TopicError(f"{problems[0]}{more}", remedy=problems[0].remedy)
    with Admin(settings.kafka) as admin:
        return len(admin.partitions(settings.kafka.topic("events")))


# -- what is wanted --------------------------------------------------------------------------


def _common(settings: Settings) -> tuple[Rule, ...]:
    return (
        Rule("min.insync.replicas", str(settings.kafka.min_insync_replicas), "at least"),
        Rule("unclean.leader.election.enable", "false"),
    )


def _special(role: str, settings: Settings) -> tuple[Rule, ...]:
    limit = max(_BATCH_BYTES, settings.messages.max_bytes + HEADROOM_BYTES)
    if role == "events":
        return (
            Rule("cleanup.policy", "delete"),
            Rule("message.timestamp.type", "CreateTime"),
            Rule("max.message.bytes", str(limit), "at least"),
        )
    if role == "dead_letters":
        return (
            Rule("cleanup.policy", "delete"),
            Rule("max.message.bytes", str(limit + HEADROOM_BYTES), "at least"),
        )
    compact = (
        Rule("cleanup.policy", "compact"),
        Rule("max.message.bytes", str(limit), "at least"),
    )
    return (*compact, *_forgetting(settings)) if role in ("state", "recommendations") else compact


def _forgetting(settings: Settings) -> tuple[Rule, ...]:
    """An erased record is gone after the deadline: a quarter to roll, a half to be compacted.

    Tombstones stay for the whole of it, so that a store which was away for less sees them.
    """
    deadline = max(1_000, round(1_000 * settings.state.forget_within_s))
    return (
        Rule("segment.ms", str(deadline // 4), "at most"),
        Rule("max.compaction.lag.ms", str(deadline // 2), "at most"),
        Rule("delete.retention.ms", str(deadline), "at least"),
    )


def _defaults(role: str) -> dict[str, str]:
    if role == "events":  # a record dated before retention would be deleted at once: refuse it
        window = str(_RETENTION_MS)
        return {"retention.ms": window, "message.timestamp.before.max.ms": window}
    if role == "dead_letters":
        return {"retention.ms": str(_RETENTION_MS)}
    return {"min.cleanable.dirty.ratio": "0.1"}  # compact early: restores read less


# -- what is found ---------------------------------------------------------------------------


def _aligned(settings: Settings, found: Mapping[str, int]) -> dict[str, int]:
    names = [settings.kafka.topic(role) for role in ALIGNED]
    return {name: found[name] for name in names if name in found}


def _aligned_count(settings: Settings, found: Mapping[str, int]) -> int | None:
    problems = _misaligned(settings, found)
    if problems:
        raise TopicError(str(problems[0]), remedy=_MOVE)
    return next(iter(_aligned(settings, found).values()), None)


def _misaligned(settings: Settings, found: Mapping[str, int]) -> list[Problem]:
    counts = _aligned(settings, found)
    if len(set(counts.values())) <= 1:
        return []
    events = settings.kafka.topic("events")
    wanted = counts.get(events, settings.kafka.partitions)
    return [
        Problem(
            topic=name,
            setting="partitions",
            found=str(count),
            wanted=f"{wanted}, as many as {events} has",
            remedy=_MOVE,
        )
        for name, count in counts.items()
        if count != wanted
    ]


def _missing(spec: Spec) -> Problem:
    return Problem(
        topic=spec.name,
        setting="topic",
        found="missing",
        wanted="there",
        remedy="Create it with `innerloop topics create`.",
    )


def _wrong_replication(settings: Settings, name: str, found: int) -> list[Problem]:
    wanted = settings.kafka.replication
    if found >= wanted:
        return []
    remedy = "Reassign its partitions to more brokers, or lower kafka.replication."
    return [
        Problem(
            topic=name,
            setting="replication",
            found=str(found),
            wanted=f"at least {wanted}",
            remedy=remedy,
        )
    ]


def _wrong_settings(spec: Spec, found: Mapping[str, str]) -> list[Problem]:
    return [
        _wrong(spec.name, rule, found.get(rule.setting, "unset"))
        for rule in spec.rules
        if rule.setting not in found or not rule.holds(found[rule.setting])
    ]


def _tight_dead_letters(
    settings: Settings, configs: Mapping[str, Mapping[str, str]]
) -> list[Problem]:
    """Dead letters hold what `events` holds in fact, not what it was meant to."""
    setting = "max.message.bytes"
    letters = settings.kafka.topic("dead_letters")
    events = int(configs[settings.kafka.topic("events")][setting])
    rule = Rule(setting, str(events + HEADROOM_BYTES), "at least")
    found = configs[letters][setting]
    usual = specs(settings)["dead_letters"].config[setting]
    if rule.holds(found) or int(rule.wanted) <= int(usual):
        return []
    return [_wrong(letters, rule, found)]


def _wrong(topic: str, rule: Rule, found: str) -> Problem:
    return Problem(
        topic=topic,
        setting=rule.setting,
        found=found,
        wanted=rule.wanted if rule.test == "is" else f"{rule.test} {rule.wanted}",
        remedy="Set it with `innerloop topics create --alter`.",
    )


def _changes(settings: Settings, admin: Admin) -> dict[str, dict[str, str]]:
    """The settings that break a rule, by topic, with the value that keeps it."""
    wanted = {spec.name: spec for spec in specs(settings).values()}
    configs = admin.configs(list(wanted))
    events = int(configs[settings.kafka.topic("events")]["max.message.bytes"])
    changes = {
        name: {p.setting: spec.config[p.setting] for p in _wrong_settings(spec, configs[name])}
        for name, spec in wanted.items()
    }
    if _tight_dead_letters(settings, configs):
        letters = settings.kafka.topic("dead_letters")
        changes[letters]["max.message.bytes"] = str(events + HEADROOM_BYTES)
    return {name: change for name, change in changes.items() if change}
