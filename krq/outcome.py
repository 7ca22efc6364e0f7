"""How an attempt ends, as values; and the exceptions by which a task asks for it."""

from __future__ import annotations

import traceback as tracebacks
from typing import Any

import msgspec

#: longest text kept of an exception and of its traceback, in characters
MAX_TEXT = 8_000
MAX_TRACEBACK = 16_000


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """An exception as data: nothing of it is ever executed or imported."""

    type: str
    message: str = ""
    traceback: str = ""


class Succeeded(msgspec.Struct, frozen=True, tag=True):
    """The function returned; ``result`` is the JSON of what it returned."""

    result: bytes


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The function raised, or could not be called. ``retryable``: another attempt may help."""

    error: ErrorInfo
    retryable: bool = True
    delay: float | None = None
    """seconds until the next attempt, where the task itself asked for it"""
    dead: bool = False
    """goes to the dead letters too"""


class RetryAt(msgspec.Struct, frozen=True, tag=True):
    """Run again after ``delay`` seconds. Costs one of the retries."""

    delay: float
    error: ErrorInfo


class Cancelled(msgspec.Struct, frozen=True, tag=True):
    """Stopped because somebody cancelled the task."""


class TimedOut(msgspec.Struct, frozen=True, tag=True):
    """Stopped because it ran for longer than ``after`` seconds."""

    after: float
    error: ErrorInfo


Outcome = Succeeded | Failed | RetryAt | Cancelled | TimedOut


class Retry(Exception):
    """Raise it in a task to ask for another attempt, ``delay`` seconds from now (None: as the back-off says).

    It spends one retry; when none is left the task fails with this error.
    """

    def __init__(self, message: str = "asked for another attempt", *, delay: float | None = None) -> None:
        super().__init__(message)
        self.delay = delay


class Reject(Exception):
    """Raise it in a task to fail now, whatever retries are left."""

    def __init__(self, message: str = "rejected") -> None:
        super().__init__(message)


def describe(error: BaseException) -> ErrorInfo:
    """An exception as data. Never raises, whatever the exception's own methods do."""
    kind = type(error).__name__
    return ErrorInfo(kind, _text(error)[:MAX_TEXT], _traceback(error))


def from_exception(error: BaseException) -> Failed:
    """The outcome of a call that raised."""
    if isinstance(error, Retry):
        return Failed(describe(error), delay=error.delay)
    return Failed(describe(error), retryable=not isinstance(error, Reject))


def _text(error: Any) -> str:
    try:
        return str(error).encode("utf-8", "replace").decode()
    except Exception as inner:  # boundary: the user's __str__
        return f"<{type(error).__name__} whose text raised {type(inner).__name__}>"


def _traceback(error: BaseException) -> str:
    try:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_globals.get("__name__") == "krq.worker.run":
            frames = frames.tb_next
        lines = "".join(tracebacks.format_exception(type(error), error, frames))
    except Exception:  # boundary: the user's __str__
        lines = "".join(tracebacks.format_tb(error.__traceback__)) + type(error).__name__
    lines = lines.encode("utf-8", "replace").decode()
    return lines if len(lines) <= MAX_TRACEBACK else f"{lines[:4000]}\n…\n{lines[-(MAX_TRACEBACK - 4000):]}"
