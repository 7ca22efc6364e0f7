"""Ties what is logged and printed in a process to the task that runs there.

Records are caught where ``Logger.callHandlers`` hands them to handlers: a handler at the root would have to be the application's
first or last, keep ``logging.basicConfig`` from doing anything, and miss loggers that do not propagate.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO, cast

from krq import context
from krq.context import Context
from krq.hooks import Attempt
from krq.ids import MAX_NAME
from krq.loglines import MAX_BYTES, LogLine, fitted
from krq.outcome import SoftTimeout

#: gets the id of a task and a line of it; must not block
Note = Callable[[str, LogLine], None]
_STREAMS = ("stdout", "stderr")
_traceback = logging.Formatter().formatException


class Capture:
    """Catches lines of tasks, from any thread, and never fails or holds up who says them."""

    def __init__(self, note: Note) -> None:
        self._note = note
        self._pid = 0
        self._handling = threading.local()
        #: what was printed and has not come to a line's end, by task, attempt, stream and thread
        self.rests: dict[tuple[str, int, str, int], str] = {}

    def install(self) -> None:
        """Begin, for the rest of this process. INFO is caught unless the application has set up logging to be something else."""
        self._pid = os.getpid()
        root = logging.getLogger()
        if not root.handlers and root.level == logging.WARNING:
            root.setLevel(logging.INFO)
        self._catch_records()
        for name in _STREAMS:
            real = getattr(sys, name)
            if real is not None:
                setattr(sys, name, cast(TextIO, _Tee(real, partial(self.wrote, name))))

    def _catch_records(self) -> None:
        original = logging.Logger.callHandlers
        handling = self._handling

        def call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
            ctx = context.running()
            if ctx is None or str(record.name).partition(".")[0] == "krq":
                original(logger, record)
                return
            self.logged(ctx, record)
            before = getattr(handling, "of", None)
            handling.of = ctx  # what handlers write to stderr was caught already
            try:
                original(logger, record)
            finally:
                handling.of = before

        logging.Logger.callHandlers = call_handlers  # type: ignore[assignment, method-assign]

    def logged(self, ctx: Context, record: logging.LogRecord) -> None:
        """A record, with its traceback."""
        try:
            self._say(ctx.attempt_value, "log", _text(record), record.created, record.levelname, str(record.name)[:MAX_NAME])
        except SoftTimeout:
            raise
        except Exception:  # boundary: nothing a task logs fails it
            return

    def wrote(self, stream: str, text: str) -> None:
        """Something that was printed: lines, or parts of one."""
        ctx = context.running()
        if ctx is None or getattr(self._handling, "of", None) is ctx:
            return
        try:
            attempt = ctx.attempt_value
            key = (attempt.id, attempt.number, stream, threading.get_ident())
            *lines, rest = (self.rests.pop(key, "") + text).split("\n")
            if rest:
                self.rests[key] = rest if len(rest) <= MAX_BYTES else fitted(_last(rest))
            for line in lines:
                self._say(attempt, stream, _last(line) if "\r" in line else line, time.time())
        except SoftTimeout:
            raise
        except Exception:  # boundary: nothing a task prints fails it
            return

    def flush(self, attempt: Attempt) -> None:
        """An attempt has ended: what it printed last is a line, though it has no end."""
        for key in [key for key in list(self.rests) if key[:2] == (attempt.id, attempt.number)]:
            rest = _last(self.rests.pop(key, ""))
            if rest:
                self._note(attempt.id, _line(attempt, fitted(rest), key[2], time.time()))

    def _say(self, attempt: Attempt, stream: str, text: str, at: float, level: str = "", logger: str = "") -> None:
        if os.getpid() == self._pid:  # a process that the task has forked has nobody to tell
            self._note(attempt.id, _line(attempt, fitted(text), stream, at, level, logger))


class _Tee:
    """A stream that also tells what is written to it. All else is the stream's own."""

    def __init__(self, real: TextIO, tell: Callable[[str], None]) -> None:
        self._real = real
        self._tell = tell

    def write(self, text: str) -> int:
        n = self._real.write(text)
        self._tell(text)
        return n

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _line(attempt: Attempt, text: str, stream: str, at: float, level: str = "", logger: str = "") -> LogLine:
    return LogLine(at=round(at, 6), attempt=attempt.number, worker=attempt.worker, text=text, stream=stream, level=level, logger=logger)


def _last(line: str) -> str:
    """What a terminal would show at the end: the text behind the last carriage return."""
    return line.rstrip("\r").rpartition("\r")[2]


def _text(record: logging.LogRecord) -> str:
    try:
        parts = [record.getMessage()]
    except SoftTimeout:
        raise
    except Exception:  # the arguments do not fit: its handlers say so, too
        parts = [str(record.msg)]
    if record.exc_info and record.exc_info[0]:
        # not by way of Formatter.format, which would leave its text for the application's formatters
        parts.append(_traceback(record.exc_info))
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)
