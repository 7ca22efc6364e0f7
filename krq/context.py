"""What a running task may know of itself: ``krq.current()``."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from krq.errors import KRQError
from krq.hooks import Attempt


class Context:
    """The attempt that is running here."""

    __slots__ = ("_cancel", "_cancelled", "_report", "attempt_value", "deadline")

    def __init__(self, attempt: Attempt, report: Callable[[Attempt, int, int], None], deadline: float | None = None) -> None:
        self.attempt_value = attempt
        self.deadline = deadline
        """Unix seconds by which it must end, None where there is no limit"""
        self._report = report
        self._cancelled = False
        self._cancel: Callable[[], object] | None = None

    @property
    def id(self) -> str:
        """The task's id."""
        return self.attempt_value.id

    @property
    def name(self) -> str:
        """The task's name."""
        return self.attempt_value.message.task

    @property
    def attempt(self) -> int:
        """1, 2, …: rises with each attempt of this task."""
        return self.attempt_value.number

    @property
    def fence(self) -> tuple[int, int]:
        """(epoch, attempt): rises even if Redis forgets the attempts before. Hand it to stores that compare."""
        return self.attempt_value.fence

    @property
    def worker(self) -> str:
        """The worker's id."""
        return self.attempt_value.worker

    @property
    def headers(self) -> dict[str, object]:
        """The message's headers."""
        return self.attempt_value.message.headers

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked to stop, or the worker lost its lease. A long task should look now and then."""
        return self._cancelled

    def cancel(self) -> None:
        """Tell the task to stop (for the worker)."""
        self._cancelled = True
        if self._cancel is not None:
            self._cancel()

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        """Call this, too, when it is told to stop (for the worker)."""
        self._cancel = cancel
        if self._cancelled:
            cancel()

    def progress(self, done: int, total: int) -> None:
        """Say how far it is. Sent at most once a second; never raises for the store's sake."""
        self._report(self.attempt_value, done, total)


_current: ContextVar[Context] = ContextVar("krq_current")


def current() -> Context:
    """The running task's context. Raises ``KRQError`` outside a task."""
    try:
        return _current.get()
    except LookupError:
        raise KRQError("krq.current() was called outside a task", cure="Call it in the function that a worker runs.") from None


def enter(context: Context) -> None:
    """Make ``context`` the current one of this thread or coroutine."""
    _current.set(context)
