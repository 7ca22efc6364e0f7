"""Logging of the command line and of workers: colours on a terminal, plain when piped."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

import colorlog

from krq.errors import KRQError

COLOURS = {"DEBUG": "cyan", "INFO": "green", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "red,bg_white"}


def configure(level: str = "INFO") -> None:
    """Show KRQ's log on stderr, unless the application has set up logging itself."""
    logger = logging.getLogger("krq")
    if logger.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(colorlog.ColoredFormatter(
        "%(log_color)s%(asctime)s %(levelname)-8s%(reset)s %(name)s: %(message)s", log_colors=COLOURS, stream=sys.stderr,
    ))
    logger.addHandler(handler)
    logger.setLevel(level)


class _Tail(logging.Handler):
    """Hands each line to a function."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._note(self.format(record))
        except Exception:  # boundary: logging never raises
            self.handleError(record)


def keep_tail(note: Callable[[str], None]) -> None:
    """Also hand each line of this process's log to ``note``, one at a time."""
    root = logging.getLogger()
    # a root without handlers stays so: Python then shows warnings on stderr by itself
    (root if root.handlers else logging.getLogger("krq")).addHandler(_Tail(note))


class Wait:
    """Says once that something waits for a server that is away, and once that it goes on. One thread."""

    def __init__(self, logger: logging.Logger, text: str) -> None:
        self._logger, self._text = logger, text
        self._since: float | None = None

    @property
    def waiting(self) -> bool:
        """Whether the last word was that it waits."""
        return self._since is not None

    def begin(self, error: KRQError, level: int = logging.WARNING) -> None:
        """It waits, because of this. Said at the first time only."""
        if self._since is None:
            self._since = time.monotonic()
            self._logger.log(level, "%s: %s", self._text, error.cause)

    def end(self) -> None:
        """It goes on. Free while nothing waits."""
        if self._since is not None:
            self._logger.info("%s no more: going on after %.1f s", self._text, time.monotonic() - self._since)
            self._since = None
