"""Children at run time: a parent ends when they have; and a task that returns a workflow is replaced by it."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Servers, Worker, ledger, running, until
from shard import HOUR, Shard, now_ms

import krq
from krq import TaskStatus, message
from krq.children import MAX_DEPTH, MOST
from krq.context import Context
from krq.dev.valkey import ValkeyServer
from krq.errors import ChildLimit, OptionError
from krq.failpoints import VARIABLE, Failpoint
from krq.hooks import Attempt
from krq.store.scripts import Script

# --- the script ----------------------------------------------------------------------------------


def waits(shard: Shard, i: str, after: list[Any], how: str = "own", value: str = '"mine"', policy: str = "", attempt: int = 1) -> int:
    family = [after, how, after, policy]
    item = [i, attempt, "W", value, json.dumps({"id": i}), 0, False, family]
    return int(shard.ok(Script.SETTLE, "w", [item])[0])


def entry(shard: Shard, i: str, holder: str = "~") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shard.redis.hget(shard.keys("outbox", holder), f"{i}:1"))
    return found


def value(shard: Shard, i: str) -> str:
    raw = shard.redis.hget(shard.keys("task", i), "r") or shard.redis.get(shard.keys("result", i))
    return str(raw.decode())


def test_it_ends_with_its_children(shard: Shard) -> None:
    shard.add("p")
    shard.taken()
    shard.add("c1", "c2")
    long = json.dumps("x" * 100)
    assert [waits(shard, "p", ["c1", "c2"], value=long) for _ in range(2)] == [1, 2], "a repetition changes nothing"
    assert (shard.state("p"), shard.task("p")["w"]) == ("w", "2")
    shard.add("behind", after=["p"], inputs="list")
    shard.finish("c1")
    assert shard.state("p") == "w"
    shard.finish("c2")
    assert (shard.state("p"), value(shard, "p"), shard.state("behind")) == ("S", long, "q")
    assert entry(shard, "p")["outcome"] == "success"
    assert entry(shard, "p")["result"] == json.loads(long)
    assert shard.task("c1").get("rd") == shard.task("c2").get("rd") == "0", "it has let go of them"
    assert shard.redis.get(shard.keys("message", "p")) is None
    assert shard.take(1).values[0][0][7] == ["list", [long]]
    assert shard.logged("p", 1, "~") == ["default:0:0"]


def test_children_may_have_ended_before_it_waits(shard: Shard) -> None:
    shard.add("p", "q", "r")
    shard.taken()
    shard.add("c")
    shard.finish("c")
    assert waits(shard, "p", ["c"]) == 1
    assert (shard.state("p"), value(shard, "p")) == ("S", '"mine"')
    assert "waiting" not in shard.dump()
    shard.add("bad")
    shard.taken()
    shard.settle("bad", kind="F", value='{"type":"E","message":"no"}')
    waits(shard, "q", ["c", "bad"])
    assert "waited for bad (add), which did not succeed: E: no" in shard.error("q")["message"]
    waits(shard, "r", ["c", "bad"], policy="c")
    assert shard.state("r") == "S"


def test_only_the_holder_makes_it_wait(shard: Shard) -> None:
    shard.add("p")
    shard.taken()
    shard.recover("w")
    shard.register("w")
    assert waits(shard, "p", ["c"]) == 0
    assert shard.taken() == [("p", 2)]
    assert waits(shard, "p", ["c"]) == 0
    assert not {"a:p", "ch:p", "d:c"} & set(shard.dump())


def test_what_it_is_replaced_by_gives_its_result(shard: Shard) -> None:
    shard.add("one", "list", "small")
    shard.taken()
    shard.add("c1", "c2", "c3")
    waits(shard, "one", ["c1", "c2"], "one", "null")
    waits(shard, "list", ["c1", "c2", "c3"], "2 1000", "[]")
    waits(shard, "small", ["c1", "c2", "c3"], "3 10", "[]")
    for i, result in (("c1", '"a"'), ("c2", '{"b":1.50}'), ("c3", "[]")):
        assert shard.taken(1) == [(i, 1)]
        shard.settle(i, value=result)
    assert (value(shard, "one"), value(shard, "list")) == ('{"b":1.50}', '[{"b":1.50},[]]')
    assert shard.error("small")["type"] == "MESSAGE_TOO_LARGE"
    assert entry(shard, "list")["result"] == [{"b": 1.5}, []]


def test_what_it_waited_for_before_is_let_go_with_them(shard: Shard) -> None:
    shard.add("a")
    shard.add("p", after=["a"])
    shard.finish("a")
    shard.taken()
    names = [f"c:{n}" for n in range(1_200)]
    waits(shard, "p", [("c:", 1_200)])
    assert (shard.task("p")["ln"], shard.state("p")) == ("251", "w")
    while "ln" in shard.task("p"):
        shard.take(0)
    assert shard.task("p")["w"] == "1200"
    for at in range(0, 1_200, 300):
        shard.add(*names[at : at + 300])
        got = shard.taken(300)
        shard.ok(Script.SETTLE, "w", [[i, a, "S", "3", "{}", 0] for i, a in got])
    while shard.take(0).values[2]:
        pass
    assert shard.state("p") == "S"
    assert {fields["rd"] for name, fields in shard.dump().items() if name in ("t:a", "t:c:0", "t:c:1199")} == {"0"}


def test_a_cancelled_parent_cancels_them(shard: Shard) -> None:
    shard.add("p", expires=now_ms() + HOUR)
    shard.taken()
    shard.add("c1", "c2")
    assert shard.taken(1) == [("c1", 1)]
    waits(shard, "p", ["c1", "c2"])
    assert "expiring" not in shard.dump(), "it has started in time"
    assert shard.ok(Script.CANCEL, ["p"]) == ["C"]
    shard.take(0)
    assert (shard.state("c2"), shard.task("c1")["c"]) == ("C", "1")
    shard.add("r")
    shard.taken()
    shard.ok(Script.CANCEL, ["r"])
    waits(shard, "r", ["c3"])
    assert shard.state("r") == "C"


def test_a_later_generation_has_children_of_its_own(shard: Shard) -> None:
    shard.add("p")
    shard.taken()
    waits(shard, "p", ["p.1"])
    shard.ok(Script.CANCEL, ["p"])
    shard.admit(shard.record("p", generation=1))
    assert shard.taken() == [("p", 2)]
    assert "ch:p" not in shard.dump()
    waits(shard, "p", ["p.r1.1"], attempt=2)
    shard.add("p.r1.1")
    shard.finish("p.r1.1")
    assert shard.state("p") == "S"


# --- limits --------------------------------------------------------------------------------------


def attempt(task_id: str = "p", depth: int = 0, generation: int = 0) -> Attempt:
    msg = message.Message(task="add", depth=depth, generation=generation)
    return Attempt(message=msg, id=task_id, number=1, epoch=1, failures=0, deaths=0, queue="q", worker="w", task=None, sent=0.0)


def test_children_are_the_same_at_each_attempt() -> None:
    app = krq.KRQ()

    def made(task_id: str, generation: int = 0) -> Any:
        ctx = Context(attempt(task_id, 3, generation), lambda *_: None)
        ctx.spawn(app.signature("add", 1, 2))
        ctx.spawn(krq.group(app.signature("add", n) for n in range(1_500)) | app.signature("total"))
        return ctx.family()

    first = made("p")
    assert (first, made("p")) == (made("p"), first)
    assert [message.reread(raw).task_id for _, raw in first.messages if message.reread(raw).task == "total"] == ["p.3"]
    assert first.ids[0] == "p.1"
    assert len(first.ids) == 3, "the group is named at once"
    one = message.reread(next(raw for _, raw in first.messages if message.reread(raw).task_id == "p.1"))
    assert (one.parent, one.depth, one.workflow) == ("p", 4, "p")
    assert made("p", 1).ids[0] == "p.r1.1"
    assert len(made("p" * 128).ids[0]) == 34
    assert Context(attempt(), lambda *_: None).family() is None


def test_children_have_limits() -> None:
    app = krq.KRQ()
    ctx = Context(attempt(depth=MAX_DEPTH), lambda *_: None)
    with pytest.raises(ChildLimit, match="32 deep"):
        ctx.spawn(app.signature("add", 1, 2))
    ctx = Context(attempt(), lambda *_: None)
    with pytest.raises(ChildLimit, match="more than 10,000"):
        ctx.spawn(krq.group(app.signature("add", n) for n in range(MOST + 1)))
    for work, args, options in ((len, (), {}), (app.signature("add"), (1,), {}), (app.signature("add"), (), {"on_failure": "maybe"})):
        with pytest.raises(OptionError):
            ctx.spawn(work, *args, **options)
    handle = ctx.spawn(app.signature("add", 1, 2), on_failure="fail")
    assert str(handle) == "p.2"
    with pytest.raises(krq.KRQError, match=r"result\(\) can't wait"):
        handle.result(timeout=1)
    with pytest.raises(OptionError, match="one on_failure"):
        ctx.spawn(app.signature("add", 1, 2), on_failure="continue")
    with pytest.raises(krq.KRQError, match="NOT_SERIALIZABLE"):
        ctx.spawn(app.signature("add", object()))


# --- workers -------------------------------------------------------------------------------------


@pytest.fixture
def worker(servers: Servers, tmp_path: Path) -> Iterator[Worker]:
    with running(servers, tmp_path, script="flow_app.py") as (worker,):
        yield worker


def counts(path: Path) -> Counter[str]:
    return Counter(line[1] for line in ledger(path) if line[0] == "C")


THREE = {"one": 1, "two": 1, "three": 1}


def test_a_parent_ends_after_its_children(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    handle = app.submit("parent", str(path), "retry")
    behind = app.send_task("count", [], after=[handle], inputs="list")
    assert handle.result(timeout=20) == "made 3"
    assert counts(path) == THREE, "the attempt that failed has sent nothing"
    assert [one.result(timeout=5) for one in handle.children] == ["one", "two", "three"]
    last = max(one.status().finished or 0 for one in handle.children)
    assert (handle.status().finished or 0) >= last
    assert app.result(behind, timeout=10) == 1
    assert app.submit("parent_alone", str(path)).result(timeout=20) == "kept"
    assert counts(path)["alone"] == 1
    until(lambda: app.stats().outbox == 0, "all is logged")


def test_a_child_that_fails(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    path = str(tmp_path / "ledger")
    with pytest.raises(krq.TaskFailed) as caught:
        app.submit("parent", path, "fail").result(timeout=20)
    assert caught.value.kind == "DEPENDENCY_FAILED"
    assert "ValueError: no" in caught.value.message
    assert app.submit("parent", path, "continue").result(timeout=20) == "made 3"
    look = app.send_task("parent", [path, "look"], retries=0)
    with pytest.raises(krq.TaskFailed, match="can't wait for it"):
        app.result(look, timeout=20)


def test_cancelling_a_parent(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    handle = app.submit("parent", str(path), "slow")
    until(lambda: counts(path)["slow"] and handle.status().status is TaskStatus.WAITING, "it waits")
    assert handle.status().error is None
    assert handle.cancel()
    until(lambda: all(child.status().status.final or child.id.endswith(".4") for child in handle.children), "they end, too")


def test_a_task_is_replaced_by_what_it_returns(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    wanted = {"signature": "it", "chain": "ab", "group": ["0", "1", "2", "3", "4"], "empty": [], "twice": "it", "wide": 501}
    handles = {how: app.submit("replaced", str(tmp_path / "ledger"), how) for how in wanted}
    assert {how: handle.result(timeout=30) for how, handle in handles.items()} == wanted


def test_replacements_that_can_not_be(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    path = str(tmp_path / "ledger")
    for how, kind, text in (
        ("fails", "DEPENDENCY_FAILED", "in the end"), ("too wide", "CHILD_LIMIT", "at most 500"),
        ("large", "MESSAGE_TOO_LARGE", "4 children"), ("for ever", "DEPENDENCY_FAILED", "32 deep"),
    ):
        with pytest.raises(krq.TaskFailed) as caught:
            app.result(app.send_task("replaced", [path, how], retries=0), timeout=30)
        assert (caught.value.kind, text in caught.value.message) == (kind, True), caught.value
    assert app.submit("factorial", 10).result(timeout=30) == 3_628_800


@pytest.mark.parametrize("point", [Failpoint.RUN_ENDED, Failpoint.SETTLE_BEFORE, Failpoint.SETTLE_ANSWERED, Failpoint.LOG_PUBLISHED])
def test_it_may_die_between_its_children_and_its_end(
    valkey: ValkeyServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: Failpoint,
) -> None:
    path, fired = tmp_path / "ledger", tmp_path / "fired"
    servers = Servers(valkey.url, valkey.url, namespace, heartbeat=0.3, lease=3)
    with servers.app() as app:
        monkeypatch.setenv(VARIABLE, f"{point}:kill@{fired}")
        with running(servers, tmp_path, script="flow_app.py"):
            handle = app.submit("parent", str(path))
            assert handle.result(timeout=30) == "made 3"
            until(fired.exists, "it has died")
    assert {line[2] for line in ledger(path) if line[0] == "C"} == {f"{handle.id}.{n}" for n in (1, 2, 3)}


def test_its_worker_may_die_at_any_time(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    handles = [app.submit("parent", str(path)) for _ in range(20)]
    until(lambda: len(ledger(path)) > 25, "it is in the middle")
    os.kill(worker.children[0], signal.SIGKILL)
    assert app.results([handle.id for handle in handles], timeout=40) == ["made 3"] * 20
    ran = {line[2] for line in ledger(path) if line[0] == "C"}
    assert ran == {f"{handle.id}.{n}" for handle in handles for n in (1, 2, 3)}, "no child has been made twice"
