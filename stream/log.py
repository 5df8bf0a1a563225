"""Log lines: one canonical line a unit of work, JSON where nobody watches.

The idea of a canonical log line (everything about one unit of work on one line) is Stripe's, 2019.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import structlog

if TYPE_CHECKING:
    from stream.config import Log


def configure(settings: Log) -> None:
    """Send structlog and the standard library's log to standard error in one form."""
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)


_LINES = 1_000
"""Different lines that are remembered."""


class Seldom(logging.Filter):
    """Lets a line of these loggers through once in a while, whatever it names.

    Some clients tell of a broker that is away twenty times a second, for as long as it is.
    """

    def __init__(
        self,
        loggers: Sequence[str],
        every_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._loggers, self._every_s, self._clock = tuple(loggers), every_s, clock
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        if not record.name.startswith(self._loggers):
            return True
        now, line = self._clock(), str(record.msg)
        due = now - self._said.get(line, -math.inf) >= self._every_s
        if due:
            self._said = {**self._said, line: now} if len(self._said) < _LINES else {line: now}
        return due


def get(name: str) -> structlog.stdlib.BoundLogger:
    """A logger that takes its fields as keyword arguments."""
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger(name))
