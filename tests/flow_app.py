"""Tasks that keep steps, make children and answer roll calls: the app of those tests' workers."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from tasks_app import app, count, mul, note, quick

import krq


def noted(path: str, what: str) -> str:
    note(path, what)
    return what.upper()


async def noted_later(path: str, what: str) -> str:
    await asyncio.sleep(0)
    return noted(path, what)


@app.task(retries=3, backoff=quick)
def stepwise(path: str, how: str = "") -> list[object]:
    """Three steps; its first attempt ends in another way after the second."""
    me = krq.current()
    found: list[object] = [me.step("one", noted, path, "a"), me.step("one", noted, path, what="b")]
    if me.attempt == 1 and how == "raise":
        raise ValueError("not yet")
    if me.attempt == 1 and how == "die":
        os._exit(9)
    return [*found, me.step("tuple", lambda: (me.attempt, 2)), me.attempt]


@app.task(retries=3, backoff=quick)
async def stepwise_async(path: str) -> list[object]:
    me = krq.current()
    first = await me.step("one", noted_later, path, "a")
    second = await me.astep("two", noted, path, "b")
    if me.attempt == 1:
        raise ValueError("not yet")
    return [first, second, await me.astep("three", noted_later, path, "c")]


@app.task(retries=0)
def steps_too_large() -> str:
    me = krq.current()
    for n in range(3):
        me.step(f"n{n}", lambda: "x" * 1_900_000)
    return "never"


@app.task
def reload(path: str, what: str) -> str:
    me = krq.current()
    note(path, what, me.worker, os.getpid())
    return f"{me.worker} has {what}"


@app.task(retries=0)
def die_once(path: str) -> str:
    """Kills its process, when nobody has been here before."""
    if not Path(path).exists():
        note(path, "died")
        os._exit(9)
    return "alive"


# --- children ------------------------------------------------------------------------------------


@app.task
def child(path: str, name: str, seconds: float = 0.0) -> str:
    note(path, "C", name, krq.current().id)
    time.sleep(seconds)
    return name


@app.task(retries=0)
def fails_now(text: str = "no") -> str:
    raise ValueError(text)


@app.task(retries=3, backoff=quick)
def parent(path: str, how: str = "") -> str:
    """Makes three children in its own way."""
    me = krq.current()
    note(path, "P", me.attempt)
    one = me.spawn(child, path, "one", seconds=0.2)
    me.spawn(child.si(path, "two") | child.si(path, "three"), on_failure="continue" if how == "continue" else None)
    if how == "look":
        return str(one.result(timeout=1))  # type: ignore[union-attr]
    if how == "retry" and me.attempt == 1:
        raise ValueError("not yet")
    if how in ("fail", "continue"):
        me.spawn(fails_now, on_failure="continue" if how == "continue" else None)
    if how == "slow":
        me.spawn(child, path, "slow", 30.0)
    return f"made {me.step('count', len, 'abc')}"


@app.task
def replaced(path: str, how: str) -> object:
    match how:
        case "signature":
            return child.si(path, "it")
        case "chain":
            return child.si(path, "a") | join.s("b")
        case "group":
            return krq.group(child.si(path, str(n)) for n in range(5))
        case "empty":
            return krq.group()
        case "fails":
            return fails_now.si("in the end")
        case "twice":
            return replaced.si(path, "signature")
        case "large":
            return krq.group(large.si() for _ in range(4))
        case "for ever":
            return replaced.si(path, "for ever")
        case "wide":
            return krq.group(child.si(path, str(n)) for n in range(501)) | count.s()
    return krq.group(child.si(path, str(n)) for n in range(501))


@app.task
def join(value: str, more: str) -> str:
    return value + more


@app.task
def large() -> str:
    return "x" * 400_000


@app.task
def factorial(n: int) -> object:
    return 1 if n == 0 else factorial.s(n - 1) | mul.s(n)


@app.task(timeout=20)
def parent_alone(path: str) -> str:
    """In a process of its own, where the worker runs such tasks so."""
    krq.current().spawn(child, path, "alone")
    return krq.current().step("pid", str, "kept")


if __name__ == "__main__":
    app.config_worker(worker_id=sys.argv[1])
    app.run(processes=int(sys.argv[2]))
