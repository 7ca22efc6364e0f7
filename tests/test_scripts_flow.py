"""Policies, retries and circles on the scripts themselves: what must hold whatever comes first."""

from __future__ import annotations

import json
from itertools import pairwise

from shard import Shard

from krq.store.scripts import Script

ERROR = json.dumps({"type": "ValueError", "message": "no"})


def told(shard: Shard) -> None:
    """All that is left to be told is told."""
    while shard.redis.exists(shard.keys("edges"), shard.keys("fan")):
        assert shard.take(0).ok


def fail(shard: Shard, i: str, attempt: int = 1) -> None:
    assert (i, attempt) in shard.taken()
    assert shard.settle(i, attempt, "F", ERROR) == 1


def test_values_of_what_failed_are_marked(shard: Shard) -> None:
    shard.add("a", "b")
    shard.add("y", after=["a", "b"], flow=["c", False, False], inputs="list")
    shard.take()
    shard.settle("a")
    shard.settle("b", kind="F", value=ERROR)
    task = shard.take().values[0][0]
    assert (task[0], task[7]) == ("y", ["list", ["3", f"!F{ERROR}"]])
    shard.add("b", generation=1)  # while it runs again it is what it was
    assert shard.ok(Script.INPUTS, ["a", "b", "nobody"]) == ["3", f"!F{ERROR}", "null"]


def test_what_waits_runs_whatever_order_a_retry_comes_in(shard: Shard) -> None:
    shard.add("x")
    shard.add("y", after=["x"])
    fail(shard, "x")
    assert shard.state("y") == "F"
    shard.add("y", after=["x"], generation=1, flow=[0, False, {"x": 1}])
    assert (shard.state("x"), shard.state("y")) == ("F", "w")
    shard.add("x", generation=1)
    assert shard.taken() == [("x", 2)]
    shard.settle("x", 2)
    assert shard.taken() == [("y", 1)]


def test_an_entry_of_an_earlier_generation_releases_nothing(shard: Shard) -> None:
    """Before generations were told apart a task that waited twice for the same was released before its other dependency had ended."""
    shard.add("slow", "x", "holds")
    shard.add("other", after=["slow"])
    shard.add("y", after=["slow", "x"])
    assert {i for i, _ in shard.taken()} == {"slow", "x", "holds"}
    shard.settle("x", kind="F", value=ERROR)
    assert shard.state("y") == "F"
    shard.add("y", after=["slow", "x"], generation=1, flow=[0, False, {"x": 1}])
    shard.add("x", generation=1)
    shard.settle("slow")
    assert (shard.state("other"), shard.state("y")) == ("q", "w")
    assert shard.task("y")["w"] == "1"


def test_the_rest_is_cancelled_before_it_is_admitted_too(shard: Shard) -> None:
    shard.add("a", "runs")
    shard.add("final", after=["a", "runs", "late"], flow=["r", False, False])
    assert len(shard.taken()) == 2
    shard.settle("a", kind="F", value=ERROR)
    told(shard)
    assert shard.state("final") == "F"
    assert shard.task("runs")["c"] == "1"
    assert shard.redis.lrange(shard.keys("stops", "w"), 0, -1) == [b"runs"]
    shard.add("late")
    assert shard.state("late") == "C"


def test_the_rest_of_many_is_cancelled_in_slices(shard: Shard) -> None:
    names = [f"m{n}" for n in range(450)]
    for start in range(0, 450, 150):
        shard.add(*names[start : start + 150], due=1 << 42)
    shard.add("a")
    shard.add("final", after=["a", *names], flow=["r", False, False])
    fail(shard, "a")
    counts = [450]
    while shard.redis.exists(shard.keys("edges"), shard.keys("fan")):
        shard.take(0)
        counts.append(shard.redis.zcard(shard.keys("scheduled", "default")))
    assert counts[-1] == 0
    assert max(before - after for before, after in pairwise(counts)) <= 300
    assert {shard.state(i) for i in names} == {"C"}
    assert "waited for a (add), which did not succeed: ValueError: no" in shard.error("m449")["message"]


def test_a_circle_of_any_order_ends(shard: Shard) -> None:
    shard.add("b", after=["c"])
    shard.add("c", after=["a", "free"])
    shard.add("free")
    shard.add("a", after=["b"])
    told(shard)
    assert {i: shard.state(i) for i in "abc"} == {"a": "F", "b": "F", "c": "F"}
    assert shard.error("c") == {"type": "DEPENDENCY_CYCLE", "message": "waits for itself: c -> a -> b -> c"}
    assert shard.error("a")["type"] == "DEPENDENCY_FAILED"
    assert shard.state("free") == "q"


def test_what_only_looks_like_a_circle_is_left_alone(shard: Shard) -> None:
    shard.add("d", after=["b", "c"])
    shard.add("c", after=["a"])
    shard.add("b", after=["a"])
    shard.add("a")
    told(shard)
    assert {i: shard.state(i) for i in "abcd"} == {"a": "q", "b": "w", "c": "w", "d": "w"}


def test_nothing_is_left_of_a_workflow_that_is_forgotten(shard: Shard) -> None:
    shard.add("a", flow=[0, "a", False])
    shard.add("b", after=["a"], flow=[0, "a", False])
    assert shard.redis.smembers(shard.keys("workflow", "a")) == {b"a", b"b"}
    fail(shard, "a")
    assert shard.redis.lrange(shard.keys("blocked", "a"), 0, -1) == [b"b"]
    shard.logged("a")
    shard.logged("b", 0, "~")
    assert shard.ok(Script.EXPIRE, -(1 << 41)) == 2
    assert not [name for name in shard.dump() if name.startswith(("wf:", "bl:", "wd:", "t:", "a:", "d:"))]
