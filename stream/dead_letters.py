"""Dead letters: read as they are in their topic, and sent back where they came from.

What was sent back stays known in the topic itself. Event and mark are one transaction: the event
goes to its topic with the header `innerloop-resent`, the mark to `dead-letters`, a null value with
the same header beside the letter. So nothing is sent back twice by accident: a second run reads
the mark, and a run at the same time is fenced, because both use one transactional id and read only
after they have taken it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from stream.errors import Aborted, UnknownLetter
from stream.message_encoding import LEFT_OUT
from stream.murmur2 import partition_of
from stream.ports import Message, Record, TopicPartition, TransactionalProducer

RESENT = "innerloop-resent"
"""Header of an event that was sent back, and of its mark: PARTITION:OFFSET of the dead letter."""

IN_ONE_TRANSACTION = 500
"""Letters that are sent back together."""

_ORIGINAL = "original."
_SAID = {"topic", "partition", "offset", "timestamp", "reason", "detail"}

Place = tuple[int, int]
"""Partition and offset of a dead letter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A record that could not be used, as it was, with the reason."""

    place: Place
    timestamp: int  # ms, when it became a dead letter
    origin: TopicPartition
    origin_offset: int
    produced: int  # ms, the original record's own timestamp
    reason: str
    detail: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]  # the original record's
    left_out: int = 0  # bytes of the value that were too many for a dead letter
    sent_back: bool = False

    @property
    def name(self) -> str:
        """PARTITION:OFFSET, as commands take it."""
        return "{}:{}".format(*self.place)

    @property
    def size(self) -> int:
        """Bytes of the original value."""
        return len(self.value or b"") or self.left_out


def place_of(text: str) -> Place:
    """The inverse of `Letter.name`. Raises `UnknownLetter`."""
    partition, _, offset = text.partition(":")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise UnknownLetter(f"{text} is not PARTITION:OFFSET")
    return int(partition), int(offset)


def letters(records: Iterable[Record]) -> list[Letter]:
    """The letters among the records of the topic, oldest first; others' records are left out."""
    found: dict[Place, Letter] = {}
    for record in records:
        headers = {name: value or b"" for name, value in record.headers}
        if RESENT in headers:
            mark = place_of(headers[RESENT].decode())
            if mark in found:
                found[mark] = replace(found[mark], sent_back=True)
        elif headers.keys() >= _SAID:
            found[record.partition, record.offset] = _letter(record, headers)
    return sorted(found.values(), key=lambda letter: (letter.timestamp, letter.place))


def _letter(record: Record, headers: Mapping[str, bytes]) -> Letter:
    said = {name: value.decode(errors="replace") for name, value in headers.items()}
    return Letter(
        place=(record.partition, record.offset),
        timestamp=record.timestamp,
        origin=TopicPartition(said["topic"], int(said["partition"])),
        origin_offset=int(said["offset"]),
        produced=int(said["timestamp"]),
        reason=said["reason"],
        detail=said["detail"],
        key=record.key,
        value=record.value,
        left_out=int(said.get(LEFT_OUT, "0")),
        headers=tuple(
            (name.removeprefix(_ORIGINAL), value or b"")
            for name, value in record.headers
            if name.startswith(_ORIGINAL)
        ),
    )


def find(found: Sequence[Letter], place: Place) -> Letter:
    """The letter at a place. Raises `UnknownLetter`."""
    for letter in found:
        if letter.place == place:
            return letter
    raise UnknownLetter("nothing is at {}:{}".format(*place))


# -- sending back -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Resend:
    """Where dead letters are sent back to."""

    dead_letters: str  # the topic they are in
    partitions: Mapping[str, int]  # partition count of each topic that a letter comes from
    partitioner: str  # as in `kafka.partitioner`

    def messages(self, letter: Letter) -> tuple[Message, Message]:
        """The original record again, on the partition of its key, and the mark of it.

        A record without a key goes to the partition that it came from.
        """
        header = (RESENT, letter.name.encode())
        theirs = tuple(pair for pair in letter.headers if pair[0] != RESENT)
        topic, partition = letter.origin
        if letter.key is not None:
            partition = partition_of(letter.key, self.partitions[topic], self.partitioner)
        event = Message(topic, partition, letter.key, letter.value, (*theirs, header))
        return event, Message(self.dead_letters, letter.place[0], letter.key, None, (header,))

    def send(
        self, producer: TransactionalProducer, chosen: Sequence[Letter]
    ) -> Iterator[Sequence[Letter]]:
        """Send letters back, some in a transaction; yields them when it is committed.

        Raises `Aborted`, after which those of earlier transactions stay sent and marked.
        """
        for at in range(0, len(chosen), IN_ONE_TRANSACTION):
            some = chosen[at : at + IN_ONE_TRANSACTION]
            producer.begin()
            try:
                producer.produce(m for letter in some for m in self.messages(letter))
                producer.commit()
            except Aborted:
                producer.abort()
                raise
            yield some


def counted(found: Iterable[Letter]) -> str:
    """How many there are, by reason, the most frequent first."""
    counts = Counter(letter.reason for letter in found)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def dump(value: bytes, width: int = 16) -> Iterator[str]:
    """Bytes as offset, hexadecimal and ASCII, a line for each `width` of them."""
    for at in range(0, len(value), width):
        part = value[at : at + width]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in part)
        yield f"{at:08x}  {part.hex(' '):<{3 * width}} {text}"
