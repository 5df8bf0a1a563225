"""Progress of long work: a bar on a terminal, a line a phase elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[float, str], None]
"""Told which share of a phase is done, 0 to 1, and what else there is to say."""

_PLAIN_EVERY_S = 5.0


class Reporter:
    """Follows the phases of a long piece of work; this one shows nothing."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[Advance]:
        """Lasts as long as the phase, gives its `Advance` and notes its seconds."""
        began = time.monotonic()
        with self._shown(name) as advance:
            yield advance
        self.seconds[name] = time.monotonic() - began

    def say(self, line: str) -> None:
        """Something worth a line of its own."""

    @contextmanager
    def _shown(self, name: str) -> Iterator[Advance]:
        yield lambda share, note: None


class Plain(Reporter):
    """A line at the end of each phase, and every 5 s within."""

    def say(self, line: str) -> None:
        """The line, on standard error."""
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    @contextmanager
    def _shown(self, name: str) -> Iterator[Advance]:
        began = said = time.monotonic()

        def advance(share: float, note: str) -> None:
            nonlocal said
            if time.monotonic() - said >= _PLAIN_EVERY_S:
                said = time.monotonic()
                self.say(f"{name}: {share:.0%} {note}".rstrip())

        yield advance
        self.say(f"{name}: done in {time.monotonic() - began:.1f} s")


class Bars(Reporter):
    """A bar a phase, on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        super().__init__()
        self._bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )

    def __enter__(self) -> Bars:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the last picture on the screen."""
        self._bars.stop()

    def say(self, line: str) -> None:
        """The line, above the bars."""
        self._bars.console.print(line, highlight=False, markup=False)

    @contextmanager
    def _shown(self, name: str) -> Iterator[Advance]:
        task = self._bars.add_task(name, total=None, note="")

        def advance(share: float, note: str) -> None:
            self._bars.update(task, total=1.0, completed=share, note=note)

        yield advance
        self._bars.update(task, total=1.0, completed=1.0)
        self._bars.stop_task(task)


@contextmanager
def reporter() -> Iterator[Plain | Bars]:
    """Bars where standard error is a terminal, else plain lines."""
    if not sys.stderr.isatty():
        yield Plain()
        return
    with Bars() as bars:
        yield bars
