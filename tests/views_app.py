"""The app of the test of views: tasks of all kinds, and a ledger outside KRQ in which each run notes its beginning and its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks_app import note

import krq

app = krq.KRQ()
soon = krq.Backoff.fixed(0.05)


@contextmanager
def noted(path: str, retries: int = 0) -> Iterator[int]:
    """A run in the ledger; gives how often its task has failed before. ``retries``: how often it may."""
    me = krq.current()
    failures = me.attempt_value.failures
    note(path, "began", me.id, me.attempt, me.worker, failures)
    try:
        yield failures
    except krq.Stop:
        note(path, "stopped", me.id, me.attempt)
        raise
    except Exception:
        note(path, "failed" if failures >= retries else "failing", me.id, me.attempt)
        raise
    note(path, "returned", me.id, me.attempt)


@app.task
def quick(path: str, *before: object) -> int:
    with noted(path):
        return len(before)


@app.task
async def light(path: str) -> str:
    with noted(path):
        return "light"


@app.task(queue="images")
def slow(path: str, seconds: float) -> str:
    with noted(path):
        time.sleep(seconds)
    return "x" * 100


@app.task(retries=3, backoff=soon)
def flaky(path: str, times: int) -> str:
    """Fails so many times, then succeeds."""
    with noted(path, 3) as failures:
        if failures < times:
            raise ConnectionError("nobody there")
    return "at last"


@app.task(retries=1, backoff=soon)
def hopeless(path: str) -> None:
    with noted(path, 1):
        raise ValueError("never")


@app.task(retries=0)
def boom(path: str) -> None:
    with noted(path):
        raise ValueError("it broke")


@app.task(queue="images", retries=5)
def refused(path: str) -> None:
    with noted(path):
        raise krq.Reject("not today")


@app.task(retries=1, backoff=3000)
def patient(path: str) -> None:
    """Fails once, and waits for long."""
    with noted(path, 1):
        raise OSError("the other side is away")


@app.task
def hold(path: str, gate: str) -> str:
    """Runs until the file is gone, or somebody cancels it."""
    with noted(path):
        while Path(gate).exists():
            time.sleep(0.02)
    return "let go"


if __name__ == "__main__":
    app.config_worker(worker_id=sys.argv[1], queues=["default", "images", "parked"])
    app.run(processes=int(sys.argv[2]))
