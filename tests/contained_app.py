"""Tasks that go too far, for the tests of limits and isolation. Servers and namespace come from the environment."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import sys
import time

from tasks_app import app, note

import krq


@app.task(timeout=1)
def spins() -> None:
    while True:
        pass


@app.task(timeout=1, retries=1, backoff=0.05)
def backtracks() -> None:
    """A C call that holds the interpreter for hours."""
    re.match(r"(a+)+$", "a" * 64 + "b")


@app.task(timeout=0.5, retries=0)
async def dawdles(path: str) -> None:
    try:
        await asyncio.sleep(30)
    finally:
        note(path, "E", krq.current().id)


@app.task(soft_timeout=0.3, timeout=5)
def tidies(path: str) -> str:
    try:
        time.sleep(30)
    except krq.SoftTimeout:
        note(path, "soft")
        return "tidied"
    return "slept"


@app.task(soft_timeout=0.3, retries=0)
def ignores() -> None:
    time.sleep(30)


@app.task(memory_limit="80MB", retries=0)
def hoards() -> int:
    kept = []
    while True:
        kept.append(os.urandom(1 << 20))


@app.task(isolate=True)
def where() -> list[int]:
    krq.current().progress(1, 2)
    return [os.getpid(), os.getppid()]


@app.task(isolate=True)
async def where_async() -> int:
    await asyncio.sleep(0)
    return os.getpid()


@app.task(isolate=True, retries=0)
def raises() -> None:
    raise ValueError("from afar")


@app.task(isolate=True, retries=0)
def gives_nothing_readable() -> object:
    return object()


@app.task(isolate=True)
def lingers(path: str, deaf: bool = False) -> None:
    note(path, "S", krq.current().id, os.getpid())
    while True:
        try:
            time.sleep(30)
        except krq.Stop:
            note(path, "stopped", krq.current().id)
            if not deaf:
                raise


@app.task(timeout=1, retries=0)
def leaves_a_process(path: str) -> None:
    if os.fork() == 0:
        while True:
            note(path, "alive")
            time.sleep(0.05)
    time.sleep(30)


@app.task
def segfaults() -> None:
    ctypes.string_at(0)


@app.task
def loops(path: str) -> None:
    """A thread that never looks, and is stopped all the same."""
    note(path, "S", krq.current().id)
    while True:
        pass


@app.task(on_lease_lost="continue")
def goes_on(path: str, seconds: float) -> str:
    note(path, "S", krq.current().id)
    time.sleep(seconds)
    note(path, "F", krq.current().id)
    return "went on"


@app.task(retries=0)
def misbehaves(how: str) -> str:
    """What a task should not do, and may."""
    match how:
        case "close":
            sys.stdout.close()
            print("nobody hears")
        case "fork":
            if os.fork() == 0:
                return "the copy"
        case "exit":
            os._exit(0)
        case "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        case "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
    return how


if __name__ == "__main__":
    app.config_worker(worker_id=sys.argv[1] if len(sys.argv) > 1 else None)
    app.run(processes=int(sys.argv[2]) if len(sys.argv) > 2 else 1)
