"""Retries: a failed attempt runs again, later, with exponential back-off and jitter.

Without this module every failure is final. It is also the example of how a module is written: it owns
two options, puts what the caller chose into the message, and decides about outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from krq.backoff import Backoff
from krq.errors import OptionError
from krq.hooks import Attempt, Module
from krq.message import Message
from krq.outcome import Failed, Outcome, RetryAt, TimedOut
from krq.task import Task

#: where a call's own back-off travels
HEADER = "krq-backoff"


class Retries(Module):
    """``retries``: further attempts after a failure (2: three attempts in all).

    ``backoff``: a ``krq.Backoff``, or a number: seconds before the first further attempt.
    """

    options: Mapping[str, Any] = {"retries": int, "backoff": Backoff | float}

    def __init__(self, retries: int = 2, backoff: Backoff | None = None) -> None:
        self._retries = retries
        self._backoff = backoff or Backoff()

    def check(self, task: Task[..., Any]) -> None:
        """Refuse what makes no sense when the task is registered."""
        if task.settings.get("retries", 0) < 0:
            raise OptionError(f"retries={task.settings['retries']} of {task.name!r} is negative")
        _policy(task.settings.get("backoff", self._backoff))

    def submit(self, message: Message, options: Mapping[str, Any]) -> Message:
        """What the call asks for goes before what the task says."""
        if "retries" in options:
            message = msgspec.structs.replace(message, retries=options["retries"])
        if "backoff" in options:
            headers = {**message.headers, HEADER: msgspec.to_builtins(_policy(options["backoff"]))}
            message = msgspec.structs.replace(message, headers=headers)
        return message

    def outcome(self, attempt: Attempt, outcome: Outcome) -> Outcome:
        """A failure that may pass becomes another attempt, while there are any left."""
        if not isinstance(outcome, Failed | TimedOut) or (isinstance(outcome, Failed) and not outcome.retryable):
            return outcome
        settings = attempt.task.settings if attempt.task is not None else {}
        left = attempt.message.retries
        if left is None:
            left = settings.get("retries", self._retries)
        if attempt.failures >= left:
            return outcome
        asked = outcome.delay if isinstance(outcome, Failed) else None
        delay = asked if asked is not None else self._policy(attempt, settings).delay(attempt.failures + 1)
        return RetryAt(delay, outcome.error)

    def _policy(self, attempt: Attempt, settings: Mapping[str, Any]) -> Backoff:
        if HEADER in attempt.message.headers:
            return msgspec.convert(attempt.message.headers[HEADER], Backoff)
        return _policy(settings.get("backoff", self._backoff))


def _policy(given: Backoff | float) -> Backoff:
    return given if isinstance(given, Backoff) else Backoff(first=given, most=max(given, Backoff().most))
