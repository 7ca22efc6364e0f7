"""Tasks: a function with a name and options, which can be called here or sent."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic, NamedTuple, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, cast, overload

from krq import ids
from krq.errors import ArgumentError
from krq.handle import TaskHandle
from krq.message import Inputs

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class CallOptions(TypedDict, total=False):
    """Options of one call. Modules may own more."""

    queue: str
    priority: int
    """-100 to 100; the higher runs first within its queue"""
    delay: float | timedelta
    """seconds from now"""
    eta: float | datetime
    """not before: Unix seconds or an aware datetime"""
    expires: float | datetime | timedelta
    """not started after: Unix seconds, an aware datetime, or a timedelta from now"""
    key: str
    """messages of one key stand in one partition, in order"""
    after: Sequence[TaskHandle[Any] | str]
    """waits until all of these have succeeded"""
    inputs: Inputs
    """what it gets of them: "none", "prepend" or "list" """
    task_id: str
    """an id of your own: sending it twice runs it once"""
    headers: Mapping[str, Any]
    retries: int
    backoff: Any
    timeout: float


class Call(NamedTuple):
    """One task to send."""

    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    task: Task[..., Any] | None = None
    options: Mapping[str, Any] = {}


class Sender(Protocol):
    """What a task asks of the app."""

    def send_calls(self, calls: Sequence[Call]) -> list[TaskHandle[Any]]: ...

    def check_options(self, options: Mapping[str, Any]) -> None: ...


class Task(Generic[P, R]):
    """A registered function. Calling it runs it here; ``send`` runs it in a worker."""

    def __init__(self, sender: Sender, function: Callable[P, R], name: str, options: Mapping[str, Any]) -> None:
        self.function = function
        self.name = ids.check_task_name(name)
        self.settings = dict(options)
        self.is_coroutine = inspect.iscoroutinefunction(function)
        self._sender = sender
        self._signature = inspect.signature(function)
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", name)
        self.__wrapped__ = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now."""
        return self.function(*args, **kwargs)

    # A coroutine function's result is what it returns, not the coroutine.
    @overload
    def send(self: Task[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> TaskHandle[T]: ...
    @overload
    def send(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]: ...
    def send(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[Any]:
        """Send it. Returns when the log has the message; see ``KRQ.submit`` for errors. Thread-safe."""
        return self._sender.send_calls([Call(self.name, args, kwargs, self)])[0]

    async def asend(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """``send`` for coroutines: does not block the event loop."""
        return await asyncio.to_thread(self.send, *args, **kwargs)

    def send_many(self, calls: Iterable[Sequence[Any]]) -> list[TaskHandle[R]]:
        """Send one task for each tuple of arguments, as one batch.

        All arguments are checked before anything is sent. See ``KRQ.submit_many`` for what a failure leaves behind.
        """
        return self._sender.send_calls([Call(self.name, tuple(args), {}, self) for args in calls])

    def options(self, **options: Unpack[CallOptions]) -> Bound[P, R]:
        """The same task with options for the calls made through what this returns."""
        self._sender.check_options(options)
        return Bound(self, cast("dict[str, Any]", options))

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise ``ArgumentError`` when the arguments do not fit the signature."""
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(f"{self.name}{self._signature} can't be called so: {error}") from None

    def __repr__(self) -> str:
        return f"<krq.Task {self.name}{self._signature}>"


class Bound(Generic[P, R]):
    """A task with options for its calls."""

    def __init__(self, task: Task[P, R], options: Mapping[str, Any]) -> None:
        self.task = task
        self._options = options

    def options(self, **options: Unpack[CallOptions]) -> Bound[P, R]:
        """More options, or others."""
        self.task._sender.check_options(options)
        return Bound(self.task, {**self._options, **options})

    def send(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """As ``Task.send``."""
        return self.task._sender.send_calls([Call(self.task.name, args, kwargs, self.task, self._options)])[0]

    async def asend(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """As ``Task.asend``."""
        return await asyncio.to_thread(self.send, *args, **kwargs)

    def send_many(self, calls: Iterable[Sequence[Any]]) -> list[TaskHandle[R]]:
        """As ``Task.send_many``."""
        return self.task._sender.send_calls([Call(self.task.name, tuple(args), {}, self.task, self._options) for args in calls])
