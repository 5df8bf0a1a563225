"""The member of the consumer group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import confluent_kafka as ck

from stream.config import Kafka
from stream.errors import Aborted, OffsetOutOfRange
from stream.kafka.client import (
    CONNECT_S,
    Late,
    Patience,
    Trouble,
    checked,
    connect,
    log,
    native,
    plain,
    retried,
    to_records,
)
from stream.kafka.errors import is_denied, is_final, translate
from stream.kafka.properties import group_consumer
from stream.ports import Positions, RebalanceListener, Record, TopicPartition

WAKE_S = 0.2
"""How long a question that only wakes librdkafka may take."""


class GroupConsumer:
    """`stream.ports.GroupConsumer` over the classic protocol."""

    def __init__(
        self, kafka: Kafka, instance_id: str, *, auto_offset_reset: Literal["earliest", "error"]
    ) -> None:
        self._trouble = Trouble()
        self._properties = group_consumer(kafka, instance_id, auto_offset_reset)
        self._consumer = connect(ck.Consumer, self._properties, self._trouble)
        self._patience = Patience(kafka.patience_s)
        self._seeks: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._late = Late()
        self._member: str | None = None  # the id with which `assigned` was told last
        self._metadata: object = None  # of that generation
        self._stopped: set[TopicPartition] = set()  # cannot be moved, only assigned anew
        self._orphaned = False  # thrown out of the group by librdkafka itself
        self._join: Callable[[], None] = lambda: None

    def subscribe(self, topic: str, listener: RebalanceListener) -> None:
        """Join the group; `listener` is called from within `consume`."""
        self._join = lambda: self._subscribe(topic, listener)
        self._join()

    def _subscribe(self, topic: str, listener: RebalanceListener) -> None:
        def on_assign(consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
            # before the answer: until then librdkafka joins no other generation
            self._member, self._metadata = consumer.memberid(), consumer.consumer_group_metadata()
            consumer.incremental_assign(partitions)
            consumer.pause(partitions)
            self._paused.update(plain(partitions))
            listener.assigned(plain(partitions))

        def on_revoke(consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
            self._forget(plain(partitions))
            listener.revoked(plain(partitions), lost=False)
            consumer.incremental_unassign(partitions)

        def on_lost(consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
            self._forget(plain(partitions))
            listener.revoked(plain(partitions), lost=True)
            consumer.incremental_unassign(partitions)

        with self._trouble.explained(f"subscribing to {topic}"):
            self._consumer.subscribe(
                [topic], on_assign=on_assign, on_revoke=on_revoke, on_lost=on_lost
            )

    def consume(self, limit: int, timeout: float) -> list[Record]:
        """At most `limit` records; an empty list after `timeout` seconds.

        Errors are raised after the records before them have been returned. After
        `OffsetOutOfRange` the partition stands still until `seek`.
        """
        self._late.raise_first()
        self._try_seeks()
        with self._trouble.explained("consuming"):
            messages = self._consumer.consume(limit, timeout)
        records, errors = to_records(messages)
        for message in errors:
            self._note(message, message.error())
        if self._orphaned:
            self._join_anew()
        if not records:
            self._late.raise_first()
        return records

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver nothing of these."""
        partitions = list(partitions)
        self._paused.update(partitions)
        with self._trouble.explained("pausing"):
            self._consumer.pause(native(partitions))

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver again, those with an open `seek` once it is through."""
        partitions = list(partitions)
        self._paused.difference_update(partitions)
        with self._trouble.explained("resuming"):
            self._consumer.resume(native(tp for tp in partitions if tp not in self._seeks))
        self._wake(partitions)

    def _wake(self, partitions: Iterable[TopicPartition]) -> None:
        """librdkafka looks for resumed partitions once a second, and after any answer at once."""
        for tp in native(partitions):
            try:
                self._consumer.get_watermark_offsets(tp, timeout=WAKE_S, cached=False)
            except ck.KafkaException:
                return

    def seek(self, positions: Positions) -> None:
        """Go on from these offsets. Others' partitions are ignored."""
        owned = self.assignment() | self._stopped
        self._seeks.update({tp: at for tp, at in positions.items() if tp in owned})
        self._try_seeks()

    def restart(self, positions: Positions) -> None:
        """As `seek`, for partitions of which nothing comes: they are assigned anew."""
        self._stopped |= self.assignment() & positions.keys()
        self.seek(positions)

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Committed offsets; partitions without one are left out.

        Waits while a transaction is open on the group's offsets. Raises `BrokerUnavailable`.
        """
        with self._trouble.explained("reading committed offsets"):
            found = retried(
                lambda: checked(self._consumer.committed(native(partitions), timeout=CONNECT_S)),
                self._patience,
            )
        return {TopicPartition(tp.topic, tp.partition): tp.offset for tp in found if tp.offset >= 0}

    def assignment(self) -> set[TopicPartition]:
        """The partitions that are owned now."""
        with self._trouble.explained("reading the assignment"):
            return set(plain(self._consumer.assignment()))

    def group_metadata(self) -> object:
        """What fences a member that lost its partitions without knowing.

        It is of the generation in which `assigned` was told last (every one tells, if only that
        nothing came). After a session that ran out librdkafka joins anew by itself, and what it is
        then must not stand behind partitions of the time before.

        Raises `Aborted` when this is not that member now: an empty group would take its offsets.
        """
        if not self._member or self._consumer.memberid() != self._member:
            raise Aborted("not a member of the group", reason="unknown_member_id")
        return self._metadata

    def hurry(self) -> None:
        """Do not wait long for brokers any more: the process is to stop."""
        self._patience.hurry()

    def close(self) -> None:
        """Stop. A static member stays in the group until its session times out."""
        with self._trouble.explained("closing"):
            self._consumer.close()

    def _note(self, message: ck.Message, error: ck.KafkaError) -> None:
        if error.code() == ck.KafkaError._AUTO_OFFSET_RESET:
            tp = TopicPartition(str(message.topic()), int(message.partition() or 0))
            self._stopped.add(tp)
            self._late.add(OffsetOutOfRange(*tp))
        elif is_final(error) and not self._consumer.memberid():
            self._orphaned = True
        elif is_final(error) or is_denied(error.name()) or not error.name().startswith("_"):
            self._late.add(translate(error, "consuming"))
        else:
            log.debug("%s: %s", error.name(), error.str())

    def _join_anew(self) -> None:
        """A new member of the same id, after a session that ran out.

        While its owner is busy, librdkafka goes on sending heartbeats for it without a member id
        and takes the broker's answer for a twin. A real twin is met by a member with an id.
        """
        log.warning("the session has ended: joining anew")
        self.close()
        self._consumer = connect(ck.Consumer, self._properties, self._trouble)
        self._orphaned, self._member = False, None
        self._join()

    def _try_seeks(self) -> None:
        """What cannot be moved now stands still and is tried again by the next `consume`."""
        for tp, at in list(self._seeks.items()):
            target = ck.TopicPartition(tp.topic, tp.partition, at)
            try:
                self._assign_anew(target) if tp in self._stopped else self._consumer.seek(target)
            except ck.KafkaException as raised:
                if raised.args[0].code() == ck.KafkaError._STATE:
                    self._stopped.add(tp)  # nothing is fetched, whether or not it was said why
                self._consumer.pause(native([tp]))
                continue
            del self._seeks[tp]
            self._stopped.discard(tp)
            if tp not in self._paused:
                self._consumer.resume(native([tp]))

    def _assign_anew(self, target: ck.TopicPartition) -> None:
        """Give back and take again, in librdkafka alone: the group does not hear of it.

        A pause outlasts it. The first half may have been done before the second one failed.
        """
        if target in self._consumer.assignment():
            self._consumer.incremental_unassign([target])
        self._consumer.incremental_assign([target])

    def _forget(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.difference_update(partitions)
        self._stopped.difference_update(partitions)
        for tp in partitions:
            self._seeks.pop(tp, None)
