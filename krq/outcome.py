"""How an attempt ends, as values; and the exceptions by which a task asks for it."""

from __future__ import annotations

import traceback as tracebacks
from datetime import timedelta
from typing import Any

import msgspec

from krq.durations import seconds

#: longest text kept of an exception and of its traceback, in characters
MAX_TEXT = 8_000
MAX_TRACEBACK = 16_000
#: longest name kept of a class
MAX_NAME = 200
#: the worker's own modules between it and the task, which no traceback need show
OWN = frozenset({"krq.worker.execute", "krq.worker.host"})
#: members of an exception group that are looked at
MAX_MEMBERS = 1_000


class TaskError(msgspec.Struct, frozen=True, kw_only=True):
    """What a task gets in place of the result of one that it waited for and that did not succeed, with ``on_failure="continue"``."""

    id: str
    """of the task that did not succeed"""
    type: str
    """name of the exception, or a code"""
    message: str
    cancelled: bool = False

    @classmethod
    def of(cls, task_id: str, cancelled: bool, error: Any) -> TaskError:
        """From what the store has of it."""
        known = error if isinstance(error, dict) else {}
        return cls(id=task_id, type=str(known.get("type", "")), message=str(known.get("message", "")), cancelled=cancelled)


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """An exception as data: nothing of it is ever executed or imported."""

    type: str
    message: str = ""
    traceback: str = ""


class Family(msgspec.Struct, frozen=True, array_like=True):
    """What a task has made and ends with."""

    messages: tuple[tuple[str, bytes], ...]
    """queue and message of each"""
    awaited: tuple[str, ...]
    """ids it waits for, as ``Message.after`` names them"""
    how: str
    """how it ends: see settle.lua"""
    ids: tuple[str, ...]
    """all ids, named in the same way"""
    on_failure: str


class Succeeded(msgspec.Struct, frozen=True, tag=True):
    """The function returned; ``result`` is the JSON of what it returned."""

    result: bytes
    family: Family | None = None
    """it ends when these have"""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The function raised, or could not be called. ``retryable``: another attempt may help."""

    error: ErrorInfo
    retryable: bool = True
    delay: float | None = None
    """seconds until the next attempt, where the task itself asked for it"""
    classes: tuple[str, ...] = ()
    """``module.name`` of the exception's class and of its bases; of a group, of all its members too"""
    why: str = ""
    """why it is not tried again, for people"""


class RetryAt(msgspec.Struct, frozen=True, tag=True):
    """Run again after ``delay`` seconds. Costs one of the retries."""

    delay: float
    error: ErrorInfo

    def __post_init__(self) -> None:
        seconds("delay", self.delay)


class Cancelled(msgspec.Struct, frozen=True, tag=True):
    """Stopped because somebody cancelled the task."""


class TimedOut(msgspec.Struct, frozen=True, tag=True):
    """Stopped because it ran for longer than ``after`` seconds."""

    after: float
    error: ErrorInfo
    why: str = ""
    """why it is not tried again, for people"""


class Died(msgspec.Struct, frozen=True, tag=True):
    """The process that ran it, and nothing else, died: an interruption that is its own doing."""

    cause: str
    """exit code or signal"""


Outcome = Succeeded | Failed | RetryAt | Cancelled | TimedOut | Died


class Retry(Exception):
    """Raise it in a task to ask for another attempt, ``delay`` from now: seconds or a timedelta (None: as the back-off says).

    It spends one retry; when none is left the task fails with this error. ``OptionError``: no such delay can be.
    """

    def __init__(self, message: str = "asked for another attempt", *, delay: float | timedelta | None = None) -> None:
        super().__init__(message)
        self.delay = None if delay is None else seconds("delay", delay)


class Reject(Exception):
    """Raise it in a task to fail now, whatever retries are left."""

    def __init__(self, message: str = "rejected") -> None:
        super().__init__(message)


class Stop(BaseException):
    """Raised in a running task that was cancelled. Clean up and let it pass: no ``except Exception`` catches it."""


class SoftTimeout(Exception):
    """Raised in a task that runs for longer than its ``soft_timeout``. What it returns after it has caught this counts."""


def describe(error: BaseException) -> ErrorInfo:
    """An exception as data. Never raises, whatever the exception's own methods do."""
    return ErrorInfo(_text(type(error).__name__)[:MAX_NAME], _text(error), _traceback(error))


def from_exception(error: BaseException) -> Failed:
    """The outcome of a call that raised. A ``Reject`` or ``Retry`` in an exception group counts, in this order."""
    members = _members(error)
    classes = lineage(*(type(member) for member in members))
    if any(isinstance(member, Reject) for member in members):
        return Failed(describe(error), retryable=False, classes=classes, why="the task rejected it")
    asked = next((member for member in members if isinstance(member, Retry)), None)
    return Failed(describe(error), delay=getattr(asked, "delay", None), classes=classes)


def lineage(*kinds: type[BaseException]) -> tuple[str, ...]:
    """``module.name`` of these classes and of all their bases, each once."""
    return tuple(dict.fromkeys(name_of(base) for kind in kinds for base in kind.__mro__ if base is not object))


def name_of(kind: type) -> str:
    """How a class is told from others where it can't travel itself."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _members(error: BaseException) -> list[BaseException]:
    """The exception, and all that is in it where it is a group."""
    found = [error]
    for one in found:
        if isinstance(one, BaseExceptionGroup) and len(found) < MAX_MEMBERS:
            found += one.exceptions[:MAX_MEMBERS]
    return found


def _text(error: Any) -> str:
    try:
        text = str.__getitem__(str(error), slice(MAX_TEXT))
        return str.encode(text, "utf-8", "replace").decode()
    except BaseException as inner:  # boundary: the user's __str__ may raise anything
        return f"<{type(error).__name__} whose text raised {type(inner).__name__}>"


def _traceback(error: BaseException) -> str:
    try:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_globals.get("__name__") in OWN:
            frames = frames.tb_next
        lines = "".join(tracebacks.format_exception(type(error), error, frames))
    except BaseException:  # boundary: the user's __str__ may raise anything
        lines = "".join(tracebacks.format_tb(error.__traceback__)) + type(error).__name__
    return cut(lines.encode("utf-8", "replace").decode(), MAX_TRACEBACK)


def cut(lines: str, most: int) -> str:
    """The beginning and, three times as long, the end of a text that is too long: a traceback's end says most."""
    return lines if len(lines) <= most else f"{lines[: most // 4]}\n…\n{lines[most // 4 - most :]}"
