"""Tasks that wait for other tasks; and, with --rough, tasks that fail, wait and crash.

    python examples/client2.py             needs examples/worker.py
    python examples/client2.py --rough     needs examples/worker2.py
"""

import sys
import time

from krq import KRQ, ResultTimeout, TaskFailed

TIMEOUT = 60.0


def chained(krq_client: KRQ) -> None:
    """((1 + 2) * 10) - 5: each step is sent now, runs after the one before, and gets its result as first argument."""
    first = krq_client.send_task("add", [1, 2])
    second = krq_client.send_task("mul", [10], after=[first], inputs="prepend")
    third = krq_client.send_task("sub", [5], after=[second], inputs="prepend")
    print("a chain is sent; its last step is", krq_client.status(third))
    print("((1 + 2) * 10) - 5 =", krq_client.result(third, TIMEOUT))


def joined(krq_client: KRQ) -> None:
    """Five products at the same time, and a sum that waits for all of them."""
    products = [krq_client.send_task("mul", [n, n]) for n in range(1, 6)]
    total = krq_client.send_task("add", [], after=products, inputs="prepend")
    print("1 + 4 + 9 + 16 + 25 =", krq_client.result(total, TIMEOUT))


def broken(krq_client: KRQ) -> None:
    """What waits for a task that fails can never run: it fails, too, and says why."""
    first = krq_client.send_task("div", [1, 0], retries=0)
    second = krq_client.send_task("add", [1], after=[first], inputs="prepend")
    try:
        krq_client.result(second, TIMEOUT)
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
                for scene in (chained, joined, broken):
                    scene(krq_client)
        except ResultTimeout as error:
            print(f"{error}\nIs the worker running? See the top of this file.", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
