"""The scripts of schedules, called by hand: who is told what is due, and what may be repeated."""

from __future__ import annotations

from typing import Any

from shard import HOUR, Shard, now_ms

from krq.store.scripts import Script

EVERY, CRON = '{"every":1000}', '{"cron":"* * * * *"}'


def put(shard: Shard, name: str, tick: int = 1000, timing: str = EVERY, definition: str = "d", **more: Any) -> str:
    """Enter a schedule; ``more``: source, paused, force."""
    answer: str = shard.ok(
        Script.SCHEDULE, "set", name, definition, timing, more.get("source", "runtime"), tick, more.get("paused"), more.get("force", False)
    )
    return answer


def due(shard: Shard, holder: str = "w", mine: tuple[str, ...] = (), most: int = 10) -> list[tuple[str, int]]:
    return [(name, int(tick)) for name, tick, _ in shard.ok(Script.DUE, holder, list(mine), 3000, most)[2]]


def tick(shard: Shard, name: str) -> float | None:
    score: float | None = shard.redis.zscore(shard.keys("ticks"), name)
    return score


def fields(shard: Shard, name: str) -> dict[str, str]:
    return {k.decode(): v.decode() for k, v in shard.redis.hgetall(shard.keys("schedule", name)).items()}


def test_one_is_told_the_others_are_not(shard: Shard) -> None:
    assert put(shard, "a") == "new"
    assert due(shard, "w1") == due(shard, "w1") == [("a", 1000)]
    assert due(shard, "w2") == []


def test_who_dies_with_a_schedule_in_hand_keeps_it_for_a_moment(shard: Shard) -> None:
    put(shard, "a")
    assert due(shard, "w1")
    shard.redis.hset(shard.keys("schedule", "a"), "c", now_ms() - 1)
    assert due(shard, "w2") == [("a", 1000)]


def test_a_clock_that_is_set_back_locks_nobody_out(shard: Shard) -> None:
    put(shard, "a")
    assert due(shard, "w1")
    shard.redis.hset(shard.keys("schedule", "a"), "c", now_ms() + HOUR)
    assert due(shard, "w2") == [("a", 1000)]


def test_it_moves_once_and_only_from_the_tick_it_names(shard: Shard) -> None:
    put(shard, "a")
    put(shard, "b")
    moves = [("a", 1000, 2000, 1000, "a@1000"), ("b", 500, 9000, 500, "b@500"), ("nobody", 1000, 2000, 1000, "x")]
    assert shard.ok(Script.FIRED, moves) == [1, 0, 0]
    assert shard.ok(Script.FIRED, moves) == [0, 0, 0]
    assert (tick(shard, "a"), tick(shard, "b"), tick(shard, "nobody")) == (2000, 1000, None)
    assert fields(shard, "a")["i"] == "a@1000"
    assert due(shard, "w2") == [("b", 1000), ("a", 2000)]


def test_passing_over_old_ticks_keeps_it_in_hand(shard: Shard) -> None:
    put(shard, "a")
    assert due(shard, "w1")
    assert shard.ok(Script.FIRED, [("a", 1000, 5000, False, False)]) == [1]
    assert due(shard, "w2") == []
    assert due(shard, "w1") == [("a", 5000)]
    assert "l" not in fields(shard, "a")


def test_what_comes_next_is_told_and_paused_is_never_next(shard: Shard) -> None:
    ahead = now_ms() + HOUR
    put(shard, "a", tick=ahead)
    put(shard, "b", paused=True)
    now, following, found = shard.ok(Script.DUE, "w", [], 3000, 10)
    assert (following, found) == (ahead, [])
    assert abs(now - now_ms()) < 10_000
    assert tick(shard, "b") == float("inf")


def test_code_is_fired_by_those_who_have_it(shard: Shard) -> None:
    put(shard, "a", source="code")
    assert due(shard, "w1") == []
    assert due(shard, "w1", mine=("a",)) == [("a", 1000)]


def test_code_that_nobody_has_any_more_is_forgotten_after_a_day(shard: Shard) -> None:
    put(shard, "a", source="code")
    shard.redis.hset(shard.keys("schedule", "a"), "seen", now_ms() - 23 * HOUR)
    assert due(shard) == []
    assert fields(shard, "a")
    shard.redis.hset(shard.keys("schedule", "a"), "seen", now_ms() - 25 * HOUR)
    assert due(shard) == []
    assert (fields(shard, "a"), tick(shard, "a")) == ({}, None)


def test_the_same_code_again_changes_nothing(shard: Shard) -> None:
    put(shard, "a", source="code")
    shard.ok(Script.SCHEDULE, "pause", "a")
    assert put(shard, "a", tick=7000, source="code", force=True) == "same"
    assert (fields(shard, "a")["p"], tick(shard, "a")) == ("1", float("inf"))
    shard.ok(Script.SCHEDULE, "resume", "a", 8000)
    assert put(shard, "a", tick=9000, source="code", force=True) == "same"
    assert tick(shard, "a") == 8000


def test_other_arguments_keep_the_tick_and_another_timing_does_not(shard: Shard) -> None:
    put(shard, "a", source="code")
    assert put(shard, "a", tick=5000, definition="other", source="code", force=True) == "changed"
    assert tick(shard, "a") == 1000
    assert put(shard, "a", tick=6000, definition="third", timing=CRON, source="code", force=True) == "changed"
    assert tick(shard, "a") == 6000


def test_old_and_new_code_side_by_side(shard: Shard) -> None:
    put(shard, "a", source="code", definition="old")
    assert put(shard, "a", source="code", definition="new", force=True) == "changed", "who starts last is right"
    assert put(shard, "a", source="code", definition="old") == "kept", "what an older worker says now and then is not heard"
    shard.redis.hset(shard.keys("schedule", "a"), "seen", now_ms() - 181_000)
    assert put(shard, "a", source="code", definition="old") == "changed", "until nobody has the newer any more"


def test_a_change_at_run_time_goes_before_the_code(shard: Shard) -> None:
    put(shard, "a", source="code")
    assert put(shard, "a", definition="by hand") == "changed"
    assert put(shard, "a", definition="d", source="code", force=True) == "kept"
    assert due(shard, "w9") == [("a", 1000)], "anybody fires it"
    assert shard.ok(Script.SCHEDULE, "remove", "a") == "removed"
    assert put(shard, "a", tick=2000, source="code") == "new"


def test_what_live_workers_define_is_not_removed(shard: Shard) -> None:
    put(shard, "a", source="code")
    assert shard.ok(Script.SCHEDULE, "remove", "a") == "live"
    shard.redis.hset(shard.keys("schedule", "a"), "seen", now_ms() - 181_000)
    assert shard.ok(Script.SCHEDULE, "remove", "a") == "removed"
    assert shard.ok(Script.SCHEDULE, "remove", "a") == "missing"


def test_pause_and_resume_may_be_repeated(shard: Shard) -> None:
    put(shard, "a")
    assert shard.ok(Script.SCHEDULE, "pause", "a") == shard.ok(Script.SCHEDULE, "pause", "a") == "paused"
    assert shard.ok(Script.FIRED, [("a", 1000, 2000, 1000, "a@1000")]) == [0], "sent while it was paused: it stays paused"
    assert shard.ok(Script.SCHEDULE, "resume", "a", 3000) == "resumed"
    assert shard.ok(Script.SCHEDULE, "resume", "a", 4000) == "resumed"
    assert tick(shard, "a") == 3000
    assert put(shard, "a", tick=5000, paused=False) == "changed"
    assert tick(shard, "a") == 3000
    assert shard.ok(Script.SCHEDULE, "pause", "nobody") == "missing"


def test_there_is_a_limit(shard: Shard) -> None:
    shard.redis.zadd(shard.keys("ticks"), {f"s{n}": now_ms() + HOUR for n in range(10_000)})
    assert put(shard, "one more") == "full"
    assert fields(shard, "one more") == {}


def test_a_round_is_bounded(shard: Shard) -> None:
    for n in range(30):
        put(shard, f"s{n:02}", tick=1000 + n)
    assert [name for name, _ in due(shard, most=7)] == [f"s{n:02}" for n in range(7)]
