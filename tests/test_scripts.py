"""The scripts, rule by rule: D and a number is a rule of design.md §6, P and a number one of protocol.md."""

from __future__ import annotations

import json
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
        flags = "#!lua flags=allow-oom\n" if script not in ADDING else "#!lua\n"
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


# --- D9, P11: window and admission ----------------------------------------------------------------


def test_p11_the_window_stops_intake_at_an_offset_by_count_and_by_bytes(shard: Shard) -> None:
    batch = [shard.record(f"n{n}", raw="x" * 100) for n in range(4)]
    assert shard.admit(*batch, window=2).values[0] == 2
    assert shard.mark() == [2, 0]
    assert shard.admit(*batch[2:], window_bytes=299).values[0] == 2
    assert shard.admit(*batch[2:], window_bytes=300).values[0] == 3
    assert shard.queue("bytes") == 300
    shard.taken(10)
    assert shard.admit(batch[3], window_bytes=1).values[0] is False, "one always has room"
    shard.taken(10)
    assert shard.queue("bytes") == 0


def test_p11_waiting_and_scheduled_messages_do_not_fill_the_window(shard: Shard) -> None:
    more = [
        shard.record("w1", after=["later"]),
        shard.record("d1", due=now_ms() + HOUR),
        shard.record("later"),
        shard.record("w2", after=["later"]),
    ]
    assert shard.admit(*more, window=1).values[0] is False
    assert shard.ready() == ["later"]
    assert [shard.state(i) for i in ("w1", "d1", "w2")] == ["w", "d", "w"]


def test_p11_a_marker_is_no_admission(shard: Shard) -> None:
    shard.add("full")
    record = shard.record("a")
    shard.submit(record, window=1)
    assert shard.state("a") == "m"
    assert 0 < shard.redis.ttl(shard.keys("task", "a")) <= 86400
    shard.admit(record)
    assert (shard.state("a"), shard.ready()) == ("q", ["full", "a"])
    assert shard.redis.ttl(shard.keys("task", "a")) == -1


def test_p11_a_submitter_admits_near_the_mark_only_and_nothing_below_it(shard: Shard) -> None:
    shard.submit(shard.record("far", offset=1001), shard.record("near", offset=1000))
    assert (shard.state("far"), shard.state("near")) == ("m", "q")
    shard.admit(*[shard.record(f"n{n}", offset=n) for n in range(3)])
    shard.submit(shard.record("below", offset=2))
    assert shard.state("below") is None


def test_d2_a_gap_is_refused_and_what_is_below_the_mark_is_skipped(shard: Shard) -> None:
    assert shard.admit(shard.record("b", offset=1)).status == "GAP"
    shard.add("a")
    assert shard.admit(shard.record("a", offset=0), shard.record("b", offset=1)).ok
    assert shard.mark() == [2, 0]
    assert shard.queue("N") == 2
    assert shard.run(Script.ADMIT, ["default", 0, "other", 2, 3, 0], 9, 999, 9, [shard.record("c")]).status == "TOPIC"
    assert shard.run(Script.ADMIT, ["default", 9, "tid", 0, 1, 0], 9, 999, 9, [shard.record("c")]).status == "NOMARK"


def test_p4_a_topic_made_anew_begins_at_its_start(shard: Shard) -> None:
    shard.add("a", "b")
    assert shard.mark(start=0, tid="another") == [0, 0]
    assert shard.ok(Script.JUMP, "default", 0, "tid", 0, 7) is False
    assert shard.ok(Script.JUMP, "default", 0, "another", 0, 7) is True
    assert shard.ok(Script.JUMP, "default", 0, "another", 0, 9) is False
    assert shard.mark(tid="another") == [7, 7]


def test_p18_the_same_id_with_other_bytes_is_told(shard: Shard) -> None:
    shard.add("a")
    other = shard.record("a", raw="other")
    assert shard.admit(other).values == [False, [1], [1]]
    assert shard.admit(other).values == [False, [1], []], "told again: the reply may have been lost"
    assert shard.task("a")["p"] == "default:0:0"


def test_p15_a_newer_generation_revives_a_final_task_and_keeps_its_attempts(shard: Shard) -> None:
    shard.add("a")
    shard.taken()
    shard.settle("a", kind="F", value=json.dumps("x" * 90))
    again = shard.record("a", generation=1, raw="again", priority=2)
    shard.admit(again)
    assert shard.mark() == [2, 0], "the first life is not logged"
    assert shard.taken() == [("a", 2)]
    assert (shard.task("a")["f"], shard.redis.exists(shard.keys("result", "a"))) == ("0", 1), "its last value stays until the next"
    shard.settle("a", 2)
    assert shard.redis.exists(shard.keys("result", "a")) == 0
    assert shard.admit(shard.record("a", generation=1, raw="again")).values[0] is False
    assert shard.state("a") == "S", "the same generation does not"
    assert len(shard.logged("a", 2)) == 3
    assert shard.mark() == [3, 3]


def test_p9_an_unknown_name_is_put_off_with_back_off_then_given_as_unknown(shard: Shard) -> None:
    shard.register("w", ["add"])
    shard.add("a", name="odd")
    shard.redis.delete(shard.keys("wake", "default"))
    answer = shard.take(grace=HOUR)
    assert (answer.values[0], shard.state("a"), shard.queue("bytes")) == ([], "d", 0)
    assert 0 < answer.values[1] <= 250
    assert shard.redis.llen(shard.keys("wake", "default")) == 1, "another may know it"
    shard.redis.hset(shard.keys("task", "a"), "un", now_ms() - 5000)
    shard.redis.zadd(shard.keys("scheduled", "default"), {"a": 1})
    assert shard.take(grace=HOUR).values[1] > 4000, "the back-off grows"
    shard.redis.zadd(shard.keys("scheduled", "default"), {"a": 1})
    assert shard.take(grace=3000).values[0] == [], "never within the grace of an open"
    shard.redis.hset(shard.keys.epoch, "opened_at", now_ms() - 4000)
    shard.redis.zadd(shard.keys("scheduled", "default"), {"a": 1})
    assert [task[8] for task in shard.take(grace=3000).values[0]] == [False]


# --- queues -------------------------------------------------------------------------------------------


def test_order_is_priority_then_arrival_and_what_is_handed_back_comes_first(shard: Shard) -> None:
    shard.admit(shard.record("a"), shard.record("b"), shard.record("high", priority=1), shard.record("low", priority=-1))
    assert shard.taken(2) == [("high", 1), ("a", 1)]
    shard.ok(Script.RELEASE, "w", [["a", 1]])
    shard.add("d")
    assert [i for i, _ in shard.taken()] == ["a", "b", "d", "low"]


def test_bytes_are_exact_when_tasks_end_in_the_pool(shard: Shard) -> None:
    shard.admit(shard.record("old", expires=1), shard.record("c"), shard.record("k"))
    shard.redis.hset(shard.keys("task", "c"), "c", 1)
    assert [i for i, _ in shard.taken()] == ["k"]
    assert (shard.state("old"), shard.state("c"), shard.queue("bytes")) == ("F", "C", 0)


def test_a_paused_queue_gives_nothing(shard: Shard) -> None:
    shard.add("a")
    shard.ok(Script.CONTROL, "default", True)
    assert shard.taken() == []
    shard.redis.delete(shard.keys("wake", "default"))
    shard.ok(Script.CONTROL, "default", False)
    assert shard.redis.llen(shard.keys("wake", "default")) == 1
    assert shard.taken() == [("a", 1)]


def test_p15_purge_drops_the_pool_and_what_the_log_holds_up_to_now(shard: Shard) -> None:
    shard.add("a")
    shard.add("d", due=now_ms() + HOUR)
    behind = shard.record("b", sent=now_ms() - 1000)
    dropped, before = shard.ok(Script.PURGE, "default", False)
    assert (dropped, shard.queue("bytes")) == (2, 0)
    assert shard.ok(Script.PURGE, "default", before) == [0, before]
    shard.submit(behind)
    assert shard.state("b") is None
    assert shard.admit(behind).values == [False, [], [1]]
    shard.add("new", sent=before + 1)
    assert [shard.state(i) for i in ("a", "d", "b", "new")] == ["C", "C", None, "q"]


def test_a_marker_cancelled_ends_at_its_admission(shard: Shard) -> None:
    record = shard.record("a")
    shard.submit(record, window=0)
    assert shard.ok(Script.CANCEL, ["a", "nobody"]) == ["m", False]
    shard.admit(record)
    assert (shard.state("a"), shard.queue("C"), shard.ready()) == ("C", 1, [])
