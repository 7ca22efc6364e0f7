"""A worker that serves every task name with one function.

    python examples/worker.py worker-1

Start as many as you like, each under a name of its own. A worker serves the shared queue and, beside it, an inbox that
has the worker's name. Broker and backend come from KRQ_BROKER and KRQ_BACKEND; without them Kafka is expected on
localhost:9092 and Redis on localhost:6379.
"""

import sys
from math import prod
from typing import Any

from krq import KRQ, Reject


def task_func(task_type: str, args: list[Any]) -> Any:
    """Called for each task; what it returns is the result, what it raises is the error."""
    if task_type == "add":
        return sum(args)
    if task_type == "sub":
        return args[0] - sum(args[1:])
    if task_type == "mul":
        return prod(args)
    if task_type == "div":
        return args[0] / args[1]
    raise Reject(f"Unknown task type {task_type!r}")  # fails at once: another attempt would not help


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} WORKER-ID")
    worker_id = sys.argv[1]
    krq_worker = KRQ()
    krq_worker.config_worker(group_id="worker-group", topic=worker_id, worker_id=worker_id)
    krq_worker.run(task_func)


if __name__ == "__main__":
    main()
