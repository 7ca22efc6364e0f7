"""What a type checker must accept and refuse: read by mypy alone (`make lint`), never run.

Each line with ``type: ignore[...]`` is an error that mypy must find: an unused one fails the check.
"""

from __future__ import annotations

from typing import assert_type

import krq

app = krq.KRQ()


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task(retries=1, backoff=krq.Backoff(first=2))
def name(who: str) -> str:
    return who


@app.task
async def later(x: int) -> float:
    return x / 2


def calls() -> None:
    assert_type(add(1, 2), int)
    assert_type(add.send(1, y=2), krq.TaskHandle[int])
    assert_type(add.send(1).result(timeout=1), int)
    assert_type(name.send("a").result(), str)
    assert_type(later.send(1).result(), float)
    assert_type(add.options(delay=1, queue="q", after=[add.send(1)]).send(1), krq.TaskHandle[int])
    assert_type(add.send_many([(1, 2)]), list[krq.TaskHandle[int]])
    assert_type(app.send_task("add", [1, 2]), str)
    assert_type(app.status("x").status, krq.TaskStatus)


async def coroutines() -> None:
    assert_type(await add.asend(1), krq.TaskHandle[int])
    assert_type(await add.send(1).aresult(), int)


def mistakes() -> None:
    add.send("1")  # type: ignore[arg-type]
    add.send(1, 2, 3)  # type: ignore[call-arg]
    add.send(z=1)  # type: ignore[call-arg]
    name.send(1)  # type: ignore[arg-type]
    add.options(delay="soon")  # type: ignore[arg-type]
    add.options(colour="red")  # type: ignore[call-arg]
    krq.KRQ(leese=1)  # type: ignore[call-arg]
