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


# --- workflows -----------------------------------------------------------------------------------


@app.task
def total(values: list[int]) -> int:
    return sum(values)


@app.task
def shout(text: str, mark: str) -> str:
    return text + mark


@app.task
async def tripled(x: int) -> list[int]:
    return [x, x, x]


def workflows() -> None:
    assert_type((add.s(1, 2) | add.s(y=3)).send().result(), int)
    assert_type((add.s(1, 2) | later.s()).send(), krq.ChainHandle[float])
    assert_type(krq.chain(add.s(1, 2), later.s()).send().result(), float)
    assert_type(krq.chain(add.s(1), tripled.s(), total.s(), on_failure="continue").send().result(), int)
    assert_type(krq.group(add.s(1), add.s(2)).send().result(), list[int])
    assert_type((krq.group(add.s(n) for n in range(3)) | total.s()).send().result(), int)
    assert_type((krq.group([add.s(1)], on_failure="cancel_rest") | krq.group(total.s(), total.s())).send().result(), list[int])
    assert_type((name.s("a") | shout.s("!")).send().result(), str)
    assert_type((name.s("a") | add.si(1, 2)).send().result(), int)
    assert_type(add.map([1, 2], chunk=1).send(), krq.MapHandle[int])
    assert_type(later.map(range(3)).send().result(), list[float])
    assert_type((add.starmap([(1, 2)]) | total.s()).send().result(), int)


def workflow_mistakes() -> None:
    add.s(1, 2) | shout.s("!")  # type: ignore[operator]
    add.s(1, 2) | name.s()  # type: ignore[operator]
    add.s(1, 2) | total.s()  # type: ignore[operator]
    krq.group(add.s(1), add.s(2)) | later.s()  # type: ignore[operator]
    krq.group(name.s("a")) | total.s()  # type: ignore[operator]
    krq.chain(add.s(1, 2), later.s(), shout.s("!"))  # type: ignore[misc]
    krq.chain(add.s(1, 2), krq.group(shout.s("!"), shout.s("?")))  # type: ignore[misc]
    krq.group(add.s(1), on_failure="never")  # type: ignore[call-overload]
    add.map(["1"])  # type: ignore[list-item]
