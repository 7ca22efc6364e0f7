"""What a running task may know of itself: ``krq.current()``."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar, overload

from krq import steps
from krq.children import Children
from krq.errors import KRQError
from krq.handle import AnyHandle
from krq.hooks import Attempt
from krq.message import OnFailure
from krq.outcome import Family
from krq.steps import Ask, Steps

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Context:
    """The attempt that is running here."""

    __slots__ = ("_ask", "_cancel", "_cancelled", "_children", "_report", "_steps", "attempt_value", "deadline")

    def __init__(self, attempt: Attempt, report: Callable[[Attempt, int, int], None], deadline: float | None = None,
                 ask: Ask | None = None) -> None:
        self.attempt_value = attempt
        self.deadline = deadline
        """Unix seconds by which it must end, None where there is no limit"""
        self._report = report
        self._ask = ask
        self._cancelled = False
        self._cancel: Callable[[], object] | None = None
        self._steps = Steps(attempt, ask)
        self._children: Children | None = None

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
        """Tell the task to stop, once (for the worker)."""
        if self._cancelled:
            return
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

    def ask(self, what: str, arguments: Sequence[str]) -> Sequence[str]:
        """Ask the worker on behalf of the task, which runs in another process (for the worker)."""
        if self._ask is None:
            raise KRQError("Nobody answers tasks here")
        return self._ask(self.attempt_value, what, arguments)

    def spawn(self, work: Any, /, *args: Any, on_failure: OnFailure | None = None, **kwargs: Any) -> AnyHandle:
        """Make a child: a task and its arguments, ``spawn(add, 1, 2)``, or a signature, chain or group. This task ends when all have.

        They are sent, the log first, when the function has returned; of an attempt that fails none is. So nothing in here can wait for
        them: the handle has their ids, and all else of it raises ``KRQError``. Meanwhile this task is ``waiting``, without a slot, and
        then it succeeds with what the function returned. Where a child does not succeed it fails with ``DEPENDENCY_FAILED``;
        ``on_failure="continue"``, said once for all of them: it succeeds all the same. Cancelling it cancels those that have not ended.
        Ids are the parent's with a counter: a function that runs again, after its worker died, has to make the same children in the same
        order; what may differ belongs into a ``step``. Raises ``OptionError``, ``ChildLimit`` (10,000 tasks, 32 deep), and as
        ``KRQ.submit`` for arguments that do not fit or can't be sent.
        """
        return self.children.spawn(work, args, kwargs, on_failure)

    def family(self) -> Family | None:
        """What it has made, None for nothing (for the worker)."""
        return None if self._children is None else self._children.family()

    @property
    def children(self) -> Children:
        """What it has made so far (for the worker)."""
        if self._children is None:
            self._children = Children(self.attempt_value)
        return self._children

    @overload
    def step(self, name: str, function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]: ...
    @overload
    def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def step(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call the function, unless an earlier attempt of this task has: then return what it came to.

        The result is stored before this returns, as JSON, and what is returned went through JSON either way. What the function raises
        is raised, and not stored. It may run twice: when its worker died after it returned and before it was stored. The second step of
        a name is ``name#2``, and so on, in order of the calls: steps that run side by side need names of their own. Kept until the
        task's end, at most 1,000 steps and 4 MB; in Redis alone, so they run again where that lost its data.
        Of a coroutine function: ``await`` what this returns. Waits while Redis is away. Thread-safe. Raises ``OptionError`` for a name
        that can't be, ``NotSerializable``, ``StepLimit``, and ``AttemptLost`` where another attempt has taken over.
        """
        if inspect.iscoroutinefunction(function) or getattr(function, "is_coroutine", False):
            return self.astep(name, function, *args, **kwargs)
        found = self._steps.find(name)
        if found.kept is not None:
            return steps.value(found.kept)
        return self._steps.keep(found.name, function(*args, **kwargs))

    @overload
    async def astep(self, name: str, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    async def astep(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def astep(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """``step`` for coroutines: does not block the event loop. A function that is none itself runs in a thread."""
        found = await asyncio.to_thread(self._steps.find, name)
        if found.kept is not None:
            return steps.value(found.kept)
        if inspect.iscoroutinefunction(function) or getattr(function, "is_coroutine", False):
            result = await function(*args, **kwargs)
        else:
            result = await asyncio.to_thread(function, *args, **kwargs)
        return await asyncio.to_thread(self._steps.keep, found.name, result)


_current: ContextVar[Context] = ContextVar("krq_current")


def current() -> Context:
    """The running task's context. Raises ``KRQError`` outside a task."""
    try:
        return _current.get()
    except LookupError:
        raise KRQError("krq.current() was called outside a task", cure="Call it in the function that a worker runs.") from None


def running() -> Context | None:
    """The same, None outside a task."""
    return _current.get(None)


def enter(context: Context) -> None:
    """Make ``context`` the current one of this thread or coroutine."""
    _current.set(context)
