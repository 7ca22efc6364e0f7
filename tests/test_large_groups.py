"""Large groups: their members are named at once, on the wire and in Redis, and no script call does much of the work."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Servers, Worker
from shard import HOUR, Shard

import krq
from krq import message
from krq.errors import MessageInvalid, OptionError
from krq.store.inputs import results_of
from krq.store.scripts import Script

LARGE = 100_000


def counted(shard: Shard) -> int:
    return sum(fields.get("rd") == "1" for name, fields in shard.dump().items() if name.startswith("t:g:"))


# --- names ---------------------------------------------------------------------------------------


def test_a_run_of_ids_is_named_at_once() -> None:
    group = [f"g:{n}" for n in range(5_000)]
    after = ["x", "y:0", "y:1", *group, "g:5000", "z:1"]
    assert message.shortened(after) == ["x", "y:0", "y:1", "g:*5001", "z:1"]
    assert message.named(message.shortened(after)) == after
    assert message.spans(["x", "g:*7", "g:*x", "g:*"]) == ["x", ("g:", 7), "g:*x", "g:*"]
    assert message.shortened(group[:900]) == group[:900], "where it is not worth while they are there by name"
    assert message.shortened(group[1:]) == group[1:]


@pytest.mark.parametrize("after", [["g:*100001"], ["g:*60000", "h:*60000"], ["g:*x"], [f"{'g' * 123}:*100000"], ["a b:*5"], ["g:*-1"]])
def test_what_names_too_many_or_nothing_is_refused(after: list[str]) -> None:
    raw = json.dumps({"task": "add", "after": after}).encode()
    with pytest.raises(MessageInvalid):
        message.decode(raw, max_bytes=10**6, max_depth=10)
    with pytest.raises(OptionError):
        krq.KRQ().handle("g:*5")


def test_a_final_task_of_100_000_is_a_short_message() -> None:
    app = krq.KRQ()
    plan = krq.workflow.plan(krq.group(app.signature("add", n, n) for n in range(LARGE)) | app.signature("total"))
    (after,) = [call.options["after"] for call in plan.calls if call.name == "total"]
    assert len(after) == LARGE
    (short,) = message.shortened(after)
    assert short.endswith(f":*{LARGE}")
    chains = krq.group(app.signature("add", n, n) | app.signature("add", 1) for n in range(1_000)) | app.signature("total")
    assert len(message.shortened(krq.workflow.plan(chains).calls[-1].options["after"])) == 1
    own = krq.group(app.signature("add", n, n).options(task_id=f"own{n}") for n in range(1_000)) | app.signature("total")
    assert krq.workflow.plan(own).calls[-1].options["after"][7] == "own7"


# --- scripts -------------------------------------------------------------------------------------


def test_edges_of_what_is_named_at_once(shard: Shard) -> None:
    names = [f"g:{n}" for n in range(1_200)]
    for at in range(0, 1_200, 300):
        shard.add(*names[at : at + 300])
    shard.add("first", "last")
    shard.add("final", after=["first", ("g:", 1_200), "last"], inputs="list")
    assert (counted(shard), shard.state("final"), shard.task("final")["ln"]) == (249, "w", "250")
    while "ln" in shard.task("final"):
        shard.take(0)
    assert (counted(shard), shard.task("final")["w"]) == (1_200, "1202")
    for at in range(0, 1_202, 400):
        got = shard.taken(min(400, 1_202 - at))
        assert shard.ok(Script.SETTLE, "w", [[i, a, "S", "3", "{}", 0] for i, a in got]) == [1] * len(got)
    while shard.state("final") != "q":
        assert shard.take(0).values[2]
    task = shard.take(1).values[0][0]
    assert (task[0], task[7]) == ("final", ["list", False])
    shard.settle("final")
    while shard.take(0).values[2]:
        pass
    assert counted(shard) == 0


def test_a_final_task_is_told_of_members_that_have_ended_before(shard: Shard) -> None:
    names = [f"g:{n}" for n in range(600)]
    shard.add("failed", *names)
    shard.taken(1)
    assert shard.settle("failed", kind="F", value='{"type":"ValueError"}') == 1
    for _ in range(3):
        got = shard.taken(200)
        assert shard.ok(Script.SETTLE, "w", [[i, a, "S", json.dumps(i), "{}", 0] for i, a in got]) == [1] * 200
    shard.add("final", after=["failed", ("g:", 600)], inputs="list", flow=["c", False, False])
    shard.add("another", after=[("g:", 600)])
    while shard.state("final") != "q" or shard.state("another") != "q":
        shard.take(0)
    for name in names:
        shard.redis.hset(shard.keys("task", name), "r", '"not read"')
    assert results_of(shard.store, "final", ["failed", *names]) == ['!F{"type":"ValueError"}', *map(json.dumps, names)]
    assert not shard.redis.exists(shard.keys("told", "another")), "who takes no results is told of none"
    shard.taken(2)
    assert shard.settle("final") == 1
    shard.add("fails", after=["failed", ("g:", 600)], inputs="list")
    while shard.take(0).values[2]:
        pass
    assert shard.state("fails") == "F"
    assert not [name for name in shard.dump() if name.startswith("to:")]


def test_a_final_task_is_told_what_its_members_give(shard: Shard) -> None:
    names = [f"g:{n}" for n in range(600)]
    shard.add("failed", *names)
    assert shard.taken(1) == [("failed", 1)]
    shard.add("final", after=["failed", ("g:", 600)], inputs="list", flow=["c", False, False])
    shard.take(0)
    assert shard.settle("failed", kind="F", value='{"type":"ValueError"}') == 1
    for _ in range(3):
        got = shard.taken(200)
        values = [json.dumps("x" * 70 if i == "g:7" else i) for i, _ in got]
        assert shard.ok(Script.SETTLE, "w", [[i, a, "S", value, "{}", 0] for (i, a), value in zip(got, values, strict=True)]) == [1] * 200
    while shard.state("final") != "q":
        shard.take(0)
    assert shard.redis.llen(shard.keys("told", "final")) == 3, "a page for each call"
    assert shard.take(1).values[0][0][7] == ["list", False]
    wanted = ['!F{"type":"ValueError"}', *(json.dumps("x" * 70 if i == "g:7" else i) for i in names)]
    assert results_of(shard.store, "final", ["failed", *names]) == wanted, "with what is too long for a page, or did not succeed"
    shard.redis.lpop(shard.keys("told", "final"))
    assert results_of(shard.store, "final", ["failed", *names]) == wanted, "the pages are a copy"
    for n in range(200):
        shard.redis.hset(shard.keys("task", f"g:{n + 300}"), "r", '"not read"')
    assert results_of(shard.store, "final", ["failed", *names]) == wanted, "what is in them is not read again"
    assert shard.settle("final") == 1
    assert not shard.redis.exists(shard.keys("told", "final"))


def test_few_that_are_named_at_once_come_with_the_take(shard: Shard) -> None:
    shard.add("g:0", "g:1")
    shard.add("final", after=[("g:", 2), "x"], inputs="list")
    shard.add("x")
    shard.finish("g:0", "g:1", "x")
    assert shard.take(1).values[0][0][7] == ["list", ["3", "3", "3"]]


def test_one_failure_in_it_ends_who_waits(shard: Shard) -> None:
    shard.add("g:700")
    shard.taken(1)
    shard.settle("g:700", kind="F", value=json.dumps({"type": "ValueError", "message": "no"}))
    shard.add("final", after=[("g:", 1_200)])
    for _ in range(8):
        shard.take(0)
    assert (shard.state("final"), counted(shard)) == ("F", 0)
    assert "waited for g:700 (add)" in shard.error("final")["message"]


def test_one_that_the_log_does_not_have_is_found(shard: Shard) -> None:
    shard.add("final", after=[("g:", 3_000)])
    shard.redis.zadd(shard.keys("waiting"), {"final": 1})
    shard.redis.hset(shard.keys("intake"), "default:0", 2 * HOUR)
    shard.ok(Script.EXPIRE, HOUR)
    assert shard.error("final")["message"].endswith("which the log does not have")


class Clock:
    """CPU time of the server's main thread."""

    def __init__(self, shard: Shard) -> None:
        pid = shard.redis.info("server")["process_id"]
        self._path = Path(f"/proc/{pid}/task/{pid}/schedstat")
        self._at = 0

    def lap(self) -> float:
        """Milliseconds since the last lap."""
        before, self._at = self._at, int(self._path.read_text().split()[0])
        return (self._at - before) / 1e6


def test_no_call_does_much_for_100_000(shard: Shard) -> None:
    clock, laps = Clock(shard), []
    memory = shard.redis.info("memory")["used_memory"]
    clock.lap()
    shard.add("final", after=[("g:", LARGE)], inputs="list")
    laps.append(clock.lap())
    while "ln" in shard.task("final"):
        clock.lap()
        shard.take(0)
        laps.append(clock.lap())
    assert shard.task("final")["w"] == str(LARGE)
    each = (shard.redis.info("memory")["used_memory"] - memory) / LARGE
    shard.ok(Script.CANCEL, ["final"])
    while shard.redis.exists(shard.keys("edges")):
        clock.lap()
        shard.take(0)
        laps.append(clock.lap())
    assert not shard.redis.exists(shard.keys("task", "g:99999"))
    assert statistics.median(laps) < 20, "ms; the mean of many, since other work on the machine comes between"
    assert each < 400, "bytes for the dependents of a member that nobody has sent, with its task"


# --- workers -------------------------------------------------------------------------------------


@pytest.fixture
def worker(servers: Servers, tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(servers, tmp_path / "w.log")
    try:
        yield worker.ready()
    finally:
        worker.close()


def test_a_large_group_and_its_final_task(app: krq.KRQ, worker: Worker) -> None:
    handle = (krq.group(app.signature("add", n, 0) for n in range(3_000)) | app.signature("total")).send()
    assert handle.result(timeout=60) == sum(range(3_000))
    later = app.send_task("count", [], after=[handle.children[0]], inputs="list")
    assert app.result(later, timeout=20) == 3_000
