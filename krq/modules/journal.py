"""The journal: what happens to tasks, in KRQ's own log. What went wrong is a line on the terminal, too; the rest is there at debug only.

In ``krq.log`` it is all there. These lines are many, so they are noted, and a thread of the handler writes them a moment later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from krq import logs, phrases
from krq.hooks import Attempt, Module, Received
from krq.logs import LogFileHandler
from krq.outcome import Cancelled, Died, ErrorInfo, Failed, Outcome, RetryAt, Succeeded, TimedOut

log = logging.getLogger("krq.tasks")

#: characters of an error in a line
MOST = 300


class Journal(Module):
    """Says of each task that it was received, began, and how it ended. Without it a worker is silent about its tasks."""

    def __init__(self) -> None:
        self._file: LogFileHandler | None = None
        self._all = self._debug = False
        self._began: dict[str, float] = {}

    # --- hooks -------------------------------------------------------------------------------

    def worker_started(self, worker_id: str) -> None:  # noqa: ARG002
        """Find out who listens: it stays so."""
        self._file = logs.log_file()
        self._debug = log.isEnabledFor(logging.DEBUG)
        self._all = self._file is not None or self._debug
        if self._file is not None:
            self._file.collect()

    def received(self, tasks: Sequence[Received]) -> None:
        """At debug."""
        if self._all:
            now = time.time()
            for task in tasks:
                name = task.message.task if task.message else ""
                self._note(now, name, task.id, task.attempt, f"received for attempt {task.attempt}")

    def started(self, attempt: Attempt) -> None:
        """At debug."""
        if self._all:
            self._began[attempt.id] = now = time.time()
            self._note(now, attempt.message.task, attempt.id, attempt.number, f"began attempt {attempt.number}")

    def ended(self, attempt: Attempt, outcome: Outcome) -> None:
        """A success at debug; else with the error, and what comes next."""
        n = attempt.number
        match outcome:
            case Succeeded(family=family):
                if self._all:
                    now = time.time()
                    then = "succeeded" if family is None else f"made {phrases.count(len(family.messages), 'task')} and ends with them"
                    self._note(now, attempt.message.task, attempt.id, n, f"{then} at attempt {n}{self._lasted(attempt, now)}")
            case RetryAt(delay=delay, error=error):
                text = f"failed at attempt {n}{self._lasted(attempt)}: {_short(error)}; attempt {n + 1} follows in {phrases.span(delay)}"
                self._tell(logging.WARNING, attempt, text)
            case Failed(error=error, why=why) | TimedOut(error=error, why=why):
                text = f"failed at attempt {n}{self._lasted(attempt)}: {_short(error)}; no attempt follows"
                self._tell(logging.ERROR, attempt, f"{text} ({why}): a dead letter" if why else f"{text}: a dead letter")
            case Cancelled():
                self._tell(logging.INFO, attempt, f"was cancelled while it ran{self._lasted(attempt)}, at attempt {n}")
            case Died(cause=cause):
                text = f"lost its process at attempt {n}{self._lasted(attempt)}: {cause}; it runs again, unless that was once too often"
                self._tell(logging.WARNING, attempt, text)

    # --- lines -------------------------------------------------------------------------------

    def _lasted(self, attempt: Attempt, now: float | None = None) -> str:
        began = self._began.pop(attempt.id, None)
        return "" if began is None else f" after {phrases.span((now or time.time()) - began)}"

    def _tell(self, level: int, attempt: Attempt, text: str) -> None:
        name = attempt.message.task
        log.log(level, "%s", _line(name, attempt.id, text), extra={"krq": _fields(name, attempt.id, attempt.number)})

    def _note(self, at: float, name: str, task_id: str, attempt: int, text: str) -> None:
        """At debug, of which there is much."""
        line, fields = _line(name, task_id, text), _fields(name, task_id, attempt)
        if self._debug:
            log.debug("%s", line, extra={"krq": fields})
        elif self._file is not None:
            self._file.note(at, "DEBUG", log.name, line, fields)


def _line(name: str, task_id: str, text: str) -> str:
    return f"{name if name.isprintable() else phrases.one_line(name)} {task_id} {text}"


def _fields(name: str, task_id: str, attempt: int) -> dict[str, object]:
    return {"id": task_id, "task": name, "attempt": attempt}


def _short(error: ErrorInfo) -> str:
    text = phrases.one_line(phrases.error(error)[: MOST + 1])
    return text if len(text) <= MOST else f"{text[: MOST - 1]}…"
