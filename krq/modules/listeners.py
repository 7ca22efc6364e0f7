"""Listeners: ``@app.on("task_failed")`` runs a function of yours in the worker when something has happened there.

They watch: one that raises is logged, and changes nothing. What ends without a worker, such as a task that expires or is cancelled
while it is queued, is told to nobody here; the log has it (``KRQ.events``).
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import msgspec

from krq.errors import OptionError
from krq.hooks import Attempt, Module, find
from krq.info import Event
from krq.outcome import Cancelled, Died, ErrorInfo, Failed, Outcome, RetryAt, Succeeded, TimedOut

log = logging.getLogger("krq.listeners")

EventName = Literal[
    "task_started", "task_succeeded", "task_failed", "task_retried", "task_cancelled", "task_died", "worker_started", "worker_stopping",
]
Listener = Callable[[Event], object]
F = TypeVar("F", bound=Listener)

_json = msgspec.json.Decoder().decode


class Listeners(Module):
    """Calls what ``KRQ.on`` was given, in the order of registration. Free for events that nobody listens to."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[Listener]] = {}

    def add(self, event: str, listener: Listener) -> None:
        """Call it at each such event. Raises ``OptionError`` for an event that there is not, or a function that can't be called so."""
        if event not in get_args(EventName):
            raise OptionError(f"There is no event {event!r}", cure=f"Listen to {', '.join(get_args(EventName))}.")
        if not callable(listener) or inspect.iscoroutinefunction(listener):
            raise OptionError(f"{listener!r} can't listen to {event!r}", cure="Give a plain function of one argument.")
        self._listeners.setdefault(event, []).append(listener)

    # --- hooks -------------------------------------------------------------------------------

    def started(self, attempt: Attempt) -> None:
        """``task_started``."""
        if "task_started" in self._listeners:
            self._tell("task_started", _event(attempt, "started"))

    def ended(self, attempt: Attempt, outcome: Outcome) -> None:
        """The other events of tasks."""
        if self._listeners:
            name, event = _end(attempt, outcome)
            if name in self._listeners:
                self._tell(name, event())

    def worker_started(self, worker_id: str) -> None:
        """``worker_started``."""
        self._tell("worker_started", Event(outcome="worker_started", at=time.time(), worker=worker_id))

    def worker_stopping(self, worker_id: str) -> None:
        """``worker_stopping``."""
        self._tell("worker_stopping", Event(outcome="worker_stopping", at=time.time(), worker=worker_id))

    def _tell(self, name: str, event: Event) -> None:
        for listener in self._listeners.get(name, ()):
            try:
                listener(event)
            except BaseException:  # boundary: observers may fail, and the next is told all the same
                who = getattr(listener, "__qualname__", listener)
                log.exception("%s failed at %s of %s; the worker goes on", who, name, event.id or event.worker)


class Listening:
    """What ``KRQ`` offers of it."""

    modules: list[Module]

    def on(self, event: EventName, /) -> Callable[[F], F]:
        """Call the decorated function with a ``krq.info.Event`` each time this happens in a worker of this app.

        It runs in the slot of the task, whose end waits for it: before the end is settled, so another worker's may count in its place.
        ``worker_started`` and ``worker_stopping`` run in the child's main thread. What it raises is logged. Several may listen, and
        one at several events. To be called before ``run``; raises ``OptionError`` for an event that there is not.
        """

        def register(listener: F) -> F:
            find(self.modules, Listeners).add(event, listener)
            return listener

        return register


def _event(attempt: Attempt, outcome: str, **more: Any) -> Event:
    return Event(
        outcome=outcome, at=time.time(), id=attempt.id, name=attempt.message.task, queue=attempt.queue, attempt=attempt.number,
        worker=attempt.worker, sent=attempt.sent, **more,
    )


def _end(attempt: Attempt, outcome: Outcome) -> tuple[str, Callable[[], Event]]:
    """The event's name, and what makes it."""
    match outcome:
        case Succeeded(result=raw, family=None):
            return "task_succeeded", lambda: _event(attempt, "success", result=_json(raw))
        case Failed(error=error, why=why) | TimedOut(error=error, why=why):
            return "task_failed", lambda: _event(attempt, "failed", error=error, reason=why)
        case RetryAt(delay=delay, error=error):
            return "task_retried", lambda: _event(attempt, "retry", error=error, due=time.time() + delay)
        case Cancelled():
            return "task_cancelled", lambda: _event(attempt, "cancelled")
        case Died(cause=cause):
            return "task_died", lambda: _event(attempt, "died", error=ErrorInfo("DIED", cause))
    return "", lambda: _event(attempt, "spawned")
