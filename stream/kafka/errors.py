"""librdkafka's errors as errors a user can act upon. Knows names, not the library."""

from __future__ import annotations

from typing import Protocol

from stream.errors import (
    Aborted,
    AccessDenied,
    BrokerUnavailable,
    ConfigError,
    Fenced,
    InnerloopError,
    ProducerFenced,
    TopicError,
)


class KafkaErrorLike(Protocol):
    """What is needed of `confluent_kafka.KafkaError`."""

    def name(self) -> str:
        """Kafka's name, such as `MSG_SIZE_TOO_LARGE`; librdkafka's own start with `_`."""

    def str(self) -> str:
        """A sentence."""

    def fatal(self) -> bool:
        """Whether the client cannot go on."""

    def retriable(self) -> bool:
        """Whether the same call may succeed later."""

    def txn_requires_abort(self) -> bool:
        """Whether the transaction must be aborted."""


_TWIN = "FENCED_INSTANCE_ID"
_FENCED = {
    "_FENCED",
    "PRODUCER_FENCED",
    "INVALID_PRODUCER_EPOCH",
    "INVALID_TXN_STATE",
    "INVALID_PRODUCER_ID_MAPPING",
    "TRANSACTION_COORDINATOR_FENCED",
}
"""By a twin, or by the broker that timed the transaction out: only a new epoch can tell."""
_LOST_GROUP = {"ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "REBALANCE_IN_PROGRESS"}
_UNREACHABLE = {  # beside those of RETRY
    "_ALL_BROKERS_DOWN",
    "_RESOLVE",
    "_TIMED_OUT_QUEUE",
    "_MSG_TIMED_OUT",
    "NOT_ENOUGH_REPLICAS",
    "_NOENT",  # no partition that was asked for has a leader
}
_COORDINATOR = {"NOT_COORDINATOR", "COORDINATOR_NOT_AVAILABLE", "COORDINATOR_LOAD_IN_PROGRESS"}
_DENIED = {"_AUTHENTICATION", "SASL_AUTHENTICATION_FAILED", "_SSL", "ILLEGAL_SASL_STATE"}
_NO_TOPIC = {"UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION", "UNKNOWN_TOPIC_ID"}
_BAD_CONTENT = {"MSG_SIZE_TOO_LARGE", "INVALID_RECORD", "INVALID_MSG", "RECORD_LIST_TOO_LARGE"}

RETRY = {
    "_TIMED_OUT",
    "_TRANSPORT",
    "_DESTROY_BROKER",  # it left the metadata while it was asked
    "REQUEST_TIMED_OUT",
    "UNSTABLE_OFFSET_COMMIT",
    "NOT_LEADER_FOR_PARTITION",
    "LEADER_NOT_AVAILABLE",
    "FENCED_LEADER_EPOCH",
    "UNKNOWN_LEADER_EPOCH",
    *_COORDINATOR,
    "BROKER_NOT_AVAILABLE",
    "REPLICA_NOT_AVAILABLE",
    "NOT_CONTROLLER",
    "OFFSET_NOT_AVAILABLE",  # of a leader that was elected just now (KIP-207)
    "KAFKA_STORAGE_ERROR",
    "NETWORK_EXCEPTION",
}
"""Names of errors that say nothing was decided yet; all are retriable by Kafka's protocol."""


def passes(name: str) -> bool:
    """Whether a reader without a group goes on by itself.

    librdkafka's own errors are told and then healed by it; a group's coordinator it does not need.
    """
    return name.startswith("_") or name in _COORDINATOR


def is_denied(name: str) -> bool:
    """Whether this error is about credentials or TLS, which no retry heals."""
    return name in _DENIED or name.endswith("AUTHORIZATION_FAILED")


def is_final(error: KafkaErrorLike) -> bool:
    """Whether the client cannot go on. A consumer hears of it in words: its error is `_FATAL`."""
    return error.fatal() or error.name() == "_FATAL"


def translate(error: KafkaErrorLike, doing: str) -> InnerloopError:
    """The error to be raised; `doing` says what was tried, with its subject."""
    name, detail = error.name(), f"{doing}: {error.str()}"
    if name == _TWIN or (name == "_FATAL" and "group.instance.id" in detail):
        return Fenced(detail)
    if name in _FENCED:
        return ProducerFenced(detail)
    if is_denied(name):
        return AccessDenied(detail)
    if error.txn_requires_abort() or name in _LOST_GROUP or name in _BAD_CONTENT:
        blames = name in _BAD_CONTENT or "too large" in error.str().lower()
        return Aborted(detail, reason=name.strip("_").lower(), blames_batch=blames)
    if name in _NO_TOPIC:
        return TopicError(detail, remedy="Create it with `innerloop topics create`.")
    if name in _UNREACHABLE or name in RETRY or error.retriable():
        return BrokerUnavailable(detail)
    if error.fatal():
        return ProducerFenced(detail)
    if name in {"_INVALID_ARG", "INVALID_CONFIG", "INVALID_REPLICATION_FACTOR"}:
        return ConfigError(detail)
    return InnerloopError(f"{detail} ({name})")
