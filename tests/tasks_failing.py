"""The app of the tests of failures: tasks that raise whatever can be raised. Servers and namespace come from the environment."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import Any

from tasks_app import note

import krq
from krq.outcome import ErrorInfo

app = krq.KRQ()
soon = krq.Backoff.fixed(0.02)


class Away(ConnectionError):
    """One of those that may pass."""


@app.task
def add(x: int, y: int) -> int:
    return x + y


class Locked(Exception):
    """Can't be pickled, has no text, no equality."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__


def _error(what: str) -> BaseException:
    match what:
        case "exit":
            return SystemExit(3)
        case "interrupt":
            return KeyboardInterrupt()
        case "generator":
            return GeneratorExit("gone")
        case "locked":
            return Locked()
        case "huge":
            return ValueError("x" * 5_000_000)
        case "surrogate":
            return ValueError("half of a \ud800 character")
        case "group":
            return ExceptionGroup("several", [ValueError("one"), ExceptionGroup("more", [Away("two")])])
        case "circle":
            first, second = ValueError("first"), ValueError("second")
            first.__cause__, second.__cause__ = second, first
            return first
    raise AssertionError(what)


def _deep(n: int = 0) -> int:
    return _deep(n + 1) + 1


@app.task(retries=0)
def raises(what: str) -> int:
    if what == "deep":
        return _deep()
    raise _error(what)


@app.task(retries=0)
async def araises(what: str) -> None:
    await asyncio.sleep(0)
    raise _error(what)


@app.task(retries=0)
async def children(what: str) -> None:
    """A child of it raises what asyncio lets through."""
    await asyncio.create_task(_child(what))


async def _child(what: str) -> None:
    raise _error(what)


@app.task(retries=1, backoff=soon, retry_on=Away)
def away(path: str, what: str = "away") -> None:
    note(path, krq.current().attempt)
    raise Away("not there") if what == "away" else ValueError("another")


@app.task(retries=5, backoff=soon, give_up_on=(TypeError, OSError))
def gives_up(path: str) -> None:
    note(path, krq.current().attempt)
    raise Away("derives from OSError") if krq.current().attempt > 1 else ValueError("may pass")


def _policy(failures: int, error: ErrorInfo) -> float:
    return 0.01 * failures if error.message == "known" else 1 / 0


@app.task(retries=3, backoff=_policy)
def custom(path: str, what: str) -> int:
    note(path, krq.current().attempt, time.time())
    if krq.current().attempt < 3:
        raise ValueError(what)
    return 3


@app.task(retries=1, backoff=lambda failures, error: sys.exit(1))
def exits_in_policy() -> None:
    raise ValueError("what it was asked about")


def _noted(kind: str) -> Any:
    def hook(attempt: krq.hooks.Attempt, what: Any) -> None:
        note(str(attempt.message.args[0]), kind, attempt.number, what.type if isinstance(what, ErrorInfo) else what)
        raise SystemExit("a hook may fail")

    return hook


@app.task(retries=1, backoff=soon, on_retry=_noted("retry"), on_failure=_noted("failure"), on_success=_noted("success"))
def hooked(path: str, good: int) -> int:
    if krq.current().attempt < good:
        raise ValueError("not yet")
    return 7


@app.task(retries=5)
def asks(how: str) -> int:
    if krq.current().attempt > 1:
        return krq.current().attempt
    raise krq.Retry("again", delay=float(how) if how != "None" else None)


@app.task(retries=50, backoff=soon, max_age=1.0)
def old() -> None:
    raise ValueError("young no more")


@app.task(retries=1, backoff=3000)
def patient() -> None:
    raise ValueError("later")


@app.task
def holds(path: str) -> None:
    note(path, "S")
    while True:
        time.sleep(0.02)


if __name__ == "__main__":
    app.config_worker(worker_id=sys.argv[1] if len(sys.argv) > 1 else None)
    app.run(processes=int(sys.argv[2]) if len(sys.argv) > 2 else 1)
