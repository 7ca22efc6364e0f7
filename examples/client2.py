"""Chains and groups; and, with --rough, tasks that fail, wait and crash.

    python examples/client2.py             needs examples/worker.py
    python examples/client2.py --rough     needs examples/worker2.py
"""

import sys
import time
from threading import Event
from typing import Any

from krq import KRQ, ResultTimeout, TaskFailed

TIMEOUT = 60.0


def chained(krq_client: KRQ) -> None:
    """One after the other, each with its own arguments; all results go to a callback, in a thread of this process."""
    finished = Event()

    def my_callback_function(results: list[Any]) -> None:
        print("the chain's results:", results)
        finished.set()

    tasks = [("add", [1, 2]), ("mul", [3, 4])]
    krq_client.chain_tasks(tasks, final_callback=my_callback_function)

    if not finished.wait(TIMEOUT):
        raise ResultTimeout("The chain did not come to an end")


def grouped(krq_client: KRQ) -> None:
    """Side by side, and a final task that waits for all of them."""
    tasks = [("add", [1, 2]), ("mul", [3, 4])]
    final_task = ("sub", [10, 5])
    handle = krq_client.group_tasks(tasks, final_task)

    print("the final task's result:", handle.result(TIMEOUT), "after", handle.children[0].result(TIMEOUT))


def passed_on(krq_client: KRQ) -> None:
    """The same with results that are passed on: ((1 + 2) * 10) - 5, and a sum that gets the results of five products."""
    call = krq_client.signature
    handle = (call("add", 1, 2) | call("mul", 10) | call("sub", 5)).send()
    print("((1 + 2) * 10) - 5 =", handle.result(TIMEOUT))

    products = [krq_client.send_task("mul", [n, n]) for n in range(1, 6)]
    total = krq_client.send_task("add", [], after=products, inputs="prepend")  # a graph of your own: edges, one by one
    print("1 + 4 + 9 + 16 + 25 =", krq_client.result(total, TIMEOUT))


def broken(krq_client: KRQ) -> None:
    """What waits for a task that fails can never run: it fails, too, and says why."""
    call = krq_client.signature
    try:
        (call("div", 1, 0).options(retries=0) | call("add", 1) | call("mul", 2)).send().result(TIMEOUT)
    except TaskFailed as error:
        print("after a failure:", error.message)


def rough(krq_client: KRQ) -> None:
    """Print each step in the life of a few difficult tasks."""
    sent = {
        name: krq_client.send_task(name, args, queue="rough", **options)
        for name, args, options in (
            ("flaky", [2], {}),
            ("hopeless", [], {}),
            ("busy_server", [], {}),
            ("slow", [4.0], {"delay": 1.0}),
            ("crash", [], {}),
        )
    }
    started, seen = time.monotonic(), dict.fromkeys(sent, "")
    while time.monotonic() - started < TIMEOUT:
        infos = {name: krq_client.status(task_id) for name, task_id in sent.items()}
        for name, info in infos.items():
            error = f"; {info.error.type}: {info.error.message}" if info.error and not info.status.final else ""
            step = f"{info} (attempt {info.attempt}{f', {info.worker}' if info.worker else ''}{error})"
            if step != seen[name]:
                seen[name] = step
                print(f"{time.monotonic() - started:6.2f} s  {name:12} {step}")
        if all(info.status.final for info in infos.values()):
            return
        time.sleep(0.02)
    raise ResultTimeout("Not all tasks came to an end")


def main() -> int:
    with KRQ() as krq_client:
        try:
            if "--rough" in sys.argv[1:]:
                rough(krq_client)
            else:
                for scene in (chained, grouped, passed_on, broken):
                    scene(krq_client)
        except ResultTimeout as error:
            print(f"{error}\nIs the worker running? See the top of this file.", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
