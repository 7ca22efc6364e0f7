"""What `make demo` runs: real servers, two workers, and the words of real files.

    python examples/demo.py [FOLDER]

Starts Valkey and Apache Kafka on free ports with their data in a temporary folder, two workers in processes of their
own, and examples/wordcount.py; ends all of them again. They end, too, when this process is killed.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from krq import KRQ
from krq.dev.stack import Program, Stack

WORDCOUNT = str(Path(__file__).with_name("wordcount.py"))
NAMES = ("worker-1", "worker-2")


def say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)


def wait_for_workers(app: KRQ, timeout: float = 30.0) -> None:
    """Until both are ready; else the first would have done all before the second is there."""
    deadline = time.monotonic() + timeout
    while len(live := {info.id for info in app.workers()}) < len(NAMES):
        if time.monotonic() > deadline:
            sys.exit(f"demo: of the workers {', '.join(NAMES)} only {live or 'none'} came up")
        time.sleep(0.1)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    for name in [name for name in os.environ if name.startswith("KRQ_") and name != "KRQ_CACHE"]:
        del os.environ[name]  # settings that are meant for other servers
    with ExitStack() as ends:
        say("starting Valkey and Apache Kafka")
        stack = ends.enter_context(Stack(kafka=True))
        say(f"the backend is {stack.backend}, the broker {stack.broker}")
        for name in NAMES:
            worker = Program(stack, "worker", WORDCOUNT, "--worker-id", name)
            worker.start()
            ends.callback(worker.stop, 10.0)
        with KRQ(broker=stack.broker, backend=stack.backend) as app:
            wait_for_workers(app)
        say("counting")
        done = subprocess.run([sys.executable, WORDCOUNT, *sys.argv[1:]], env={**os.environ, **stack.environment}, check=False)
        say("stopping the workers and the servers")
    say(f"done in {time.monotonic() - began:.0f} s")
    return done.returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
