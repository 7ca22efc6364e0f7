"""Tasks that log and print, for the tests of the distributed log. Servers and namespace come from the environment."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import threading
import time
from pathlib import Path

import krq

app = krq.KRQ()
log = logging.getLogger("shop.orders")


def wait(path: str) -> None:
    """Until a file is there."""
    while not Path(path).exists():
        time.sleep(0.01)


@app.task
def says(word: str, n: int = 1) -> None:
    """By all ways there are."""
    for i in range(n):
        log.info("%s is logged %d", word, i)
        print(word, "is printed", i)
        print(f"{word} is an error {i}", file=sys.stderr)
    sys.stdout.write(f"{word} has no end")


@app.task
async def says_async(word: str, n: int = 5) -> None:
    for i in range(n):
        print(word, end=" ")
        await asyncio.sleep(0.001)
        print(i)
        log.warning("%s %d", word, i)
    await asyncio.to_thread(print, word, "from a thread")


@app.task(isolate=True, retries=0)
def says_alone(word: str, then: str = "") -> None:
    log.info("%s alone", word)
    print(word, "printed alone")
    try:
        raise ValueError("from afar")
    except ValueError:
        log.exception("it failed")
    print("no end", end="")
    if then:
        while True:
            pass


@app.task
def in_parts(word: str, n: int) -> None:
    for i in range(n):
        print(word, end="")
        time.sleep(0.0005)
        print("", i)


@app.task(retries=1, backoff=0.05)
def fails_once() -> str:
    print("attempt", krq.current().attempt)
    if krq.current().attempt == 1:
        raise OSError("not yet")
    return "done"


@app.task
def lingers(path: str) -> None:
    print("before")
    wait(path)
    print("after")


@app.task
def floods(n: int, alone: bool = False) -> int:
    for i in range(n):
        print("line", i)
    return n


@app.task(isolate=True)
def floods_alone(n: int) -> int:
    return floods.function(n)


@app.task
def odd() -> None:
    """Lines that are hard to show."""
    print("<script>document.title='owned'</script>\x1b[31mred\x1b[0m\x00")
    print("x" * 20_000 + "END")
    print("ünïcode" * 3_000)
    log.info("a surrogate \udcff")
    log.info("one\n12:00:00.000  INFO  two")
    log.info("%d apples", "no number")
    print("10%\r20%\r30%")
    print("windows\r")
    print()
    logging.getLogger("krq.worker").warning("KRQ's own")


@app.task
def in_threads() -> None:
    plain = threading.Thread(target=print, args=("of nobody",))
    plain.start()
    plain.join()
    carried = threading.Thread(target=contextvars.copy_context().run, args=(print, "carried over"))
    carried.start()
    carried.join()


if __name__ == "__main__":
    app.config_worker(worker_id=sys.argv[1] if len(sys.argv) > 1 else None)
    app.run(processes=int(sys.argv[2]) if len(sys.argv) > 2 else 1)
