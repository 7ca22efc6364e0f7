"""The whole way in one file: a handler, a worker, a task, a task for later, results, and a look at the queue.

    python examples/basic_usage.py

Where KRQ_BACKEND is not set it starts a Valkey server of its own, which serves as the log, too (Redis Streams). It
needs no other program and ends by itself.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from krq import KRQ

app = KRQ()


@app.task
def process_data(payload: dict[str, Any]) -> dict[str, Any]:
    """A task handler: gets what was sent, returns the result."""
    return {"processed_data": payload["data"] * 2}


def produce(client: KRQ) -> None:
    """Send one task for now and one for later, wait for both, look around."""
    task = client.submit("process_data", {"data": 42})
    print(f"added task {task}")
    began = time.time()
    later = client.send_task("process_data", [{"data": 21}], eta=began + 2.0)
    print(f"scheduled task {later}; it is {client.status(later)}")

    print("result of the first:", task.result(timeout=30))
    print("result of the second:", client.result(later, timeout=30), f"after {time.time() - began:.1f} s")

    queue = client.stats().queues["default"]
    print(f"queue {queue.queue}: {queue.ready} ready, {queue.scheduled} scheduled, {queue.succeeded} succeeded, {queue.failed} failed")
    for info in client.tasks(limit=10):
        print(f"task {info.id} {info.name}: {info} by {info.worker}")


@contextmanager
def server() -> Iterator[None]:
    """A Valkey server, when nobody said which to use."""
    if "KRQ_BACKEND" in os.environ:
        yield
        return
    from krq.dev.stack import Stack

    with Stack() as stack:
        os.environ.update(stack.environment)
        yield


@contextmanager
def worker() -> Iterator[None]:
    """A worker that runs two tasks at a time, in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "krq", "worker", __file__, "--concurrency", "2", "--worker-id", "worker-1"])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    with server(), worker(), KRQ() as client:
        produce(client)


if __name__ == "__main__":
    main()
