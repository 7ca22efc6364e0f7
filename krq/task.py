"""Tasks: a function with a name and options, which can be called here or sent."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, Unpack, cast, overload

from krq import containment, ids
from krq.call import Call, CallOptions, Sender
from krq.errors import ArgumentError
from krq.handle import BroadcastHandle, TaskHandle
from krq.workflow import Map, Signature

P = ParamSpec("P")
Q = ParamSpec("Q")
A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")


class Task(Generic[P, R]):
    """A registered function. Calling it runs it here; ``send`` runs it in a worker."""

    def __init__(self, sender: Sender, function: Callable[P, R], name: str, options: Mapping[str, Any]) -> None:
        self.function = function
        self.name = ids.check_task_name(name)
        self.settings = dict(options)
        self.is_coroutine = inspect.iscoroutinefunction(function)
        self.containment = containment.read(self.name, options, coroutine=self.is_coroutine)
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

    # The first argument may be left out: a step of a chain gets it from the step before.
    @overload
    def s(self: Task[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> Signature[T]: ...
    @overload
    def s(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]: ...
    @overload
    def s(  # type: ignore[misc] # of a Task as a Callable alone mypy infers A; it does not see that R may be Awaitable
        self: Callable[Concatenate[A, Q], Awaitable[T]], *args: Q.args, **kwargs: Q.kwargs
    ) -> Signature[T, A]: ...
    @overload
    def s(self: Callable[Concatenate[A, Q], T], *args: Q.args, **kwargs: Q.kwargs) -> Signature[T, A]: ...
    def s(self, *args: Any, **kwargs: Any) -> Any:
        """A call for ``krq.chain`` and ``krq.group``: sent with them, not now."""
        return Signature(self._sender, Call(self.name, args, kwargs, self))

    @overload
    def si(self: Task[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> Signature[T]: ...
    @overload
    def si(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]: ...
    def si(self, *args: Any, **kwargs: Any) -> Any:
        """The same, immutable: it waits for the step before and takes no result of it."""
        return Signature(self._sender, Call(self.name, args, kwargs, self), immutable=True)

    @overload
    def broadcast(self: Task[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> BroadcastHandle[T]: ...
    @overload
    def broadcast(self, *args: P.args, **kwargs: P.kwargs) -> BroadcastHandle[R]: ...
    def broadcast(self, *args: Any, **kwargs: Any) -> Any:
        """Send it to each worker that is alive now: see ``KRQ.broadcast``."""
        return self._sender.broadcast(self.name, args, kwargs)

    # Further arguments need defaults: each call gets the item alone.
    @overload
    def map(  # type: ignore[misc]
        self: Callable[Concatenate[A, Q], Awaitable[T]], items: Iterable[A], chunk: int = ...
    ) -> Map[T]: ...
    @overload
    def map(self: Callable[Concatenate[A, Q], T], items: Iterable[A], chunk: int = ...) -> Map[T]: ...
    def map(self, items: Iterable[Any], chunk: int = 100) -> Map[Any]:
        """A group that calls it with each item: see ``Bound.map``."""
        return Bound(self, {}).map(items, chunk)

    @overload
    def starmap(self: Task[P, Awaitable[T]], items: Iterable[Sequence[Any]], chunk: int = ...) -> Map[T]: ...
    @overload
    def starmap(self, items: Iterable[Sequence[Any]], chunk: int = ...) -> Map[R]: ...
    def starmap(self, items: Iterable[Sequence[Any]], chunk: int = 100) -> Map[Any]:
        """The same with a sequence of arguments for each call."""
        return Bound(self, {}).starmap(items, chunk)

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

    @overload
    def s(self: Bound[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> Signature[T]: ...
    @overload
    def s(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]: ...
    @overload
    def s(self: Bound[Concatenate[Any, Q], Awaitable[T]], *args: Q.args, **kwargs: Q.kwargs) -> Signature[T]: ...
    @overload
    def s(self: Bound[Concatenate[Any, Q], R], *args: Q.args, **kwargs: Q.kwargs) -> Signature[R]: ...
    def s(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Task.s``, with these options."""
        return Signature(self.task._sender, Call(self.task.name, args, kwargs, self.task, self._options))

    @overload
    def si(self: Bound[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> Signature[T]: ...
    @overload
    def si(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]: ...
    def si(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Task.si``, with these options."""
        return Signature(self.task._sender, Call(self.task.name, args, kwargs, self.task, self._options), immutable=True)

    @overload
    def map(self: Bound[P, Awaitable[T]], items: Iterable[Any], chunk: int = ...) -> Map[T]: ...
    @overload
    def map(self, items: Iterable[Any], chunk: int = ...) -> Map[R]: ...
    def map(self, items: Iterable[Any], chunk: int = 100) -> Map[Any]:
        """A group that calls it with each item, ``chunk`` items to a task. ``.send().result()`` is the list of all results, in order.

        A chunk is one task: it is retried as a whole, one failure ends it, and ``timeout`` is for all of it. Raises ``ArgumentError``
        for an item that does not fit, and ``OptionError``.
        """
        return Map(self.task._sender, Call(self.task.name, [], {}, self.task, self._options, "item"), items, chunk)

    @overload
    def starmap(self: Bound[P, Awaitable[T]], items: Iterable[Sequence[Any]], chunk: int = ...) -> Map[T]: ...
    @overload
    def starmap(self, items: Iterable[Sequence[Any]], chunk: int = ...) -> Map[R]: ...
    def starmap(self, items: Iterable[Sequence[Any]], chunk: int = 100) -> Map[Any]:
        """The same with a sequence of arguments for each call."""
        return Map(self.task._sender, Call(self.task.name, [], {}, self.task, self._options, "args"), items, chunk)

    def broadcast(self, *args: P.args, **kwargs: P.kwargs) -> BroadcastHandle[R]:
        """As ``Task.broadcast``, with these options."""
        return self.task._sender.broadcast(self.task.name, args, kwargs, **self._options)
