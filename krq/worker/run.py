"""Run one attempt: from the message to the end of it, as a value. Runs in a slot."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from krq import context, events, ids, message
from krq.config import Config
from krq.errors import ArgumentError, KRQError, MessageInvalid, MessageTooLarge, NotSerializable, UnknownTask
from krq.events import DeadLetter, Entry
from krq.hooks import Attempt, Module
from krq.message import Message
from krq.outcome import Cancelled, ErrorInfo, Failed, Outcome, RetryAt, Succeeded, TimedOut, describe, from_exception
from krq.registry import Registry
from krq.worker.engine import Held, Settle
from krq.worker.slots import Loop

log = logging.getLogger("krq.worker")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
#: hooks that watch and decide nothing
OBSERVERS = ("started", "ended", "worker_started", "worker_stopping", "tick")
_CANCELLED = ErrorInfo("CANCELLED", "cancelled while it ran")


class Runner:
    """Calls functions and makes outcomes of whatever they do. Thread-safe."""

    def __init__(self, config: Config, registry: Registry, modules: Sequence[Module], incarnation: str,
                 report: Callable[[Attempt, int, int], None], read: Callable[[Sequence[str]], list[str]]) -> None:
        self.epoch = 0
        self._config = config
        self._registry = registry
        self._incarnation = incarnation
        self._worker = ids.worker_of(incarnation)
        self._report = report
        self._read = read
        self._loop = Loop()
        self._policies = [m for m in modules if type(m).outcome is not Module.outcome]
        self._observers = {
            hook: [getattr(m, hook) for m in modules if getattr(type(m), hook) is not getattr(Module, hook)] for hook in OBSERVERS
        }

    def __call__(self, held: Held) -> Settle:
        """Run the attempt. Never raises."""
        held.started = _now()
        attempt = self._attempt(held)
        self.observe("started", attempt)
        outcome = self._call(held, attempt) if held.known else _unknown(held)
        outcome = self._decide(attempt, outcome)
        self.observe("ended", attempt, outcome)
        return settle(held, attempt, outcome)

    def _attempt(self, held: Held) -> Attempt:
        assert held.message is not None
        return Attempt(
            message=held.message, id=held.id, number=held.attempt, epoch=self.epoch, failures=held.failures, deaths=held.deaths,
            queue=held.queue, worker=self._worker, task=self._registry.get(held.message.task), sent=held.sent / 1000,
        )

    def _call(self, held: Held, attempt: Attempt) -> Outcome:
        ctx = context.Context(attempt, self._report)
        held.context = ctx
        context.enter(ctx)
        try:
            inputs = held.inputs
            if inputs and inputs[1] is False:  # too many for a take
                inputs = (inputs[0], self._read(attempt.message.after))
            result = self._invoke(attempt, ctx, *arguments(attempt.message, inputs))
            raw = message.encode_value(
                result, max_bytes=self._config.max_message_bytes, max_depth=self._config.max_depth,
                what=f"The result of {attempt.message.task!r}",
            )
        except BaseException as error:  # boundary: whatever the user's function raises ends its attempt, not its slot
            return self._raised(error, ctx)
        return Succeeded(raw)

    def _invoke(self, attempt: Attempt, ctx: context.Context, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        task = attempt.task
        if task is None:
            if self._registry.catch_all is None:
                raise UnknownTask(f"No task {attempt.message.task!r} is registered in worker {self._worker}")
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
        return self._loop.run(_entered(task.function(*args, **kwargs), ctx), ctx.on_cancel)

    def _raised(self, error: BaseException, ctx: context.Context) -> Outcome:
        if ctx.cancelled and isinstance(error, asyncio.CancelledError | concurrent.futures.CancelledError):
            return Cancelled()
        if isinstance(error, ArgumentError | NotSerializable | MessageTooLarge | MessageInvalid):
            return Failed(ErrorInfo(error.code, f"{error.cause}. {error.advice}"), retryable=False)
        if isinstance(error, KRQError):
            return Failed(ErrorInfo(error.code, str(error), describe(error).traceback))
        return from_exception(error)

    def _decide(self, attempt: Attempt, outcome: Outcome) -> Outcome:
        for module in self._policies:
            try:
                outcome = module.outcome(attempt, outcome)
            except Exception as error:  # boundary: a policy that raises fails the task, in plain sight
                log.exception("module %s could not decide about %s", type(module).__name__, attempt.id)
                outcome = Failed(describe(error), retryable=False)
        return outcome

    def observe(self, hook: str, *args: Any) -> None:
        """Tell the modules that have this hook. One that fails is logged, and changes nothing."""
        for tell in self._observers[hook]:
            try:
                tell(*args)
            except Exception:  # boundary: observers may fail
                log.exception("%s failed; the worker goes on", tell.__qualname__)


async def _entered(coroutine: Any, ctx: context.Context) -> Any:
    context.enter(ctx)
    return await coroutine


def arguments(msg: Message, inputs: Sequence[Any] | None) -> tuple[Sequence[Any], dict[str, Any]]:
    """The arguments of a call, with the results it waited for in front where it asked for them."""
    if not inputs or not inputs[1]:
        return msg.args, msg.kwargs
    values = [_decode(value) for value in inputs[1]]
    return ([values] if inputs[0] == "list" else values) + msg.args, msg.kwargs


def settle(held: Held, attempt: Attempt, outcome: Outcome) -> Settle:
    """An outcome as the store and the log get it."""
    entry: dict[str, Any] = {}
    kind, delay, letter = "S", 0, None
    match outcome:
        case Succeeded(result=raw):
            value = raw.decode()
            entry = {"outcome": "success", "result": msgspec.Raw(raw)}
        case RetryAt(delay=seconds, error=error):
            kind, delay = "R", max(0, int(seconds * 1000))
            value = _encode(error).decode()
            entry = {"outcome": "retry", "error": error, "due": _now() + delay}
        case Cancelled():
            kind, value = "C", _encode(_CANCELLED).decode()
            entry = {"outcome": "cancelled", "error": _CANCELLED}
        case Failed(error=error) | TimedOut(error=error):
            kind, value = "F", _encode(error).decode()
            entry = {"outcome": "failed", "error": error}
            if isinstance(outcome, Failed) and outcome.dead:
                letter = _letter(held, attempt, error)
    encoded = events.encode_entry(Entry(
        id=held.id, name=attempt.message.task, queue=held.queue, attempt=held.attempt, failures=held.failures, deaths=held.deaths,
        worker=attempt.worker, sent=held.sent, started=held.started, finished=_now(), **entry,
    ))
    return Settle(held, kind, value, encoded.decode(), delay, letter)


def _letter(held: Held, attempt: Attempt, error: ErrorInfo) -> bytes:
    return events.encode_letter(DeadLetter(
        reason=error.message, code=error.type, at=_now(), queue=held.queue, id=held.id, name=attempt.message.task,
        error=error, value=held.raw,
    ))


def _unknown(held: Held) -> Failed:
    assert held.message is not None
    text = f"no live worker of queue {held.queue!r} knows the task {held.message.task!r}"
    return Failed(ErrorInfo(UnknownTask.code, text), retryable=False, dead=True)


def _now() -> int:
    return time.time_ns() // 1_000_000
