"""The distributed log: what a task logs and prints, wherever it runs, tied to its id and attempt.

Lines go to a stream of the task's own in Redis, and to the ``logs`` topic. ``KRQ.logs`` and ``KRQ.follow_logs`` read them.
"""

from __future__ import annotations

from typing import Any, Protocol

from krq import loglines
from krq.brokers.base import Broker, Outgoing, Position
from krq.capture import Capture
from krq.config import Config
from krq.errors import KRQError
from krq.hooks import Attempt, Module, Say
from krq.loglines import Batch, LogLine
from krq.modules import _shipping
from krq.modules._shipping import Outlet, Relay
from krq.outcome import Outcome
from krq.store import lines
from krq.store.client import Store

#: seconds that the log gets to take a batch, and that a worker which leaves waits for what is left
PATIENCE, FAREWELL = 5.0, 1.0


class App(Protocol):
    """What this module asks of the app."""

    config: Config

    @property
    def store(self) -> Store: ...

    @property
    def broker(self) -> Broker: ...


class TaskLogs(Module):
    """Catches lines in workers and ships them, in the background. What can't be shipped is dropped in the end, counted and told."""

    def __init__(self) -> None:
        self._app: App | None = None
        self._capture = Capture(self._note)
        self._outlets: list[Outlet] = []
        self._relay: Relay | None = None

    # --- hooks -------------------------------------------------------------------------------

    def attach(self, app: Any) -> None:
        """Remember the app: its connections are made once there is a line."""
        self._app = app

    def worker_started(self, worker_id: str) -> None:  # noqa: ARG002
        """Begin to catch."""
        self._outlets = [Outlet("Redis", self._to_redis), Outlet("the log", self._to_log)]
        self._capture.install()

    def ended(self, attempt: Attempt, outcome: Outcome) -> None:  # noqa: ARG002
        """What it printed last is a line."""
        if self._capture.rests:
            self._capture.flush(attempt)

    def worker_stopped(self, worker_id: str) -> None:  # noqa: ARG002
        """Send what is left."""
        for outlet in self._outlets:
            outlet.drain(FAREWELL)

    def host_started(self, say: Say) -> None:
        """Begin to catch in a process of its own."""
        self._relay = Relay(say)
        self._capture.install()

    def host_ended(self, attempt: Attempt) -> None:
        """All of its lines are in the child before its outcome is."""
        self._capture.flush(attempt)
        if self._relay is not None:
            self._relay.flush()

    def heard(self, data: bytes) -> None:
        """Lines of a task in a process of its own."""
        for task_id, line in _shipping.heard(data):
            self._note(task_id, line)

    # --- the way of a line -------------------------------------------------------------------

    def _note(self, task_id: str, line: LogLine) -> None:
        if self._relay is not None:
            self._relay.add(task_id, line)
        for outlet in self._outlets:
            outlet.add(task_id, line)

    def _to_redis(self, batch: Batch) -> Batch:
        assert self._app is not None
        lines.keep(self._app.store, batch, self._app.config.result_ttl)
        return []

    def _to_log(self, batch: Batch) -> Batch:
        assert self._app is not None
        pages = list(loglines.pages(batch))
        records = [Outgoing(self._app.config.logs_topic, loglines.encode(page), key=page.id) for page in pages]
        again: Batch = []
        for page, answer in zip(pages, self._app.broker.publish(records, PATIENCE), strict=True):
            if isinstance(answer, ConnectionError | TimeoutError):
                again += [(page.id, line) for line in page.lines]
            elif not isinstance(answer, Position):
                raise answer if isinstance(answer, KRQError) else KRQError(f"The log did not take lines: {answer}")
        return again
