"""Tasks with limits: the app of those tests' workers."""

from __future__ import annotations

import sys
import time

from tasks_app import app, note, quick

import krq


def noted(path: str, key: str, seconds: float) -> None:
    attempt = krq.current().attempt
    note(path, "S", key, attempt, time.time())
    time.sleep(seconds)
    note(path, "F", key, attempt, time.time())


@app.task(max_concurrency=3)
def three(path: str, n: int) -> None:
    """At most three of it at once."""
    noted(path, str(n), 0.03)


@app.task(max_concurrency_per_key=1)
def each(path: str, key: str) -> None:
    """One of a key at once."""
    noted(path, key, 0.03)


@app.task(max_concurrency=1)
def alone(path: str, key: str) -> None:
    """One at a time; its first attempt takes long where the key says so."""
    noted(path, key, 60.0 if key == "long" and krq.current().attempt == 1 else 0.05)


@app.task(rate_limit="10/s")
def rated(path: str, n: int) -> None:
    noted(path, str(n), 0.0)


@app.task(in_order=True, retries=2, backoff=quick)
def row(path: str, key: str, n: int) -> None:
    """In order; each third fails twice before it succeeds."""
    attempt = krq.current().attempt
    note(path, "S", key, n, attempt)
    time.sleep(0.005)
    if n % 3 == 0 and attempt < 3:
        raise ValueError(f"attempt {attempt}")
    note(path, "F", key, n, attempt)


@app.task(unique=True)
def single(path: str, key: str = "", seconds: float = 0.0) -> str:
    noted(path, key or "-", seconds)
    return krq.current().id


@app.task(unique=3600.0)
def hourly(path: str) -> str:
    noted(path, "-", 0.0)
    return krq.current().id


@app.task(queue="other")
def elsewhere(path: str) -> None:
    noted(path, "-", 0.0)


if __name__ == "__main__":
    app.config_worker(worker_id=sys.argv[1] if len(sys.argv) > 1 else None)
    app.run(processes=int(sys.argv[2]) if len(sys.argv) > 2 else 1)
