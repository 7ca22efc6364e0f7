"""Retries: a failed attempt runs again, later, with back-off and jitter.

Without this module every failure is final. It is also the example of how a module is written: it owns
options, puts what the caller chose into the message, and decides about outcomes.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from krq.backoff import Backoff
from krq.durations import seconds
from krq.errors import OptionError
from krq.hooks import Attempt, Module
from krq.message import Message
from krq.outcome import ErrorInfo, Failed, Outcome, Retry, RetryAt, SoftTimeout, Succeeded, TimedOut, describe, lineage, name_of
from krq.task import Task

log = logging.getLogger("krq.retries")

#: where a call's own back-off, and its other wishes, travel
HEADER, RULES = "krq-backoff", "krq-retry"
#: options that name functions to tell
HOOKS = ("on_retry", "on_failure", "on_success")
_HOOKS = frozenset(HOOKS)
#: more attempts than anybody can want
MANY = 1_000_000
_LATE = lineage(SoftTimeout, TimeoutError)
_ASKED = name_of(Retry)

_result = msgspec.json.Decoder().decode


class Rules(msgspec.Struct, frozen=True, omit_defaults=True):
    """When to try again, as it travels with a call."""

    on: tuple[str, ...] = ()
    """names of classes, as ``Failed.classes`` has them; () any"""
    not_on: tuple[str, ...] = ()
    max_age: float | None = None
    """seconds"""

    def forbid(self, classes: Iterable[str], age: float) -> str:
        """Why an attempt after this failure, which would begin at this age, may not be; "" if it may."""
        mine = set(classes)
        if mine & set(self.not_on):
            return "give_up_on names it"
        if self.on and not mine & {*self.on, _ASKED}:
            return "retry_on does not name it"
        if self.max_age is not None and age > self.max_age:
            return f"it would be older than max_age={self.max_age:g} s"
        return ""


class Retries(Module):
    """``retries``: further attempts after a failure (2: three attempts in all).

    ``backoff``: a ``krq.Backoff``; a number: seconds before the first further attempt; or, at ``@app.task`` alone, a function
    ``(failures, error) -> seconds``, called in the slot with 1, 2, … and the ``ErrorInfo``. ``retry_on``, ``give_up_on``: exception
    classes, the second before the first; of an exception group any member counts. ``max_age``: seconds after the first
    send after which nothing begins again. ``on_retry``, ``on_failure``: functions of (attempt, error), and ``on_success`` of
    (attempt, result), called in the slot once it is decided, before it is settled; if one fails that is logged.
    """

    options: Mapping[str, Any] = {"retries": int, "backoff": Any, "retry_on": Any, "give_up_on": Any, "max_age": Any}
    task_options: Mapping[str, Any] = dict.fromkeys(HOOKS, Any)

    def __init__(self, retries: int = 2, backoff: Backoff | None = None) -> None:
        self._retries = retries
        self._backoff = backoff or Backoff()

    # --- what was asked for ------------------------------------------------------------------

    def check(self, task: Task[..., Any]) -> None:
        """Refuse what makes no sense when the task is registered."""
        settings = task.settings
        _check_count(settings)
        given = settings.get("backoff", self._backoff)
        if callable(given):
            _check_function("backoff", given, "(failures, error) -> seconds")
        else:
            _policy(given)
        for hook in HOOKS:
            if hook in settings:
                _check_function(hook, settings[hook], "(attempt, result)" if hook == "on_success" else "(attempt, error)")
        _rules(settings)

    def submit(self, message: Message, options: Mapping[str, Any]) -> Message:
        """What the call asks for goes before what the task says."""
        if not options.keys() & self.options.keys():
            return message
        headers = {}
        _check_count(options)
        if "backoff" in options:
            if callable(options["backoff"]):
                cure = "Give it to @app.task(...), or a krq.Backoff here."
                raise OptionError("backoff= of a call is a function: it can't travel", cure=cure)
            headers[HEADER] = msgspec.to_builtins(_policy(options["backoff"]))
        if options.keys() & {"retry_on", "give_up_on", "max_age"}:
            headers[RULES] = msgspec.to_builtins(_rules(options))
        return msgspec.structs.replace(
            message, retries=options.get("retries", message.retries), headers={**message.headers, **headers},
        )

    # --- decisions ---------------------------------------------------------------------------

    def outcome(self, attempt: Attempt, outcome: Outcome) -> Outcome:
        """A failure that may pass becomes another attempt, while there are any left."""
        if not isinstance(outcome, Failed | TimedOut) or (isinstance(outcome, Failed) and not outcome.retryable):
            return outcome
        settings = attempt.task.settings if attempt.task is not None else {}
        left = attempt.message.retries
        if left is None:
            left = settings.get("retries", self._retries)
        if attempt.failures >= left:
            used = f"all of its {left} retries are used up" if left > 1 else "its one retry is used up"
            return _final(outcome, used if left else "it has no retries")
        try:
            rules = _chosen(_rules(settings), attempt.message.headers.get(RULES))
            delay = self._delay(attempt, outcome, settings.get("backoff", self._backoff))
        except BaseException as error:  # boundary: a back-off is the user's code, or came with a foreign message
            return _broken(outcome, error)
        classes = outcome.classes if isinstance(outcome, Failed) else _LATE
        why = rules.forbid(classes, time.time() + delay - attempt.sent)
        return _final(outcome, why) if why else RetryAt(delay, outcome.error)

    def _delay(self, attempt: Attempt, outcome: Failed | TimedOut, policy: Any) -> float:
        if isinstance(outcome, Failed) and outcome.delay is not None:
            return seconds("delay", outcome.delay)
        if HEADER in attempt.message.headers:
            policy = msgspec.convert(attempt.message.headers[HEADER], Backoff)
        if callable(policy):
            return seconds("backoff() ->", policy(attempt.failures + 1, outcome.error))
        return _policy(policy).delay(attempt.failures + 1)

    # --- those who are told ------------------------------------------------------------------

    def ended(self, attempt: Attempt, outcome: Outcome) -> None:
        """Tell the task's own hooks what was decided."""
        settings = attempt.task.settings if attempt.task is not None else {}
        if _HOOKS.isdisjoint(settings):
            return
        match outcome:
            case Succeeded(result=raw) if "on_success" in settings:
                _tell(settings["on_success"], attempt, _result(raw))
            case RetryAt(error=error) if "on_retry" in settings:
                _tell(settings["on_retry"], attempt, error)
            case Failed(error=error) | TimedOut(error=error) if "on_failure" in settings:
                _tell(settings["on_failure"], attempt, error)


def _tell(hook: Callable[[Attempt, Any], object], attempt: Attempt, what: Any) -> None:
    try:
        hook(attempt, what)
    except BaseException:  # boundary: whatever the user's hook raises changes nothing
        log.exception("a hook of %s failed at the end of %s", attempt.message.task, attempt.id)


def _final(outcome: Failed | TimedOut, why: str) -> Outcome:
    return msgspec.structs.replace(outcome, why=why)


def _broken(outcome: Failed | TimedOut, error: BaseException) -> Failed:
    """It can't be said when to try again: the task fails, and shows both errors."""
    told, policy = outcome.error, describe(error)
    return Failed(
        ErrorInfo("BACKOFF_FAILED", f"its back-off failed: {policy.type}: {policy.message}; it was asked about {told.type}: {told.message}",
                  f"{told.traceback}\nWhen its back-off was asked:\n\n{policy.traceback}"),
        retryable=False, why="its back-off failed",
    )


def _policy(given: Any) -> Backoff:
    if isinstance(given, Backoff):
        return given
    first = seconds("backoff", given)
    return Backoff(first=first, most=max(first, Backoff().most))


def _check_count(options: Mapping[str, Any]) -> None:
    retries = options.get("retries")
    if retries is None:
        return
    if not 0 <= retries <= MANY:
        raise OptionError(f"retries={retries} is " + ("negative" if retries < 0 else "absurd"), cure=f"Use 0 to {MANY:,}.")
    idle = [name for name in ("backoff", "retry_on", "max_age", "on_retry") if name in options]
    if not retries and idle:
        raise OptionError(f"{idle[0]}= and retries=0 contradict each other: there is nothing to wait for", cure="Leave one of them out.")


def _rules(options: Mapping[str, Any]) -> Rules:
    on, not_on = _classes("retry_on", options), _classes("give_up_on", options)
    both = [kind for kind in on if kind in not_on]
    if both:
        raise OptionError(f"{both[0].__qualname__} is in retry_on and in give_up_on", cure="Leave it in one of them.")
    for kind in on:
        if any(issubclass(kind, other) for other in not_on):
            raise OptionError(f"{kind.__qualname__} in retry_on can never be: give_up_on has one of its bases", cure="Give up on less.")
    age = seconds("max_age", options["max_age"]) if options.get("max_age") is not None else None
    if age == 0:
        raise OptionError("max_age=0 lets nothing be tried again", cure="Say retries=0.")
    return Rules(tuple(map(name_of, on)), tuple(map(name_of, not_on)), age)


def _chosen(rules: Rules, given: Any) -> Rules:
    """What the call asks for goes before what the task says."""
    if given is None:
        return rules
    asked = msgspec.convert(given, Rules)
    return msgspec.structs.replace(rules, **{name: getattr(asked, name) for name in ("on", "not_on", "max_age") if name in given})


def _classes(what: str, options: Mapping[str, Any]) -> tuple[type[BaseException], ...]:
    given = options.get(what, ())
    kinds = tuple(given) if isinstance(given, list | tuple | set | frozenset) else (given,)
    if (what in options and not kinds) or not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        raise OptionError(f"{what}={given!r} names no exceptions", cure="Give a class, or a tuple of them: ConnectionError, TimeoutError.")
    return kinds


def _check_function(what: str, given: Any, shape: str) -> None:
    if not callable(given) or isinstance(given, type) or inspect.iscoroutinefunction(given):
        cure = "on_failure= of a group or chain says what becomes of its others." if what == "on_failure" and isinstance(given, str) else ""
        raise OptionError(f"{what}={given!r} is no plain function {shape}", cure=cure or "Write it with def: it is called in the slot.")
    try:
        inspect.signature(given).bind(None, None)
    except TypeError:
        raise OptionError(f"{what}={given!r} does not take {shape}", cure="It is called with two arguments.") from None
    except ValueError:
        pass  # a built-in function that does not tell its signature
