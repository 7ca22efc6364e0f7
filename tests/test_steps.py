"""Steps: what a task has done is not done again by its next attempt, and nobody else may keep anything in its name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import Servers, Worker, ledger, running
from shard import Shard

import krq
from krq import message
from krq.context import Context
from krq.errors import AttemptLost, StepLimit
from krq.hooks import Attempt
from krq.steps import MOST, MOST_BYTES
from krq.store import steps
from krq.store.scripts import Script


def step(shard: Shard, i: str, name: str, value: str = "1", attempt: int = 1, inc: str = "w") -> str:
    return str(shard.ok(Script.STEP, inc, i, attempt, MOST, MOST_BYTES, name, value))


def kept(shard: Shard, i: str, attempt: int = 1, inc: str = "w") -> dict[str, str]:
    status, found = shard.ok(Script.STEP, inc, i, attempt, MOST, MOST_BYTES)
    assert status == "KEPT"
    return dict(zip(found[::2], found[1::2], strict=True))


def context(shard: Shard, i: str, number: int = 1, inc: str = "w") -> Context:
    attempt = Attempt(message=message.Message(task="add"), id=i, number=number, epoch=1, failures=0, deaths=0, queue="default", worker=inc,
                      task=None, sent=0.0)
    return Context(attempt, lambda *_: None, ask=lambda *asked: steps.answer(shard.store, inc, *asked))


# --- the script ----------------------------------------------------------------------------------


def test_steps_outlive_the_attempt_and_not_the_task(shard: Shard) -> None:
    shard.add("a", "b")
    shard.taken()
    assert [step(shard, "a", name) for name in ("one", "two", "one")] == ["KEPT"] * 3
    step(shard, "b", "one")
    shard.settle("a", kind="R")
    shard.recover("w")
    shard.register("w2")
    assert sorted(shard.taken(inc="w2")) == [("a", 2), ("b", 2)]
    assert kept(shard, "a", 2, "w2") == {"one": "1", "two": "1"}
    assert shard.task("a")["st"] == "8"
    shard.settle("a", 2, inc="w2")
    shard.settle("b", 2, kind="F", inc="w2")
    assert not {"st:a", "st:b"} & set(shard.dump())
    assert "st" not in shard.task("a") | shard.task("b")


def test_an_end_without_a_worker_forgets_them_too(shard: Shard) -> None:
    shard.add("a")
    shard.taken()
    step(shard, "a", "one")
    shard.settle("a", kind="R", delay=1000)
    assert shard.ok(Script.CANCEL, ["a"]) == ["C"]
    assert "st:a" not in shard.dump()
    shard.admit(shard.record("a", generation=1))
    assert shard.taken() == [("a", 2)]
    assert kept(shard, "a", 2) == {}


def test_the_fence_holds_for_steps(shard: Shard) -> None:
    shard.add("a")
    shard.taken()
    zombie = context(shard, "a")
    assert zombie.step("one", int, 7) == 7
    shard.recover("w")
    shard.register("w2")
    shard.taken(inc="w2")
    ran: list[int] = []
    with pytest.raises(AttemptLost):
        zombie.step("two", ran.append, 1)
    assert (ran, kept(shard, "a", 2, "w2")) == ([1], {"one": "7"})
    assert step(shard, "a", "two", attempt=1, inc="w2") == "LOST"
    assert step(shard, "nobody", "two") == "LOST"
    assert context(shard, "a", 2, "w2").step("one", int, 8) == 7
    with pytest.raises(AttemptLost):
        context(shard, "a", 3, "w2").step("one", int)


def test_steps_are_bounded(shard: Shard) -> None:
    shard.add("a")
    shard.taken()
    ctx = context(shard, "a")
    with pytest.raises(krq.KRQError, match="MESSAGE_TOO_LARGE"):
        ctx.step("huge", lambda: "x" * MOST_BYTES)
    assert len(ctx.step("large", lambda: "x" * (MOST_BYTES - 1_000))) == MOST_BYTES - 1_000
    with pytest.raises(StepLimit, match="larger than 4,000,000"):
        ctx.step("more", lambda: "x" * 2_000)
    for n in range(MOST - 1):
        shard.redis.hset(shard.keys("steps", "a"), f"n{n}", "1")
    with pytest.raises(StepLimit, match="has 1,000 steps"):
        ctx.step("one too many", int)
    for name in ("", "a#2", "x" * 201, 7):
        with pytest.raises(krq.KRQError, match="no name of a step"):
            ctx.step(name, int)  # type: ignore[arg-type]
    with pytest.raises(krq.KRQError, match="NOT_SERIALIZABLE"):
        ctx.step("object", object)


def test_a_repeated_name_counts(shard: Shard) -> None:
    shard.add("a")
    shard.taken()
    ctx = context(shard, "a")
    assert [ctx.step("n", int, n) for n in range(3)] == [0, 1, 2]
    assert kept(shard, "a") == {"n": "0", "n#2": "1", "n#3": "2"}
    with pytest.raises(ZeroDivisionError):
        ctx.step("bad", lambda: 1 / 0)
    assert "bad" not in kept(shard, "a")
    assert asyncio.run(ctx.astep("async", asyncio.sleep, 0, "slept")) == "slept"


def test_without_a_worker_nobody_keeps_them() -> None:
    attempt = Attempt(message=message.Message(task="add"), id="a", number=1, epoch=1, failures=0, deaths=0, queue="q", worker="w",
                      task=None, sent=0.0)
    with pytest.raises(krq.KRQError, match="Nobody keeps steps"):
        Context(attempt, lambda *_: None).step("one", int)


# --- workers -------------------------------------------------------------------------------------


@pytest.fixture
def worker(servers: Servers, tmp_path: Path) -> Iterator[Worker]:
    with running(servers, tmp_path, script="flow_app.py") as (worker,):
        yield worker


def lines(path: Path) -> Sequence[Sequence[Any]]:
    return [line[0] for line in ledger(path)]


@pytest.mark.parametrize("how", ["raise", "die"])
def test_the_next_attempt_skips_what_is_done(app: krq.KRQ, worker: Worker, tmp_path: Path, how: str) -> None:
    path = tmp_path / "ledger"
    assert app.submit("stepwise", str(path), how).result(timeout=20) == ["A", "B", [2, 2], 2]
    assert lines(path) == ["a", "b"]


def test_coroutines_have_steps_too(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    late = app.submit("stepwise_async", str(path))
    large = app.submit("steps_too_large")
    assert late.result(timeout=20) == ["A", "B", "C"]
    assert lines(path) == ["a", "b", "c"]
    with pytest.raises(krq.TaskFailed) as caught:
        large.result(timeout=20)
    assert caught.value.kind == "STEP_LIMIT"
