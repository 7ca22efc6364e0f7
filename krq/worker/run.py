"""Run one attempt: from the message to the end of it, as a value. Runs in a slot."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from krq import context, events, failpoints, ids, message
from krq.config import Config
from krq.containment import NONE
from krq.context import Context
from krq.errors import KRQError, UnknownTask
from krq.events import Entry
from krq.failpoints import Failpoint
from krq.hooks import Attempt, Module
from krq.outcome import Cancelled, Died, ErrorInfo, Failed, Family, Outcome, RetryAt, Succeeded, TimedOut, cut, describe
from krq.registry import Registry
from krq.steps import Ask
from krq.worker.engine import Held, Settle
from krq.worker.execute import Execute
from krq.worker.hosts import Hosts
from krq.worker.observers import Observers
from krq.worker.slots import Loop

log = logging.getLogger("krq.worker")

_encode = msgspec.json.Encoder().encode
#: characters of a message and of a traceback in a task's history
HISTORY = 2_000
_CANCELLED = ErrorInfo("CANCELLED", "cancelled while it ran")


class Reach(NamedTuple):
    """What a run reaches of its worker."""

    report: Callable[[Attempt, int, int], None]
    """how far a task is"""
    ask: Ask
    read: Callable[[str, Sequence[str]], list[str]]
    """what a task has waited for: its id, the ids of those → their results, as JSON"""
    hosts: Hosts
    send: Callable[[Family, Callable[[], bool]], KRQError | None]
    """sends what a task has made"""


class Runner:
    """Calls functions and makes outcomes of whatever they do. Thread-safe."""

    def __init__(self, config: Config, registry: Registry, modules: Sequence[Module], incarnation: str, reach: Reach) -> None:
        self.epoch = 0
        self._config = config
        self._registry = registry
        self._incarnation = incarnation
        self._worker = ids.worker_of(incarnation)
        self._reach = reach
        self._execute = Execute(config, registry, Loop())
        self._fail = failpoints.armed()
        self._policies = [m for m in modules if type(m).outcome is not Module.outcome]
        self.observe = Observers(modules).tell

    def __call__(self, held: Held) -> Settle:
        """Run the attempt. Never raises."""
        held.started = _now()
        attempt = self._attempt(held)
        held.context = ctx = self._context(attempt)
        context.enter(ctx)  # for what watches it, too
        self.observe("started", attempt)
        if self._fail is not None:
            self._fail(Failpoint.RUN_STARTED)
        outcome = self._call(held, attempt, ctx) if held.known else _unknown(held)
        if not isinstance(outcome, Died):
            outcome = self._decide(attempt, outcome)
        if isinstance(outcome, Succeeded) and outcome.family is not None:
            outcome = self._send(held, attempt, outcome, outcome.family)
        self.observe("ended", attempt, outcome)
        if self._fail is not None:
            self._fail(Failpoint.RUN_ENDED)
        return settle(held, attempt, outcome, self._config.max_deaths)

    def _attempt(self, held: Held) -> Attempt:
        assert held.message is not None
        return Attempt(
            message=held.message, id=held.id, number=held.attempt, epoch=self.epoch, failures=held.failures, deaths=held.deaths,
            queue=held.queue, worker=self._worker, task=self._registry.get(held.message.task), sent=held.sent / 1000,
        )

    def isolates(self, held: Held) -> bool:
        """Whether this attempt runs in a process of its own."""
        assert held.message is not None
        task = self._registry.get(held.message.task)
        limits = NONE if task is None else task.containment
        timeout = limits.timeout if held.message.timeout is None else held.message.timeout
        return held.alone or (held.known and limits.needs_process(timeout))

    def _context(self, attempt: Attempt) -> Context:
        timeout = attempt.timeout
        return Context(attempt, self._reach.report, None if timeout is None else time.time() + timeout, self._reach.ask)

    def _call(self, held: Held, attempt: Attempt, ctx: Context) -> Outcome:
        try:
            inputs = held.inputs
            if inputs and inputs[1] is False:  # too many for a take
                inputs = (inputs[0], self._reach.read(held.id, message.named(attempt.message.after)))
            if held.alone:
                return self._reach.hosts.run(held, attempt, ctx, inputs)
        except KRQError as error:
            return Failed(ErrorInfo(error.code, str(error), describe(error).traceback))
        return self._execute.stoppable(attempt, ctx, inputs, attempt.timeout)

    def _decide(self, attempt: Attempt, outcome: Outcome) -> Outcome:
        for module in self._policies:
            try:
                decided = module.outcome(attempt, outcome)
                if not isinstance(decided, Outcome):
                    raise TypeError(f"{type(module).__name__}.outcome() returned {type(decided).__name__}, which is no outcome")
                outcome = decided
            except BaseException as error:  # boundary: a policy that raises fails the task, in plain sight
                log.exception("module %s could not decide about %s", type(module).__name__, attempt.id)
                outcome = Failed(describe(error), retryable=False)
        return outcome

    def _send(self, held: Held, attempt: Attempt, outcome: Succeeded, family: Family) -> Outcome:
        """Send what it has made: before its end is settled, so that it never waits for what the log does not have."""
        error = self._reach.send(family, lambda: held.context.cancelled)
        if error is not None:
            return self._decide(attempt, Failed(ErrorInfo(error.code, str(error))))
        return Cancelled() if held.context.cancelled else outcome


def settle(held: Held, attempt: Attempt, outcome: Outcome, max_deaths: int) -> Settle:
    """An outcome as the store and the log get it."""
    entry: dict[str, Any] = {}
    kind, delay, history = "S", 0, ""
    match outcome:
        case Succeeded(result=raw, family=Family()):
            kind, value = "W", raw.decode()
            entry = {"outcome": "spawned"}
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
        case Died(cause=cause):
            kind, value, delay = "D", cause, max_deaths
            entry = {"outcome": "died", "error": ErrorInfo("DIED", cause)}
        case Failed(error=error, why=why) | TimedOut(error=error, why=why):
            kind, value = "F", _encode(error).decode()
            entry = {"outcome": "failed", "error": error, "reason": why}
    if kind not in "SW":
        history = _history(held, attempt.worker, entry["outcome"], entry["error"])
    encoded = events.encode_entry(Entry(
        id=held.id, name=attempt.message.task, queue=held.queue, attempt=held.attempt, failures=held.failures, deaths=held.deaths,
        worker=attempt.worker, sent=held.sent, started=held.started, finished=_now(), **entry,
    ))
    family = outcome.family if isinstance(outcome, Succeeded) else None
    return Settle(held, kind, value, encoded.decode(), delay, history, family)


def _history(held: Held, worker: str, outcome: str, error: ErrorInfo) -> str:
    short = msgspec.structs.replace(error, message=cut(error.message, HISTORY), traceback=cut(error.traceback, HISTORY))
    return _encode(
        {"attempt": held.attempt, "outcome": outcome, "worker": worker, "started": held.started, "finished": _now(), "error": short},
    ).decode()


def _unknown(held: Held) -> Failed:
    assert held.message is not None
    text = f"no live worker of queue {held.queue!r} knows the task {held.message.task!r}"
    return Failed(ErrorInfo(UnknownTask.code, text), retryable=False)


def _now() -> int:
    return time.time_ns() // 1_000_000
