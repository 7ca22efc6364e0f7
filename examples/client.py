"""Send tasks to examples/worker.py and wait for what comes of them.

    python examples/client.py              to whichever worker is free
    python examples/client.py worker-1     to this worker's own inbox as well
"""

import sys

from krq import KRQ, ResultTimeout, TaskFailed

TIMEOUT = 30.0


def main() -> int:
    krq_client = KRQ()

    task_id = krq_client.send_task("add", [1, 2])
    print(f"Submitted task with ID: {task_id}")
    print(f"Task {task_id} status:", krq_client.status(task_id))
    sent = [task_id, krq_client.send_task("mul", [6, 7]), krq_client.send_task("div", [1, 0], retries=0)]
    sent += [krq_client.send_task("add", [3, 4], queue=inbox) for inbox in sys.argv[1:]]

    for task_id in sent:
        try:
            krq_client.result(task_id, TIMEOUT)
        except TaskFailed as error:
            print(f"(task {task_id} was meant to fail: {error.kind})")
        except ResultTimeout as error:
            print(f"{error}\nIs a worker running? Start one: python examples/worker.py worker-1", file=sys.stderr)
            return 1
        print(f"Task {task_id} status:", krq_client.status(task_id))
    return 0


if __name__ == "__main__":
    sys.exit(main())
