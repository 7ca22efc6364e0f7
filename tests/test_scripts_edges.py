"""Edges in the scripts: tasks with thousands of dependencies, first causes, and expiry in queues that nobody serves."""

from __future__ import annotations

import json
from typing import Any

import pytest
from shard import HOUR, Shard, now_ms

from krq.store.scripts import Script

MANY = [f"n{n}" for n in range(1_700)]


def finish(shard: Shard, names: list[str], kind: str = "S", value: str = "3") -> None:
    """Take and settle these: they are the next."""
    for at in range(0, len(names), 400):
        some = names[at : at + 400]
        assert [i for i, _ in shard.taken(len(some))] == some
        assert shard.ok(Script.SETTLE, "w", [[i, 1, kind, value, "{}", 0] for i in some]) == [1] * len(some)


def counted(shard: Shard) -> int:
    return sum(fields.get("rd") == "1" for name, fields in shard.dump().items() if name.startswith("t:n"))


def add_many(shard: Shard) -> None:
    for at in range(0, len(MANY), 300):
        shard.add(*MANY[at : at + 300])


def test_p16_edges_over_250_are_added_in_slices(shard: Shard) -> None:
    add_many(shard)
    shard.add("final", after=MANY, inputs="list")
    assert (counted(shard), shard.state("final"), shard.task("final")["ln"]) == (250, "w", "250")
    finish(shard, MANY[:400])
    assert counted(shard) == 350, "a take that gives out many enters fewer"
    shard.take(0)
    shard.taken(50)
    assert (counted(shard), "ln" in shard.task("final")) == (700, True), "three edges less for each that it gives out"
    assert shard.ok(Script.SETTLE, "w", [[i, 1, "S", "3", "{}", 0] for i in MANY[400:450]]) == [1] * 50
    while "ln" in shard.task("final"):
        shard.take(0)
    finish(shard, MANY[450:])
    assert (counted(shard), shard.state("final")) == (1700, "q"), "400 ends of one call are told in it"
    task = shard.take(1).values[0][0]
    assert (task[0], task[7]) == ("final", ["list", False])
    assert shard.ok(Script.INPUTS, [*MANY[:3], "nobody"]) == ["3", "3", "3", "null"]
    assert shard.settle("final") == 1
    assert counted(shard) == 1450, "it lets go in slices, too"
    shard.redis.delete(shard.keys("wake", "default"))
    assert [bool(shard.take(0).values[2]) for _ in range(6)] == [True] * 5 + [False]
    assert counted(shard) == 0
    assert not {"edges", "a:final", "d:n0", "d:n1699"} & set(shard.dump())
    assert "ln" not in shard.task("final")


def test_p16_the_last_slice_may_find_that_all_has_ended(shard: Shard) -> None:
    add_many(shard)
    finish(shard, MANY)
    shard.add("final", after=MANY)
    assert shard.state("final") == "w"
    while "ln" in shard.task("final"):
        shard.take(0)
    assert shard.state("final") == "q"


def test_p16_the_last_slice_may_be_of_one(shard: Shard) -> None:
    shard.add("final", after=MANY[:251])
    assert "ln" in shard.task("final")
    shard.take(0)
    assert ("ln" in shard.task("final"), shard.task("final")["w"]) == (False, "251")


def test_p16_what_many_tasks_wait_for_is_entered_in_slices_too(shard: Shard) -> None:
    add_many(shard)
    dependents = [f"d{i}" for i in range(20)]
    shard.add(*dependents, after=MANY[:100], inputs="list")
    edges = []
    for _ in range(4):
        edges.append(sum(int(fields.get("rd", 0)) for name, fields in shard.dump().items() if name.startswith("t:n")))
        shard.take(0)
    assert edges == [250, 500, 750, 1_000], "each call enters as many as it may, of however many tasks"
    while shard.redis.exists(shard.keys("edges")):
        shard.take(0)
    finish(shard, MANY)
    tasks = shard.take(20).values[0]
    assert [task[0] for task in tasks] == dependents
    assert [task[7][1] for task in tasks] == [["3"] * 100] * 5 + [False] * 15, "what is too much for one call is read later"
    assert shard.ok(Script.SETTLE, "w", [[i, 1, "S", "3", "{}", 0] for i in dependents]) == [1] * 20
    assert len([name for name in shard.dump() if name.startswith("a:d")]) == 18, "it lets go of as many"
    while shard.take(0).values[2]:
        pass
    assert [name for name in shard.dump() if name.startswith(("a:d", "d:n", "edges"))] == []
    assert not any("ln" in shard.task(i) for i in dependents)


def test_who_takes_behind_a_settle_is_not_woken(shard: Shard) -> None:
    for n, (served, woken) in enumerate([(["default"], 0), (["other"], 1), ([], 1)]):
        shard.add(f"first{n}")
        shard.add(f"second{n}", after=[f"first{n}"])
        assert shard.taken() == [(f"first{n}", 1)]
        shard.redis.delete(shard.keys("wake", "default"))
        assert shard.ok(Script.SETTLE, "w", [[f"first{n}", 1, "S", "3", "{}", 0]], served) == [1]
        assert shard.redis.llen(shard.keys("wake", "default")) == woken
        shard.finish(f"second{n}")


def test_others_are_woken_when_it_dies_before_it_has_taken(shard: Shard) -> None:
    shard.ok(Script.REGISTER, "dying", ["worker", "dying", "queues", "default,other"], ["*"], ["default", "other"], [])
    shard.add("first")
    shard.add("second", after=["first"])
    assert shard.taken(inc="dying") == [("first", 1)]
    shard.redis.delete(shard.keys("wake", "default"))
    assert shard.ok(Script.SETTLE, "dying", [["first", 1, "S", "3", "{}", 0]], ["default", "other"]) == [1]
    shard.recover("dying")
    assert [shard.redis.llen(shard.keys("wake", queue)) for queue in ("default", "other")] == [1, 1]


def test_p16_dependencies_may_come_after_their_dependent(shard: Shard) -> None:
    shard.add("final", after=MANY)
    while "ln" in shard.task("final"):
        shard.take(0)
    assert shard.task("final")["w"] == "1700"
    add_many(shard)
    finish(shard, MANY)
    assert shard.state("final") == "q"


@pytest.mark.parametrize("place", [100, 1_600])
def test_p16_one_failure_ends_it_and_lets_go(shard: Shard, place: int) -> None:
    shard.add(f"n{place}")
    shard.taken(1)
    shard.settle(f"n{place}", kind="F", value=json.dumps({"type": "ValueError", "message": "no"}))
    shard.add("final", after=MANY)
    while shard.take(0).values[2]:
        pass
    assert (shard.state("final"), counted(shard)) == ("F", 0)
    assert shard.error("final")["message"] == f"waited for n{place} (add), which did not succeed: ValueError: no"
    assert not {"edges", "a:final"} & set(shard.dump())


def test_p16_what_is_cancelled_between_two_slices_lets_go(shard: Shard) -> None:
    shard.add("final", after=MANY)
    shard.take(0)
    assert shard.ok(Script.CANCEL, ["final"]) == ["C"]
    while shard.take(0).values[2]:
        pass
    assert [name for name in shard.dump() if name.startswith(("t:n", "a:", "d:", "edges"))] == []


def test_p16_it_may_be_run_again_before_it_has_let_go(shard: Shard) -> None:
    shard.add("final", after=MANY)
    for _ in range(3):
        shard.take(0)
    shard.ok(Script.CANCEL, ["final"])
    shard.admit(shard.record("final", after=MANY, generation=1))
    for _ in range(8):
        shard.take(0)
    assert (shard.state("final"), shard.task("final")["w"], "ln" in shard.task("final")) == ("w", "1700", False)
    add_many(shard)
    assert counted(shard) == 1700
    finish(shard, MANY)
    assert shard.state("final") == "q"


# --- first causes --------------------------------------------------------------------------------


def failing(shard: Shard, error: Any) -> list[str]:
    shard.add("first")
    shard.add("second", after=["first"])
    shard.add("third", after=["second"])
    shard.taken(1)
    shard.settle("first", kind="F", value=error if isinstance(error, str) else json.dumps(error, ensure_ascii=False))
    assert [shard.error(i)["type"] for i in ("second", "third")] == ["DEPENDENCY_FAILED"] * 2
    return [shard.error(i)["message"] for i in ("second", "third")]


def test_each_error_down_the_chain_names_the_first_cause(shard: Shard) -> None:
    told = failing(shard, {"type": "ValueError", "message": "odd", "traceback": "x" * 1_000})
    assert told == ["waited for first (add), which did not succeed: ValueError: odd"] * 2
    shard.add("late", after=["third"])
    assert shard.error("late")["message"] == told[0]


@pytest.mark.parametrize("error", ["", "no JSON", "[1]", "null", '{"type": null}'])
def test_errors_of_other_shapes_are_no_harm(shard: Shard, error: str) -> None:
    assert failing(shard, error)[1].startswith("waited for first (add), which did not succeed: ")


@pytest.mark.parametrize("shift", range(4))
def test_long_texts_are_cut_between_characters(shard: Shard, shift: int) -> None:
    told = failing(shard, {"type": "E", "message": "." * shift + "€" * 400})[0]
    assert told.endswith("€ ...")
    assert len(told.encode()) < 500


# --- expiry --------------------------------------------------------------------------------------


def test_what_expires_ends_also_where_nobody_takes(shard: Shard) -> None:
    past = now_ms() - 5
    shard.admit(
        shard.record("ready", expires=past), shard.record("waits", expires=past, after=["never"]),
        shard.record("later", expires=past, due=now_ms() + HOUR), shard.record("fine", expires=now_ms() + HOUR), shard.record("plain"),
    )
    assert shard.ok(Script.EXPIRE, HOUR) == 0
    assert [shard.state(i) for i in ("ready", "waits", "later", "fine", "plain")] == ["F", "F", "F", "q", "q"]
    assert {shard.error(i)["type"] for i in ("ready", "waits", "later")} == {"EXPIRED"}
    assert shard.ready() == ["fine", "plain"]
    assert [i for i, _ in shard.dump()["expiring"]] == ["fine"]
    shard.finish("fine")
    assert "expiring" not in shard.dump()


def test_what_runs_at_its_expiry_ends_when_its_worker_has_died(shard: Shard) -> None:
    shard.add("a", expires=now_ms() + HOUR)
    shard.taken(1)
    shard.redis.zadd(shard.keys("expiring"), {"a": 1})
    assert shard.ok(Script.EXPIRE, HOUR) == 0
    assert shard.state("a") == "p"
    shard.recover()
    shard.redis.zadd(shard.keys("expiring"), {"a": 1})
    shard.ok(Script.EXPIRE, HOUR)
    assert shard.error("a")["type"] == "EXPIRED"
