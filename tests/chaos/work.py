"""What the workers run under chaos: each run notes its beginning and its end in a ledger outside KRQ."""

from __future__ import annotations

import os
import sys
import time

import krq

app = krq.KRQ()


def note(path: str, kind: str, key: str) -> None:
    """One line, one write: it survives a kill."""
    me = krq.current()
    line = f"{kind} {key} {me.attempt} {os.getpid()} {me.worker} {time.monotonic()}\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, line.encode())
    os.close(fd)


@app.task(retries=3, backoff=krq.Backoff(first=0.05, most=0.5))
def work(path: str, key: str, seconds: float, failing: int = 0) -> str:
    """Works for so long; raises at its first attempts."""
    note(path, "S", key)
    time.sleep(seconds)
    if krq.current().attempt <= failing:
        note(path, "E", key)
        raise ValueError(key)
    note(path, "F", key)
    return key


@app.task
def poison(path: str, key: str) -> None:
    """Kills its process."""
    note(path, "S", key)
    note(path, "D", key)
    os._exit(9)


if __name__ == "__main__":
    app.config_worker(worker_id=sys.argv[1])
    app.run(processes=int(sys.argv[2]))
