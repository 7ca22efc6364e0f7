"""A worker for rough weather: tasks that fail, wait, and kill the process they run in.

    python examples/worker2.py worker-1
    python examples/worker2.py worker-2

Then run `python examples/client2.py --rough`, which sends tasks of these names to the queue "rough" and tells what
becomes of them. While it runs, `kill -9` one of the two workers: the other one takes over what it was doing.
"""

import os
import signal
import sys
import time

import krq

krq_worker = krq.KRQ(lease=5.0)  # a worker that vanishes with its whole machine is missed after 5 s


@krq_worker.task(queue="rough", retries=3, backoff=krq.Backoff(first=0.5, factor=2.0, jitter=0.2))
def flaky(failures: int) -> str:
    """Fails so many times, then succeeds; the wait before each attempt is twice the one before."""
    attempt = krq.current().attempt
    if attempt <= failures:
        raise ConnectionError(f"attempt {attempt} met a closed door")
    return f"came through at attempt {attempt}"


@krq_worker.task(queue="rough", retries=2, backoff=krq.Backoff(first=0.2))
def hopeless() -> None:
    """Fails until no attempt is left."""
    raise RuntimeError("nothing helps")


@krq_worker.task(queue="rough")
def busy_server() -> str:
    """Knows when to come again, and says so."""
    if krq.current().attempt == 1:
        raise krq.Retry("the server is busy", delay=1.5)
    return "served"


@krq_worker.task(queue="rough")
def slow(seconds: float) -> str:
    """Takes its time and says how far it is. Kill its worker meanwhile and it starts anew elsewhere."""
    context = krq.current()
    steps = max(1, int(seconds * 10))
    for step in range(steps):
        time.sleep(seconds / steps)
        context.progress(step + 1, steps)
    return f"done by {context.worker} at attempt {context.attempt}"


@krq_worker.task(queue="rough")
def crash() -> str:
    """Takes its process with it the first time, as a segmentation fault or the OOM killer would."""
    context = krq.current()
    if context.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"alive in {context.worker} at attempt {context.attempt}"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} WORKER-ID")
    krq_worker.config_worker(group_id="worker-group", topic=sys.argv[1], worker_id=sys.argv[1])
    krq_worker.run()


if __name__ == "__main__":
    main()
