"""The tasks of README.md, for workers and for `docker compose`.

    krq worker examples.tasks:app
"""

import time
from random import random

import krq

app = krq.KRQ()


@app.task
def add(x: int, y: int) -> int:
    """The smallest task there is."""
    return x + y


@app.task
def mul(x: int, y: int) -> int:
    return x * y


@app.task(retries=5, backoff=krq.Backoff(first=0.2, factor=2.0, most=5.0))
def flaky(chance: float = 0.5) -> str:
    """Fails with this chance, and is tried again: five times, after longer and longer waits."""
    if random() < chance:
        raise ConnectionError("nobody there")
    return f"came through at attempt {krq.current().attempt}"


@app.task(queue="slow")
def nap(seconds: float) -> str:
    """Sleeps, says how far it is, and stops early when somebody cancels it."""
    context = krq.current()
    steps = max(1, round(seconds * 10))
    for step in range(steps):
        if context.cancelled:
            raise krq.Reject("woken up")
        time.sleep(seconds / steps)
        context.progress(step + 1, steps)
    return f"slept {seconds} s in {context.worker}"
