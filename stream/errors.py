"""Every error a user can meet. The docstring is the message; what to do next is part of it.

`InnerloopError.__str__` gives one line; `innerloop` prints it and exits with `exit_code`.
"""

from __future__ import annotations

from typing import ClassVar


class InnerloopError(Exception):
    """Something went wrong. Run `innerloop doctor` to see what this machine lacks."""

    exit_code: ClassVar[int] = 1

    def __init__(self, detail: str = "", *, remedy: str = "") -> None:
        self.detail = detail
        self.remedy = remedy
        super().__init__(detail)

    def __str__(self) -> str:
        """One line: what happened, then what to do."""
        meaning, _, advice = (type(self).__doc__ or "").strip().partition(". ")
        what = f"{meaning.rstrip('.')}: {self.detail}" if self.detail else meaning.rstrip(".")
        remedy = " ".join((self.remedy or advice).split())
        return f"{what}. {remedy}" if remedy else f"{what}."


class ConfigError(InnerloopError):
    """The configuration is wrong. Correct the setting that is named; `--print-config` shows all."""

    exit_code = 2


class BrokerUnavailable(InnerloopError):
    """No Kafka broker answers. Start one with `innerloop kafka` or set --bootstrap-servers."""

    exit_code = 3


class TopicError(InnerloopError):
    """A topic is missing or has wrong settings. Run `innerloop topics check` to see which."""

    exit_code = 3


class BrokerStartError(InnerloopError):
    """The development broker did not start. Read the log that is named here."""

    exit_code = 3


class DataError(InnerloopError):
    """A file could not be read. Check the path and the message format in docs/messages.md."""

    exit_code = 4


class MissingPart(InnerloopError):
    """An optional part is not installed. Install it: `pip install 'innerloop[picture]'`."""

    exit_code = 2


class ResumeError(InnerloopError):
    """The run cannot go on. Repeat its data, settings and seed, or train without --resume."""

    exit_code = 4


class Deserted(InnerloopError):
    """The first process has ended before it trained. Its own message says what to do."""


class BundleError(InnerloopError):
    """The model bundle was refused. Train one with `innerloop train` or name another folder."""

    exit_code = 5


class BundleUnreachable(BundleError):
    """The model bundle cannot be read. Check the address and that this machine may read it."""


class StateError(InnerloopError):
    """The state folder cannot be used. Free the folder or name another with --state-dir."""

    exit_code = 6


class StoreMismatch(StateError):
    """The store belongs to another cluster, topic or layout. It is wiped and restored."""


class Fenced(InnerloopError):
    """Another worker took over this worker's id. Give every worker an id of its own."""

    exit_code = 7


class ProducerFenced(Fenced):
    """The broker gave up the transaction. The worker asks what became of it and goes on."""


class PortInUse(InnerloopError):
    """The port is taken. Choose another with --http-port, or 0 for any free one."""

    exit_code = 8


class DeliveryFailed(InnerloopError):
    """Kafka did not take all messages. Run `innerloop topics check`, then load the file again."""

    exit_code = 3


class AccessDenied(InnerloopError):
    """The broker refused the credentials. Correct the kafka.properties of security and SASL."""

    exit_code = 3


class OffsetOutOfRange(InnerloopError):
    """The log no longer holds the wanted offset. Retention was shorter than the absence."""

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        super().__init__(f"{topic}[{partition}]")


class Aborted(InnerloopError):
    """The transaction has to be aborted; nothing of it counts. Read its records again."""

    def __init__(self, detail: str, *, reason: str, blames_batch: bool = False) -> None:
        self.reason = reason  # Kafka's name of the error, in lower case
        self.blames_batch = blames_batch  # its own content is the cause: it would fail again
        super().__init__(detail)


class UnknownUser(InnerloopError):
    """Nothing is known. Wait until workers have no lag, or check the id and --prefix."""


class UnknownItem(InnerloopError):
    """The catalogue does not have this item. Check the id, --prefix and --bundle."""


class UnknownLetter(InnerloopError):
    """There is no such dead letter. `innerloop dead-letters list` shows those there are."""


class NotErased(InnerloopError):
    """The erasure was not seen in time. Check that a worker serves the user's partition."""


class ReleaseError(InnerloopError):
    """The model cannot be released. What serves stays; `innerloop models` shows it."""

    exit_code = 10


class Overtaken(ReleaseError):
    """The models changed meanwhile. See `innerloop models` and decide anew."""


class GateRefused(InnerloopError):
    """The gate refused the model. The champion stays; --force --reason promotes it all the same."""

    exit_code = 9


class Superseded(InnerloopError):
    """Another send-back has begun meanwhile. See `innerloop dead-letters list` for what is sent."""


class MonitorStopped(InnerloopError):
    """The monitor has broken down. Start it again; the log says why. No worker depends on it."""
