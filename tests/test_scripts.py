"""The scripts, rule by rule: D and a number is a rule of design.md §6, P and a number one of protocol.md."""

from __future__ import annotations

import re
from importlib.resources import files

from shard import DAY, HOUR, Shard, now_ms, until

from krq.store import keys
from krq.store.scripts import Script, source

# --- the house ---------------------------------------------------------------------------------


def test_d9_scripts_use_the_keys_of_the_table_and_no_others() -> None:
    for script in Script:
        text = files("krq.store").joinpath(f"lua/{script}.lua").read_text("utf-8")
        text += "".join(files("krq.store").joinpath(f"lua/{shared}.lua").read_text("utf-8") for shared in ("prelude", "edges"))
        used = set(re.findall(r"\bK\.(\w+)(\(?)", text))
        for name, opened in used:
            assert name in keys.TABLE, (script, name)
            assert (opened == "(") == keys.TABLE[name].endswith(":"), (script, name)


def test_d9_lua_and_python_make_the_same_keys(shard: Shard) -> None:
    body = "return {" + ", ".join(f"K.{n}('x')" if s.endswith(":") else f"K.{n}" for n, s in keys.TABLE.items()) + "}"
    made = shard.redis.eval(keys.lua() + "\n" + body, 1, shard.keys.epoch)
    assert [key.decode() for key in made] == [shard.keys(n, "x" if s.endswith(":") else "") for n, s in keys.TABLE.items()]


#: scripts that only enter something: where memory is short they are refused, and nothing is lost
ADDING = {Script.ADMIT, Script.PROGRESS, Script.STEP, Script.SCHEDULE}


def test_d7_each_script_says_its_arguments_reply_and_repetition() -> None:
    for script in Script:
        text = files("krq.store").joinpath(f"lua/{script}.lua").read_text("utf-8")
        assert all(word in text for word in ("ARGV[2] {", "-- Reply", "-- May be repeated")), script
        flags = "#!lua\n" if script in ADDING else "#!lua flags=no-writes\n" if script is Script.PEEK else "#!lua flags=allow-oom\n"
        assert source(script).text.startswith(flags), script


# --- D3: numbers, repetition ---------------------------------------------------------------------


def test_d3_p13_the_same_take_number_gives_the_same_and_a_smaller_one_nothing(shard: Shard) -> None:
    shard.add("a", "b", "c")
    first = shard.take(2, number=5).values[0]
    assert [task[0] for task in first] == ["a", "b"]
    assert shard.take(2, number=5).values[0] == first
    assert shard.take(2, number=4).status == "STALE"
    assert [task[0] for task in shard.take(2, number=6).values[0]] == ["c"]
    assert shard.take(2, number=5).status == "STALE"


def test_d3_p13_a_repeated_take_leaves_out_what_is_no_longer_held(shard: Shard) -> None:
    shard.add("a", "b", "c")
    assert len(shard.take(3, number=1).values[0]) == 3
    shard.settle("a")
    shard.ok(Script.RELEASE, "w", [["b", 1]])
    assert [task[0] for task in shard.take(3, number=1).values[0]] == ["c"]


def test_d3_one_bad_item_spoils_no_other(shard: Shard) -> None:
    shard.add("a", "b")
    shard.take()
    items = [["nobody", 1, "S", "1", "{}", 0], ["a", 7, "S", "1", "{}", 0], ["b", 1, "S", "1", "{}", 0], ["b", 1, "S", "1", "{}", 0]]
    assert shard.ok(Script.SETTLE, "w", items) == [0, 0, 1, 2]
    assert (shard.state("a"), shard.state("b")) == ("p", "S")


def test_d3_a_hint_to_stop_is_given_once_and_by_audit_until_the_end(shard: Shard) -> None:
    shard.add("a")
    shard.take()
    assert shard.ok(Script.CANCEL, ["a"]) == shard.ok(Script.CANCEL, ["a"]) == ["p"]
    assert shard.ok(Script.SYNC, "w", False) == [["a"], False]
    assert shard.ok(Script.SYNC, "w", False) == [[], False]
    assert shard.ok(Script.SYNC, "w", True) == [["a"], [["a", 1]]]


# --- D4, D5: death and counters ----------------------------------------------------------------


def test_d4_p18_who_is_recovered_is_dead_and_its_results_are_refused(shard: Shard) -> None:
    shard.add("a")
    shard.register("v")
    assert shard.taken(inc="v") == [("a", 1)]
    assert shard.recover("v").values == [0, 1]
    assert shard.run(Script.SETTLE, "v", [["a", 1, "S", "1", "{}", 0]]).status == "DEAD"
    assert shard.take(inc="v").status == "DEAD"
    assert shard.run(Script.SYNC, "v", True).status == "DEAD"
    assert shard.ok(Script.BEAT, ["v", "w", "never"])[0] == ["v", "never"]
    assert shard.ok(Script.RELEASE, "v", [["a", 1]]) == 0
    assert shard.taken() == [("a", 2)]
    assert shard.recover("v").values == [0, 0]


def test_d4_p18_recover_compares_the_beat_that_was_observed(shard: Shard) -> None:
    shard.add("a")
    shard.take()
    seen = int(dict(zip(*[iter(shard.ok(Script.BEAT, [])[1])] * 2, strict=True))["w"])
    shard.ok(Script.BEAT, ["w"])
    assert shard.recover(counter=seen, started=False).status == "ALIVE"
    assert shard.state("a") == "p"
    assert shard.recover(counter=seen + 1, started=False).values == [0, 1]


def test_d5_p14_only_taking_raises_the_attempt_and_only_started_tasks_are_interrupted(shard: Shard) -> None:
    shard.add("ran", "idle")
    shard.take()
    shard.ok(Script.RELEASE, "w", [["ran", 1], ["idle", 1]])
    assert sorted(shard.taken()) == [("idle", 2), ("ran", 2)]
    shard.recover(started=["ran"])
    assert (shard.task("ran")["ir"], shard.task("ran")["a"]) == ("1", "2")
    assert not {"ir", "i", "su"} & shard.task("idle").keys()
    shard.register("x")
    assert {task[0]: task[1:4] for task in shard.take(inc="x", number=1).values[0]} == {"ran": [3, 0, 0], "idle": [3, 0, 0]}


def test_p7_who_ran_at_a_death_runs_alone_and_only_who_dies_alone_is_to_blame(shard: Shard) -> None:
    shard.add("killer", "neighbour")
    shard.take()
    shard.recover(started=["killer", "neighbour"], suspects=["killer", "neighbour"])
    shard.register("x")
    given = {task[0]: (task[3], task[9]) for task in shard.take(inc="x", number=1).values[0]}
    assert given == {"killer": (0, True), "neighbour": (0, True)}
    assert shard.ok(Script.SETTLE, "x", [["neighbour", 2, "S", "1", "{}", 0], ["killer", 2, "D", "killed by SIGSEGV", "{}", 3]]) == [1, 1]
    assert (shard.state("killer"), shard.task("killer")["i"], shard.task("killer")["ir"]) == ("q", "2", "2")
    assert (shard.state("neighbour"), shard.task("neighbour").get("i")) == ("S", None)
    assert shard.take(inc="x", number=2).values[0][0][1:4] == [3, 0, 2]
    assert shard.ok(Script.SETTLE, "x", [["killer", 3, "D", "killed by SIGSEGV", "{}", 3]]) == [1]
    assert (shard.state("killer"), shard.error("killer")["type"]) == ("F", "POISON")
    assert shard.error("killer")["message"] == "its process died 3 times while it ran; last: killed by SIGSEGV"
    assert shard.outbox("~") == {"killer:3"}


def test_d5_p14_after_two_unreported_lease_ends_it_runs_alone_and_then_they_are_deaths(shard: Shard) -> None:
    shard.add("a")
    for n, (deaths, alone) in enumerate([(0, False), (0, False), (0, True), (1, True), (2, True)]):
        shard.register(f"x{n}")
        task = shard.take(inc=f"x{n}", number=1).values[0][0]
        assert (task[1], task[3], task[9]) == (n + 1, deaths, alone)
        shard.recover(f"x{n}", started=False)
    assert (shard.state("a"), shard.error("a")["type"]) == ("F", "POISON")
    assert shard.outbox("~") == {"a:5"}


def test_p4_registering_is_a_beat_that_no_observer_has_seen(shard: Shard) -> None:
    beats = shard.keys("beats")
    shard.redis.hset(beats, "late", 0)  # it has asserted while the namespace was closed, and stood still since
    shard.register("late")
    seen = int(shard.redis.hget(beats, "late"))
    assert shard.recover("late", counter=0).status == "ALIVE"
    assert shard.recover("late", counter=seen).ok
    until(lambda: shard.run(Script.REGISTER, "late", [], ["*"], ["default"], []).values[0] > seen)
    assert shard.recover("late", counter=seen).status == "ALIVE", "an observer of its life before"


def test_d5_a_cancelled_task_ends_at_its_recovery_and_at_its_next_take(shard: Shard) -> None:
    shard.add("a", "b")
    shard.take()
    shard.ok(Script.CANCEL, ["a", "b"])
    assert shard.settle("b", kind="R", value="{}", delay=HOUR) == 1
    assert shard.taken() == []
    shard.recover(started=["a"])
    assert (shard.state("a"), shard.state("b")) == ("C", "C")


# --- D6, D7, P5: settled, logged, forgotten -------------------------------------------------------


def test_d6_p5_a_marker_goes_only_when_logged_without_open_dependents_and_behind_the_horizon(shard: Shard) -> None:
    shard.add("a")
    shard.add("b", after=["a"])
    shard.taken(1)
    shard.settle("a")
    shard.taken(1)
    shard.settle("b")
    assert shard.ok(Script.EXPIRE, -DAY) == 0, "not logged"
    shard.logged("b")
    shard.logged("a")
    shard.add("c", after=["a"])
    assert shard.ok(Script.EXPIRE, -DAY) == 1, "b; a has an open dependent"
    shard.finish("c")
    assert shard.ok(Script.EXPIRE, DAY) == 0, "intake is not past its finish + a day"
    shard.redis.hset(shard.keys("intake"), "other:0", now_ms() - HOUR)
    assert shard.ok(Script.EXPIRE, 0) == 0, "another partition is behind"
    shard.redis.hset(shard.keys("intake"), "other:0", now_ms() + DAY)
    until(lambda: shard.mark(caught_up=True) and shard.ok(Script.EXPIRE, 0) == 2)
    assert shard.state("a") is None
    assert not {name for name in shard.dump() if name.startswith(("t:", "m:", "r:", "a:", "d:")) or name == "done"}


def test_p5_a_dependent_that_came_before_its_dependency_counts(shard: Shard) -> None:
    """Its dependency must not be forgotten while it runs; and a name that never came leaves nothing behind."""
    shard.add("b", after=["a"], inputs="prepend")
    shard.add("a")
    shard.finish("a")
    assert shard.ok(Script.EXPIRE, -DAY) == 0
    assert shard.take().values[0][0][7] == ["prepend", ["3"]]
    shard.settle("b")
    shard.submit(marked := shard.record("marked"), window=0)
    shard.submit(waits := shard.record("e", after=["marked"]))
    assert shard.redis.ttl(shard.keys("task", "marked")) == -1, "a marker that is waited for stays"
    shard.admit(marked, waits)
    shard.add("c", after=["never"])
    shard.ok(Script.CANCEL, ["c"])
    assert not {"t:never", "d:never"} & set(shard.dump())


def test_p5_a_dependency_still_unknown_behind_the_horizon_fails_the_dependent(shard: Shard) -> None:
    shard.add("a", after=["never"])
    shard.ok(Script.EXPIRE, DAY)
    assert shard.state("a") == "w"
    shard.ok(Script.EXPIRE, -DAY)
    assert (shard.state("a"), shard.error("a")["type"]) == ("F", "DEPENDENCY_FAILED")
    shard.add("b")
    shard.add("c", after=["b"])
    shard.ok(Script.EXPIRE, -DAY)
    assert shard.state("c") == "w", "b is known"


def test_p5_intake_time_does_not_run_ahead_of_what_was_admitted(shard: Shard) -> None:
    assert shard.admit(shard.record("a"), shard.record("b"), window=1, when=now_ms() + DAY).values[0] == 1
    assert "default:0" not in shard.dump().get("intake", {})


def test_d7_p6_low_water_waits_for_the_lowest_incomplete_and_for_the_mark(shard: Shard) -> None:
    shard.submit(shard.record("b", offset=1))
    assert shard.mark() == [0, 0]
    shard.finish("b")
    assert shard.mark() == [0, 0], "offset 0 was not read"
    shard.admit(shard.record("a", offset=0), shard.record("b", offset=1), shard.record("a", offset=2))
    assert shard.mark() == [3, 0]
    shard.taken(1)
    shard.settle("a")
    assert shard.mark() == [3, 0], "ended, not logged"
    assert sorted(shard.logged("a")) == ["default:0:0", "default:0:2"]
    assert shard.mark() == [3, 3]
    assert shard.logged("a") == []


def test_p6_an_entry_completes_only_the_end_it_tells_of(shard: Shard) -> None:
    """Settled, not logged, revived and cancelled at the same attempt: the entry of the first life says nothing of the second."""
    shard.add("a")
    shard.taken(1)
    shard.settle("a", kind="F", value="{}")
    shard.admit(shard.record("a", generation=1, raw="again"))
    shard.ok(Script.CANCEL, ["a"])
    assert shard.logged("a") == []
    assert shard.outbox("~1") == {"a:1"}
    assert sorted(shard.logged("a", holder="~1")) == ["default:0:0", "default:0:1"]
    shard.admit(shard.record("a", generation=2))
    shard.taken()
    shard.settle("a", 2)
    assert shard.logged("a", 1) == [], "of an earlier attempt"
    assert shard.logged("a", 2) == ["default:0:2"]
