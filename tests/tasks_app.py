"""The app that the tests' workers run. Servers and namespace come from the environment."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from pathlib import Path

import krq

app = krq.KRQ()
quick = krq.Backoff(first=0.05, most=0.2)


def note(path: str, *fields: object) -> None:
    """One line in a ledger outside KRQ: one write, so that it survives a kill."""
    line = " ".join(map(str, fields)) + "\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, line.encode())
    os.close(fd)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def mul(x: int, y: int) -> int:
    return x * y


@app.task
def sub(x: int, y: int) -> int:
    return x - y


@app.task
def total(values: list[int]) -> int:
    return sum(values)


@app.task
def count(values: list[object]) -> int:
    return len(values)


@app.task
async def double(x: int) -> int:
    await asyncio.sleep(0)
    return x * 2


@app.task
def work(path: str, key: str, seconds: float = 0.0) -> str:
    """Start and end noted in a ledger."""
    me = krq.current()
    note(path, "S", key, me.attempt, os.getpid(), me.worker, time.monotonic())
    time.sleep(seconds)
    note(path, "F", key, me.attempt, os.getpid(), me.worker, time.monotonic())
    return key


@app.task
def step(*args: object) -> list[object]:
    """``step([before], path, n, seconds)``: a link of a chain, noted in a ledger; gives what came before and itself."""
    *before, path, n, seconds = args
    note(str(path), "S", n)
    time.sleep(float(str(seconds)))
    note(str(path), "F", n)
    return [*(before[0] if before and isinstance(before[0], list) else []), n]


@app.task(retries=2, backoff=quick)
def fails(path: str = "", times: int = 1_000) -> str:
    """Fails so many times, then succeeds."""
    me = krq.current()
    if path:
        note(path, "S", me.id, me.attempt)
    if me.attempt <= times:
        raise ValueError(f"attempt {me.attempt} of {me.id}")
    return "at last"


@app.task
def rejects() -> None:
    raise krq.Reject("not today")


@app.task(retries=1)
def asks_again() -> int:
    if krq.current().attempt == 1:
        raise krq.Retry(delay=0.01)
    return krq.current().attempt


@app.task
def gives(what: str) -> object:
    """Results that are no results."""
    match what:
        case "object":
            return object()
        case "large":
            return "x" * 3_000_000
        case "deep":
            value: list[object] = []
            for _ in range(200):
                value = [value]
            return value
        case "exit":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "unprintable":

            class Unprintable(Exception):
                def __str__(self) -> str:
                    raise RuntimeError("no text")

            raise Unprintable
        case "nan":
            return float("nan")
    return what


@app.task
def waits(path: str, seconds: float = 30.0) -> str:
    """Runs until it is told to stop."""
    note(path, "S", krq.current().id)
    try:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.02)
    except krq.Stop:
        note(path, "C", krq.current().id, krq.current().cancelled)
        raise
    return "not told"


@app.task
def hogs(path: str, seconds: int) -> int:
    """Holds the interpreter: no other thread of its process runs meanwhile."""
    note(path, "S", krq.current().id)
    ctypes.PyDLL(None).sleep(seconds)
    return krq.current().attempt


@app.task
async def sleeps(path: str, seconds: float = 30.0) -> str:
    note(path, "S", krq.current().id)
    try:
        await asyncio.sleep(seconds)
    finally:
        note(path, "E", krq.current().id)
    return "slept"


@app.task
def dies(path: str, until: str = "") -> str:
    """Kills its process, until a file exists."""
    note(path, "S", krq.current().id, krq.current().attempt)
    if not until or not Path(until).exists():
        os._exit(9)
    return "alive"


@app.task
def passes(path: str, name: str, opened: str) -> str:
    """Fails until a file exists."""
    note(path, "S", name)
    if not Path(opened).exists():
        raise RuntimeError("closed")
    note(path, "F", name)
    return name


@app.task
def tells(values: object) -> object:
    """What it was given, with errors as lists."""
    if isinstance(values, list):
        return [tells(value) for value in values]
    if isinstance(values, krq.TaskError):
        return [values.id, values.type, values.message, values.cancelled]
    return values


@app.task
def who() -> list[object]:
    me = krq.current()
    return [me.worker, me.attempt, list(me.fence)]


if __name__ == "__main__":
    app.config_worker(worker_id=sys.argv[1] if len(sys.argv) > 1 else None)
    app.run(processes=int(sys.argv[2]) if len(sys.argv) > 2 else 1)
