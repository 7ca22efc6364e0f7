"""The scripts, rule by rule, as ``test_scripts``: what is admitted, and how queues give it out."""

from __future__ import annotations

import json

from shard import HOUR, Shard, now_ms

from krq.store.scripts import Script

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
