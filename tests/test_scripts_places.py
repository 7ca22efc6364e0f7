"""Places, lines, rates and claims: the scripts give up what is held wherever an attempt ends, and nothing waits for ever."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from shard import DAY, Shard, now_ms
from store_reading import of, owner

from krq.store.client import Answer
from krq.store.scripts import Script

#: limits by task name, as a worker's code has them
LIMITS: dict[str, dict[str, Any]] = {
    "one": {"c": 1}, "two": {"c": 2}, "each": {"k": 1}, "row": {"o": True}, "rare": {"t": 3_600_000}, "both": {"c": 2, "o": True},
}  # fmt: skip
#: ways in which a running task "a" leaves its place
ENDS = {
    "success": lambda s: s.settle("a"),
    "failed": lambda s: s.settle("a", kind="F", value='{"type": "X", "message": ""}'),
    "cancelled": lambda s: s.settle("a", kind="C", value='{"type": "X", "message": ""}'),
    "retry": lambda s: s.settle("a", kind="R", delay=DAY),
    "released and cancelled": lambda s: (s.ok(Script.RELEASE, "w", [("a", 1)]), s.ok(Script.CANCEL, ["a"])),
    "poison": lambda s: s.settle("a", kind="D", value="how", delay=1),
    "died while cancelled": lambda s: (s.ok(Script.CANCEL, ["a"]), s.recover(), s.register()),
}  # fmt: skip
#: ways in which a parked task "b" ends
GONE = {
    "cancelled": lambda s: s.ok(Script.CANCEL, ["b"]),
    "purged": lambda s: s.ok(Script.PURGE, "default", False),
    "expired": lambda s: (s.redis.zadd(s.keys("expiring"), {"b": 1}), s.ok(Script.EXPIRE, DAY)),
}  # fmt: skip


@pytest.fixture
def limited(shard: Shard) -> Shard:
    """A worker ``w`` whose code limits all of ``LIMITS``."""
    shard.register(limits=[(name, json.dumps(limits)) for name, limits in LIMITS.items()])
    return shard


def names(shard: Shard, most: int = 10, inc: str = "w") -> list[str]:
    return [i for i, _ in shard.taken(most, inc)]


def parked(shard: Shard) -> set[str]:
    return {i for line in of(shard.dump(), "parked").values() for i, _ in line}


def nothing_left(shard: Shard) -> None:
    """No place, turn or lot is left over, and the window is as it was."""
    found = shard.dump()
    assert not {name: value for name, value in found.items() if owner(name) in ("busy", "line", "parked", "lots", "limited", "unique")}
    assert (shard.queue("bytes"), shard.queue("parked")) == (0, 0)


# --- places --------------------------------------------------------------------------------------


def test_no_more_than_so_many_run(limited: Shard) -> None:
    limited.add("a", "b", "c", "d", name="two")
    assert names(limited) == ["a", "b"]
    assert (parked(limited), limited.state("c"), limited.ready()) == ({"c", "d"}, "q", [])
    assert names(limited) == []
    for i in "abcd":
        assert limited.settle(i) == 1
        assert limited.settle(i) == 2  # a second copy of it frees no second place
        assert names(limited) == (["c"] if i == "a" else ["d"] if i == "b" else [])
    nothing_left(limited)


def test_a_repeated_take_takes_no_more_places(limited: Shard) -> None:
    limited.add("a", "b", name="two")
    assert [task[0] for task in limited.take(1, number=1).values[0]] == ["a"]
    assert [task[0] for task in limited.take(1, number=1).values[0]] == ["a"]
    assert [task[0] for task in limited.take(1, number=2).values[0]] == ["b"]


@pytest.mark.parametrize("end", ENDS)
def test_a_place_is_given_up(limited: Shard, end: str) -> None:
    limited.add("a", "b", "c", name="one")
    assert names(limited) == ["a"]
    ENDS[end](limited)
    assert names(limited) == ["b"]
    ENDS[end](limited)  # late copies of it
    limited.number = 100
    assert names(limited) in ([], ["b"])
    assert limited.state("c") == "q"


def test_a_place_moves_with_a_dead_workers_task(limited: Shard) -> None:
    limited.register("x")
    limited.add("a", "b", name="one")
    assert names(limited, inc="x") == ["a"]
    limited.recover("x")
    assert names(limited) == ["a"]  # in front, as it was there before
    assert limited.settle("a", 2, kind="D", value="how", delay=3) == 1
    assert names(limited) == ["a"]
    assert limited.settle("a", 3) == 1
    assert names(limited) == ["b"]


@pytest.mark.parametrize("gone", GONE)
def test_what_is_parked_can_end(limited: Shard, gone: str) -> None:
    limited.add("a", "b", name="one")
    assert names(limited) == ["a"]
    GONE[gone](limited)
    assert limited.state("b") in ("C", "F")
    assert limited.settle("a") == 1
    assert names(limited) == []
    nothing_left(limited)


def test_each_key_has_places_of_its_own(limited: Shard) -> None:
    limited.admit(*[limited.record(i + key, name="each", key=key) for i in "ab" for key in ("x", "y")])
    assert names(limited) == ["ax", "ay"]
    limited.settle("ay")
    assert names(limited) == ["by"]


def test_others_pass_what_is_parked(limited: Shard) -> None:
    """However many of a limited name stand before them; and the parked keep their order."""
    many = [f"m{n:03}" for n in range(90)]
    limited.add(*many, name="one")
    limited.add("other")
    assert names(limited, 2) == ["m000", "other"]
    for before, after in pairwise(many[:4]):
        limited.settle(before)
        assert names(limited, 2) == [after]


def test_parked_tasks_fill_the_window(limited: Shard) -> None:
    limited.add("a", "b", "c", name="one")
    names(limited)
    assert limited.admit(limited.record("d", name="one"), window=2).values[0] == 3
    limited.settle("a")
    assert names(limited) == ["b"]
    limited.offset = 3
    assert limited.admit(limited.record("d", name="one"), window=2).values[0] is False


def test_a_place_nobody_gave_up_is_found(limited: Shard) -> None:
    """Its holder is unknown, final, or elsewhere: whoever finds it in the way takes it."""
    limited.add("a", name="one")
    limited.redis.sadd(limited.keys("busy", "none"), "ghost")
    assert names(limited) == ["a"]


def test_a_take_that_parks_says_when_to_look_again(limited: Shard) -> None:
    limited.add("a", "b", name="one")
    _, due, more = limited.take().values
    assert (29_000 < due <= 30_000, more) == (True, False)
    limited.settle("a")
    assert limited.redis.llen(limited.keys("wake", "default")) == 1


def test_a_worker_asserts_its_places(limited: Shard) -> None:
    """After a restart what runs has its place still, also where Redis has lost that it ever began."""
    limited.add("a", "b", name="one")
    assert names(limited) == ["a"]
    task = ["a", 1, "one", "default", '{"task":"one"}', 1, now_ms(), False]
    limited.redis.delete(*[limited.keys.prefix + name for name in limited.dump() if not name.startswith("epoch")])
    limited.redis.hset(limited.keys.epoch, "run", "0" * 40)
    limited.store.renew("later")
    limits = [("one", '{"c":1}')]
    for _ in range(2):
        assert limited.ok(Script.ASSERT, "w", ["worker", "w"], ["*"], [task], limits) == []
    limited.ok(Script.OPEN, 0)
    limited.mark(start=1)
    limited.offset = 1
    limited.add("b", name="one")
    limited.number = 0
    assert names(limited) == []
    assert limited.settle("a") == 1
    assert names(limited) == ["b"]


# --- changes -------------------------------------------------------------------------------------


def test_limits_change_at_run_time(limited: Shard) -> None:
    limited.add("a", "b", "c", "d", name="one")
    assert names(limited) == ["a"]
    limited.ok(Script.LIMIT, "one", '{"c":2}')
    assert names(limited) == ["b"]
    limited.register(limits=[("one", '{"c":1}')])  # the code does not undo it
    limited.settle("a")
    assert names(limited) == ["c"]
    limited.ok(Script.LIMIT, "one", False)
    limited.settle("b")
    assert names(limited) == []
    limited.ok(Script.LIMIT, "one", '{"c":"none"}')
    assert names(limited) == ["d"]
    for i in "cd":
        limited.settle(i)
    nothing_left(limited)


def test_a_name_without_limits_any_more_parks_nothing(limited: Shard) -> None:
    limited.admit(*[limited.record(f"{name}{n}", name=name, key="k") for name in ("one", "each", "row", "rare") for n in range(3)])
    assert names(limited) == ["one0", "each0", "row0", "rare0", "rare1"]
    limited.register(limits=[(name, False) for name in LIMITS])
    for name in ("one", "each", "row"):
        limited.settle(f"{name}0")
    assert set(names(limited)) == {"one1", "one2", "each1", "each2", "row1", "row2", "rare2"}
    assert not limited.redis.exists(limited.keys("limits"), limited.keys("rates"))


# --- rates ---------------------------------------------------------------------------------------


def test_a_rate_has_a_start_and_one_more(limited: Shard) -> None:
    """Of an hour each: what was not used within the last hour is made up for, and no more."""
    limited.add("a", "b", "c", name="rare")
    tasks, due, _ = limited.take().values
    assert [task[0] for task in tasks] == ["a", "b"]
    assert 3_500_000 < due <= 3_600_000
    limited.settle("a")
    assert names(limited) == []
    used = float(limited.redis.hget(limited.keys("rates"), "rare"))
    limited.redis.hset(limited.keys("rates"), "rare", used - 3_700_000)  # an hour later
    limited.redis.zadd(limited.keys("limited", "default"), {"rrare": 1})
    assert names(limited) == ["c"]


def test_what_is_handed_back_keeps_its_turn_and_what_died_does_not(limited: Shard) -> None:
    limited.add("a", "b", name="rare")
    assert names(limited) == ["a", "b"]
    limited.ok(Script.RELEASE, "w", [("a", 1)])
    assert names(limited) == ["a"]
    limited.recover(started=["a"])
    limited.register()
    limited.number = 0
    assert names(limited) == []
    assert parked(limited) == {"a", "b"}


# --- lines ---------------------------------------------------------------------------------------


def row(shard: Shard, *ids: str, **more: Any) -> Answer:
    return shard.admit(*[shard.record(i, **{"name": "row", "key": "k", **more}) for i in ids])


def test_a_key_runs_in_the_order_of_its_log(limited: Shard) -> None:
    row(limited, "a", "b", "c")
    row(limited, "x", key="other")
    assert names(limited) == ["a", "x"]
    limited.settle("a", kind="R", delay=0)
    assert names(limited) == ["a"]  # a retry keeps its place
    limited.settle("a", 2, kind="F")
    assert names(limited) == ["b"]
    limited.ok(Script.RELEASE, "w", [("b", 1)])
    assert names(limited) == ["b"]
    limited.recover()
    limited.register()
    limited.number = 0
    assert names(limited) == ["b", "x"]
    limited.settle("b", 3)
    assert names(limited) == ["c"]


def test_a_back_off_holds_its_key(limited: Shard) -> None:
    row(limited, "a", "b")
    assert names(limited) == ["a"]
    limited.settle("a", kind="R", delay=DAY)
    assert names(limited) == []
    limited.ok(Script.CANCEL, ["a"])
    assert names(limited) == ["b"]
    limited.settle("b")
    nothing_left(limited)


def test_a_worker_that_does_not_know_it_does_not_change_the_order(limited: Shard) -> None:
    limited.register("x", ["add"])
    row(limited, "a")
    assert limited.taken(1, "x", grace=DAY) == []
    assert limited.state("a") == "d"
    row(limited, "b")
    assert names(limited) == []
    assert parked(limited) == {"b"}


def test_a_priority_does_not_change_the_order(limited: Shard) -> None:
    row(limited, "a")
    row(limited, "b", priority=5)
    assert names(limited) == ["a"]


def test_a_submitter_does_not_jump_the_line(limited: Shard) -> None:
    limited.submit(limited.record("a", name="row", key="k"), limited.record("z", name="one"))
    assert (limited.state("a"), limited.state("z")) == ("m", "q")
    limited.offset = 0
    row(limited, "a")
    assert limited.state("a") == "q"


def test_where_the_log_has_no_order_submitters_make_it(limited: Shard) -> None:
    """However full the window: what intake reads later would stand behind."""
    for i in "abc":
        dealt = limited.record(i, name="row", key="k")
        dealt[14] = False
        limited.submit(dealt, window=1)
    assert names(limited) == ["a"]
    assert parked(limited) == {"b", "c"}


# --- claims --------------------------------------------------------------------------------------


def test_one_at_a_time(limited: Shard) -> None:
    limited.admit(*[limited.record(i, unique=[0, "k"]) for i in "ab"])
    assert (limited.state("a"), limited.state("b")) == ("q", "C")
    assert (limited.error("b")["type"], "the same as a," in limited.error("b")["message"]) == ("DUPLICATE", True)
    assert limited.outbox("~") == {"b:0"}
    limited.add("other", unique=[0, "x"])
    limited.add("others", name="mul", unique=[0, "k"])
    limited.finish("a")
    limited.add("c", unique=[0, "k"])
    assert limited.state("c") == "q"
    for i in ("other", "others", "c"):
        assert limited.state(i) == "q"
        limited.finish(i)
    nothing_left(limited)


def test_a_claim_lasts_through_retries_and_deaths(limited: Shard) -> None:
    limited.add("a", unique=[0, "k"])
    assert names(limited) == ["a"]
    limited.settle("a", kind="R", delay=DAY)
    limited.add("b", unique=[0, "k"])
    assert limited.state("b") == "C"
    limited.ok(Script.CANCEL, ["a"])
    limited.add("c", unique=[0, "k"])
    assert limited.state("c") == "q"
    limited.add("a", unique=[0, "k"], generation=1)
    assert limited.error("a")["type"] == "DUPLICATE"


def test_one_within_a_time(limited: Shard) -> None:
    limited.add("a", unique=[DAY, "k"])
    limited.finish("a")
    limited.add("b", unique=[DAY, "k"])
    assert limited.state("b") == "C"
    claim = limited.keys("unique", "add\0k")
    assert 0 < limited.redis.pttl(claim) <= DAY
    limited.redis.delete(claim)
    limited.add("c", unique=[DAY, "k"])
    assert limited.state("c") == "q"


def test_a_claim_nobody_gave_up_is_taken_over(limited: Shard) -> None:
    limited.redis.set(limited.keys("unique", "add\0k"), "ghost")
    limited.add("a", unique=[0, "k"])
    assert limited.state("a") == "q"
