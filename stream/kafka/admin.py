"""What topics, stores and commands ask of the cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import confluent_kafka as ck
from confluent_kafka import admin as ck_admin

from stream.config import Kafka
from stream.errors import TopicError
from stream.kafka import properties
from stream.kafka.client import CONNECT_S, Patience, Trouble, checked, connect, native, retried
from stream.kafka.errors import translate
from stream.ports import TopicPartition

T = TypeVar("T")
Ends = dict[TopicPartition, int] | None

_NONE = -1  # the broker's answer where no record is as new as the time that was asked for
_ADMIN_S = 15.0
_ASK_S = 2.0
_api: Any = ck_admin  # its stubs do not export the names


class NewTopic(NamedTuple):
    """A topic to be made."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Who answers: the cluster's id and how many brokers it has."""

    id: str
    brokers: int
    partitions: Mapping[str, int]
    """Partition count by topic."""


class Admin:
    """What the topics and the stores need to know of the cluster; a context manager."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._trouble = Trouble()
        self._admin = connect(ck_admin.AdminClient, properties.client(kafka), self._trouble)
        self._askers: dict[str, ck.Consumer] = {}  # by group
        self._trouble.serve = lambda: self._admin.poll(0)

    def __enter__(self) -> Admin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop."""
        for asker in self._askers.values():
            asker.close()
        del self._admin

    def cluster(self, timeout: float = CONNECT_S) -> Cluster:
        """The cluster as it is now. Raises `BrokerUnavailable` after `timeout` seconds."""
        with self._trouble.explained(f"asking {self._kafka.bootstrap_servers}"):
            found = self._admin.list_topics(timeout=timeout)
        return Cluster(
            id=str(found.cluster_id),
            brokers=len(found.brokers),
            partitions={name: len(topic.partitions) for name, topic in found.topics.items()},
        )

    def partitions(self, topic: str) -> list[TopicPartition]:
        """All partitions of a topic. Raises `TopicError` when there is none."""
        count = self.cluster().partitions.get(topic, 0)
        if not count:
            raise TopicError(f"{topic} does not exist", remedy=_CREATE)
        return [TopicPartition(topic, i) for i in range(count)]

    def topic_ids(self, topics: Sequence[str]) -> dict[str, str]:
        """The id that the broker gave each topic at its creation."""
        wanted = ck.TopicCollection(list(topics))

        def ask() -> dict[str, str]:
            asked = self._admin.describe_topics(wanted, request_timeout=_ASK_S)
            return {name: str(future.result().topic_id) for name, future in asked.items()}

        return self._insist(ask, f"describing {', '.join(topics)}")

    def replication(self, topics: Sequence[str]) -> dict[str, int]:
        """Replicas of the first partition of each topic."""
        with self._trouble.explained(f"asking {self._kafka.bootstrap_servers}"):
            found = self._admin.list_topics(timeout=CONNECT_S).topics
        return {name: len(found[name].partitions[0].replicas) for name in topics if name in found}

    def configs(self, topics: Sequence[str]) -> dict[str, dict[str, str]]:
        """Effective settings by topic."""
        if not topics:
            return {}
        kind = _api.ResourceType.TOPIC
        wanted = [_api.ConfigResource(kind, name) for name in topics]

        def ask() -> dict[str, dict[str, str]]:
            asked = self._admin.describe_configs(wanted, request_timeout=_ASK_S)
            return {
                resource.name: {e.name: str(e.value) for e in future.result().values()}
                for resource, future in asked.items()
            }

        return self._insist(ask, f"settings of {', '.join(topics)}")

    def create(self, topics: Sequence[NewTopic]) -> list[str]:
        """Make topics; those that exist stay as they are. Returns the names of the new ones."""
        if not topics:
            return []
        asked = self._admin.create_topics(
            [
                _api.NewTopic(t.name, t.partitions, t.replication, config=dict(t.config))
                for t in topics
            ],
            request_timeout=_ADMIN_S,
        )
        made = [name for name, future in asked.items() if self._created(name, future)]
        self._wait_for_leaders(made)
        return made

    def alter(self, changes: Mapping[str, Mapping[str, str]]) -> None:
        """Set these settings of these topics; all others stay as they are."""
        resources = [
            _api.ConfigResource(
                _api.ResourceType.TOPIC,
                topic,
                incremental_configs=[
                    _api.ConfigEntry(name, value, incremental_operation=_api.AlterConfigOpType.SET)
                    for name, value in change.items()
                ],
            )
            for topic, change in changes.items()
        ]
        asked = self._admin.incremental_alter_configs(resources) if resources else {}
        for resource, future in asked.items():
            self._result(future, f"settings of {resource.name}")
        self._wait_for_settings(changes)

    def delete(self, topics: Sequence[str]) -> None:
        """Remove topics with everything in them."""
        for name, future in self._admin.delete_topics(list(topics)).items():
            self._result(future, f"deleting {name}")

    def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """True end offsets, those of open transactions included."""
        return self._offsets(partitions, _api.OffsetSpec.latest())

    def start_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """The oldest offset that is still there."""
        return self._offsets(partitions, _api.OffsetSpec.earliest())

    def offsets_at(
        self, partitions: Sequence[TopicPartition], time_ms: int
    ) -> dict[TopicPartition, int]:
        """The first offset whose record is of `time_ms` or later, or the end."""
        found = self._offsets(partitions, _api.OffsetSpec.for_timestamp(time_ms), none=_NONE)
        missing = [tp for tp, offset in found.items() if offset == _NONE]
        return {**found, **self.end_offsets(missing)}

    def committed(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """What a group has committed; partitions without it are left out.

        A consumer that joins nothing asks. The admin client's own call ends the process when the
        coordinator has moved (librdkafka, issue 5040).
        """
        if group not in self._askers:
            asking = properties.offsets_of(self._kafka, group)
            self._askers[group] = connect(ck.Consumer, asking, self._trouble)

        def ask() -> list[ck.TopicPartition]:
            return checked(self._askers[group].committed(native(partitions), timeout=_ASK_S))

        with self._trouble.explained(f"offsets of group {group}"):
            found = retried(ask, Patience(_ADMIN_S))
        return {TopicPartition(tp.topic, tp.partition): tp.offset for tp in found if tp.offset >= 0}

    def members(self, group: str) -> int:
        """Members of a consumer group; one that was never seen has none."""

        def ask() -> int:
            asked = self._admin.describe_consumer_groups([group], request_timeout=_ASK_S)
            return len(asked[group].result().members)

        return self._insist(ask, f"members of group {group}")

    def ask_committed_ends(self, partitions: Sequence[TopicPartition]) -> Callable[[], Ends]:
        """Ask where committed records end (the last stable offset), without waiting.

        The answer is None until it is there; partitions of which no broker told are left out.
        """
        committed = ck.IsolationLevel.READ_COMMITTED
        asked = self._list_offsets(partitions, _api.OffsetSpec.latest(), committed)

        def answer() -> Ends:
            if not all(future.done() for future in asked.values()):
                return None
            told = {tp: f.result().offset for tp, f in asked.items() if f.exception() is None}
            return {tp: end for tp, end in told.items() if end >= 0}  # a silent leader: see _told

        return answer

    def _offsets(
        self, partitions: Sequence[TopicPartition], which: Any, none: int | None = None
    ) -> dict[TopicPartition, int]:
        """What is asked for; `none` is an answer, too."""
        if not partitions:
            return {}

        def ask() -> dict[TopicPartition, int]:
            asked = self._list_offsets(partitions, which, ck.IsolationLevel.READ_UNCOMMITTED)
            return {tp: _told(future.result().offset, none) for tp, future in asked.items()}

        return self._insist(ask, f"offsets of {partitions[0].topic}", CONNECT_S)

    def _list_offsets(
        self, partitions: Sequence[TopicPartition], which: Any, isolation: Any
    ) -> dict[TopicPartition, Any]:
        """A future for each partition."""
        asked = self._admin.list_offsets(
            dict.fromkeys(native(partitions), which),
            isolation_level=isolation,
            request_timeout=_ASK_S,
        )
        return {TopicPartition(tp.topic, tp.partition): future for tp, future in asked.items()}

    def _insist(self, ask: Callable[[], T], doing: str, patience: float = _ADMIN_S) -> T:
        """Ask again for a while, each time with new metadata.

        Leaders and controllers move; librdkafka would go on asking the old ones.
        """

        def anew() -> T:
            try:
                return ask()
            except ck.KafkaException:
                self._admin.list_topics(timeout=CONNECT_S)
                raise

        with self._trouble.explained(doing):
            return retried(anew, Patience(patience))

    def _wait_for_settings(self, changes: Mapping[str, Mapping[str, str]]) -> None:
        """Settings, too, are in force a moment after they were accepted."""
        deadline = time.monotonic() + _ADMIN_S
        while time.monotonic() < deadline:
            found = self.configs(list(changes))
            if all(change.items() <= found[topic].items() for topic, change in changes.items()):
                return
            time.sleep(0.02)
        raise TopicError(f"{', '.join(changes)}: settings not in force after {_ADMIN_S:.0f} s")

    def _wait_for_leaders(self, topics: Sequence[str]) -> None:
        """Creation returns before all brokers know of it: ask as often in a row as there are."""
        deadline, agreed, brokers = time.monotonic() + _ADMIN_S, 0, 1
        while agreed < brokers:
            if time.monotonic() > deadline:
                raise TopicError(f"{', '.join(topics)}: no leader after {_ADMIN_S:.0f} s")
            with self._trouble.explained("waiting for new topics"):
                found = self._admin.list_topics(timeout=CONNECT_S)
            seen = [found.topics[name].partitions for name in topics if name in found.topics]
            complete = len(seen) == len(topics)
            led = all(p.leader >= 0 for partitions in seen for p in partitions.values())
            agreed, brokers = (agreed + 1 if complete and led else 0), 2 * len(found.brokers) - 1
            time.sleep(0.01)

    def _created(self, name: str, future: Any) -> bool:
        try:
            future.result()
        except ck.KafkaException as raised:
            if raised.args[0].code() == ck.KafkaError.TOPIC_ALREADY_EXISTS:
                return False
            raise translate(raised.args[0], f"creating {name}") from None
        return True

    def _result(self, future: Any, doing: str) -> Any:
        with self._trouble.explained(doing):
            return future.result()


def _told(offset: int, none: int | None = None) -> int:
    """The offset. Of a leader that does not answer librdkafka says -1001, and calls it no error."""
    if offset < 0 and offset != none:
        raise ck.KafkaException(ck.KafkaError(ck.KafkaError._TIMED_OUT, "a leader is silent"))
    return offset


_CREATE = "Create it with `innerloop topics create`."
