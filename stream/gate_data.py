"""What the gate judges on: files, or a window of the topics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from export.bundle import Bundle
from stream import config, datasets, measuring, window
from stream.columns import Columns
from stream.files import OnBad
from stream.messages import Item
from stream.progress import Reporter


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Events and items that both models are judged on."""

    columns: Columns
    items: Sequence[Item]
    source: Mapping[str, Any]  # where they came from, for the record; plain JSON types


class Source(Protocol):
    """Where events and items come from."""

    def read(self, settings: config.Settings, bundle: Bundle, reporter: Reporter) -> Data:
        """All of it, with evidence as the bundle was trained on it. Raises `DataError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FromFiles:
    """Files, folders or the shipped data, as `train` and `evaluate` take them."""

    events: Sequence[str]
    items: Sequence[str]
    on_bad: OnBad | None = None

    def read(self, settings: config.Settings, bundle: Bundle, reporter: Reporter) -> Data:
        """Every file whole."""
        messages = measuring.as_trained(settings.messages, bundle)
        with reporter.phase("read events and items"):
            items = datasets.read_items(self.items, messages, self.on_bad)
            columns = datasets.read_events(self.events, messages, self.on_bad)
        return Data(columns=columns, items=items, source={"events": list(self.events)})


@dataclass(frozen=True, slots=True, kw_only=True)
class FromKafka:
    """The topics of events and items as they are now."""

    length_s: float | None = None  # of event time before the newest event; None = all

    def read(self, settings: config.Settings, bundle: Bundle, reporter: Reporter) -> Data:
        """The window; `DataError` also where the log loses records meanwhile."""
        messages = measuring.as_trained(settings.messages, bundle)
        asked = settings.model_copy(update={"messages": messages})
        with reporter.phase("read events and items") as advance:
            measured = window.measure(asked, self.length_s)
            taken = window.take(asked, measured, lambda share: advance(share, ""))
        told = {"events": [measured.events.topic], "window_s": self.length_s}
        return Data(columns=taken.columns, items=taken.items, source=told)
