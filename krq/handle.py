"""What a sender holds of a task it sent."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable
from typing import Generic, Protocol, TypeVar, cast

from krq.errors import TaskCancelled, TaskFailed
from krq.info import TaskInfo

R = TypeVar("R")


class Results(Protocol):
    """What a handle asks of the app."""

    def status(self, task_id: str) -> TaskInfo: ...

    def result(self, task_id: str, timeout: float | None = None) -> object: ...

    def aresult(self, task_id: str, timeout: float | None = None) -> Awaitable[object]: ...

    def cancel(self, task_id: str) -> bool: ...


class TaskHandle(Generic[R]):
    """A task that was sent. ``str(handle)`` is its id. Thread-safe; costs nothing to keep or to drop."""

    __slots__ = ("_results", "id")

    def __init__(self, task_id: str, results: Results) -> None:
        self.id = task_id
        self._results = results

    def status(self) -> TaskInfo:
        """The task as it stands now. Raises ``TaskNotFound``."""
        return self._results.status(self.id)

    def result(self, timeout: float | None = None) -> R:
        """Wait for the end and return what the function returned (through JSON).

        ``timeout``: seconds, None for ever. Raises ``TaskFailed`` with the remote traceback, ``TaskCancelled``,
        ``ResultTimeout`` (the task goes on) or ``TaskNotFound``.
        """
        return cast(R, self._results.result(self.id, timeout))

    async def aresult(self, timeout: float | None = None) -> R:
        """The same for coroutines: waits without blocking the event loop."""
        return cast(R, await self._results.aresult(self.id, timeout))

    def wait(self, timeout: float | None = None) -> TaskInfo:
        """Wait for the end, whatever it is, and return the task. Raises ``ResultTimeout`` or ``TaskNotFound``."""
        with contextlib.suppress(TaskFailed, TaskCancelled):
            self._results.result(self.id, timeout)
        return self.status()

    def cancel(self) -> bool:
        """Ask that it does not run, or stops. False: it had already ended."""
        return self._results.cancel(self.id)

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"TaskHandle({self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskHandle) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)
