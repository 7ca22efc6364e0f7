"""Call a task's function and make an outcome of whatever it does: in a slot's thread, or in a process of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec

from krq import context, message
from krq.config import Config
from krq.context import Context
from krq.errors import ArgumentError, KRQError, MessageInvalid, MessageTooLarge, NotSerializable, UnknownTask
from krq.hooks import Attempt
from krq.message import Message
from krq.outcome import (
    Cancelled,
    ErrorInfo,
    Failed,
    Outcome,
    SoftTimeout,
    Stop,
    Succeeded,
    TaskError,
    TimedOut,
    describe,
    from_exception,
    lineage,
)
from krq.registry import Registry
from krq.workflow import Chain, Group, Signature

_decode = msgspec.json.Decoder().decode


class Loop(Protocol):
    """Where coroutines run."""

    def run(self, awaitable: Awaitable[Any], timeout: float | None, started: Callable[[Callable[[], object]], None]) -> Any:
        """Run it to its end and return its result; ``started`` gets a function that cancels it, from any thread."""
        ...


class LateCoroutine(Exception):
    """A coroutine was cancelled because its time was over."""


class Execute:
    """Calls functions. Thread-safe."""

    def __init__(self, config: Config, registry: Registry, loop: Loop) -> None:
        self._config = config
        self._registry = registry
        self._loop = loop
        self._stopping = threading.Lock()

    def stoppable(self, attempt: Attempt, ctx: Context, inputs: Sequence[Any] | None, timeout: float | None) -> Outcome:
        """Call it in this thread; when it is cancelled ``Stop`` is raised in its function, at the next bytecode. Never raises."""
        ident = threading.get_ident()
        running = True

        def stop() -> None:
            with self._stopping:
                if running:
                    _raise_in(ident, Stop)

        def over() -> None:
            nonlocal running
            with self._stopping:
                running = False
                if ctx.cancelled:
                    _raise_in(ident, None)

        if not self._is_coroutine(attempt):
            ctx.on_cancel(stop)
        try:
            try:
                return self(attempt, ctx, inputs, timeout)
            finally:
                over()
        except Stop:  # it came between the function's end and ours: one is sent, so the second try is not disturbed
            over()
            return Cancelled()

    @staticmethod
    def _is_coroutine(attempt: Attempt) -> bool:
        return attempt.task is not None and attempt.task.is_coroutine

    def __call__(self, attempt: Attempt, ctx: Context, inputs: Sequence[Any] | None, timeout: float | None) -> Outcome:
        """Call it, whatever it raises. ``ctx`` is this thread's current one."""
        try:
            if attempt.message.each is None:
                result = self._invoke(attempt, ctx, timeout, *arguments(attempt.message, inputs))
            else:
                result = self._each(attempt, ctx, timeout)
            if isinstance(result, Signature | Chain | Group):
                ctx.children.replace(result, self._config.max_message_bytes)
                result = [] if isinstance(result, Group) else None
            raw = message.encode_value(
                result, max_bytes=self._config.max_message_bytes, max_depth=self._config.max_depth,
                what=f"The result of {attempt.message.task!r}",
            )
        except BaseException as error:  # boundary: whatever the user's function raises ends its attempt, not its slot
            outcome = self._raised(error, attempt, ctx, timeout)
            return outcome if attempt.message.each is None else _at_item(outcome, error)
        return Succeeded(raw, ctx.family())

    def _each(self, attempt: Attempt, ctx: Context, timeout: float | None) -> list[Any]:
        """The results of all items of a chunk."""
        items, first = attempt.message.args
        found = []
        for n, item in enumerate(items, first):
            try:
                found.append(self._invoke(attempt, ctx, timeout, item if attempt.message.each == "args" else [item], {}))
            except BaseException as error:
                error.__dict__["krq_item"] = n
                raise
        return found

    def _invoke(self, attempt: Attempt, ctx: Context, timeout: float | None, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        task = attempt.task
        if task is None:
            if self._registry.catch_all is None:
                raise UnknownTask(f"No task {attempt.message.task!r} is registered in worker {attempt.worker}")
            if kwargs:
                raise ArgumentError(f"{attempt.message.task!r} came with keyword arguments; task_func(task_type, args) takes none")
            return self._registry.catch_all(attempt.message.task, list(args))
        if not task.is_coroutine:
            try:
                return task.function(*args, **kwargs)
            except TypeError as error:
                if error.__traceback__ is not None and error.__traceback__.tb_next is None:
                    task.bind(args, kwargs)
                raise
        task.bind(args, kwargs)
        return self._loop.run(_entered(task.function(*args, **kwargs), ctx), timeout, ctx.on_cancel)

    def _raised(self, error: BaseException, attempt: Attempt, ctx: Context, timeout: float | None) -> Outcome:
        if ctx.cancelled and isinstance(error, Stop | asyncio.CancelledError | concurrent.futures.CancelledError):
            return Cancelled()
        if isinstance(error, LateCoroutine):
            return late(timeout or 0.0, "it was cancelled")
        if isinstance(error, SoftTimeout):
            info = describe(error)
            return TimedOut(attempt.containment.soft_timeout or 0.0, info)
        if isinstance(error, ArgumentError | NotSerializable | MessageTooLarge | MessageInvalid):
            return Failed(ErrorInfo(error.code, f"{error.cause}. {error.advice}"), retryable=False)
        if isinstance(error, KRQError):
            return Failed(ErrorInfo(error.code, str(error), describe(error).traceback), classes=lineage(type(error)))
        return from_exception(error)


def late(timeout: float, what: str) -> TimedOut:
    """The outcome of a run that took too long."""
    return TimedOut(timeout, ErrorInfo("TIMED_OUT", f"ran for longer than {timeout:g} s; {what}"))


def arguments(msg: Message, inputs: Sequence[Any] | None) -> tuple[Sequence[Any], dict[str, Any]]:
    """The arguments of a call, with the results it waited for in front where it asked for them."""
    if not inputs or not inputs[1]:
        return msg.args, msg.kwargs
    values = _values(msg, inputs[1])
    match inputs[0]:
        case "list":
            values = [values]
        case "concat":
            values = [[one for value in values for one in (value if isinstance(value, list) else [value])]]
    return values + msg.args, msg.kwargs


def _values(msg: Message, raws: Sequence[str]) -> list[Any]:
    if any(raw.startswith("!") for raw in raws):
        return [_value(task_id, raw) for task_id, raw in zip(message.named(msg.after), raws, strict=True)]
    decoded: list[Any] = _decode(f"[{','.join(raws)}]")
    return decoded


def _value(task_id: str, raw: str) -> Any:
    if not raw.startswith("!"):
        return _decode(raw)
    return TaskError.of(task_id, raw[1] == "C", _decode(raw[2:]))


def _at_item(outcome: Outcome, error: BaseException) -> Outcome:
    """The same, with the item's place in the whole map."""
    if "krq_item" not in error.__dict__ or not isinstance(outcome, Failed | TimedOut):
        return outcome
    text = f"item {error.__dict__['krq_item']}: {outcome.error.message}"
    return msgspec.structs.replace(outcome, error=msgspec.structs.replace(outcome.error, message=text))


async def within(awaitable: Awaitable[Any], timeout: float | None) -> Any:
    """Await it; cancelled after ``timeout`` seconds it raises ``LateCoroutine``."""
    try:
        async with asyncio.timeout(timeout) as scope:
            return await awaitable
    except TimeoutError:
        if scope.expired():
            raise LateCoroutine from None
        raise


async def _entered(coroutine: Any, ctx: Context) -> Any:
    context.enter(ctx)
    return await coroutine


def _raise_in(ident: int, error: type[BaseException] | None) -> None:
    """Raise ``error`` in another thread at its next bytecode; None: take back what has not been raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), None if error is None else ctypes.py_object(error))
