"""What the demo prints: headings, lines, tables, and one line that moves on a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from stream.tables import table

_PLAIN_EVERY_S = 2.0
_MOVING_EVERY_S = 0.1


class Screen:
    """Standard output. Control codes are written to a terminal only."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self.terminal = self._stream.isatty()
        self._moving = False
        self._said = 0.0

    def heading(self, text: str) -> None:
        """The title of an act."""
        self.say()
        self.say(f"\033[1m{text}\033[0m" if self.terminal else text)

    def say(self, line: str = "") -> None:
        """A line that stays."""
        self._write(("\r\033[K" if self._moving else "") + line + "\n")
        self._moving = False

    def status(self, line: str) -> None:
        """A line that the next one replaces; every 2 s a line of its own without a terminal."""
        now = time.monotonic()
        if now - self._said < (_MOVING_EVERY_S if self.terminal else _PLAIN_EVERY_S):
            return
        self._said = now
        if not self.terminal:
            self.say(line)
            return
        width = shutil.get_terminal_size().columns - 1
        self._write("\r\033[K" + line[:width])
        self._moving = True

    def table(self, rows: Sequence[Sequence[str]], indent: str = "  ") -> None:
        """Columns of text, as wide as they need to be."""
        for line in table(rows, indent):
            self.say(line)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
