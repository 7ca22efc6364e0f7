"""The scripts at their limits: large batches, long cascades, a full, a restarted and an emptied server."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from redis.exceptions import OutOfMemoryError, ResponseError
from shard import DAY, Shard, now_ms, until

from krq.dev.valkey import ValkeyServer
from krq.errors import NamespaceClosed, StoreError
from krq.store.scripts import Script


@pytest.fixture(params=["valkey", "debian_redis"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ValkeyServer]:
    """A server of this test's own, which may be filled, restarted and emptied. It keeps its data."""
    binary = None if request.param == "valkey" else shutil.which("redis-server")
    if request.param == "debian_redis" and binary is None:
        if os.environ.get("CI"):
            pytest.fail("CI runs the scripts on Debian's Redis, too: redis-server is missing")
        pytest.skip("redis-server is not installed")
    with ValkeyServer(tmp_path / "server", fsync="always", binary=binary) as server:
        yield server


# --- D3: batches, P16: cascades -----------------------------------------------------------------


def test_d3_batches_of_500_pass_through_all_scripts(shard: Shard) -> None:
    names = [f"n{n}" for n in range(500)]
    shard.add(*names)
    assert shard.taken(500) == [(i, 1) for i in names]
    assert shard.ok(Script.SETTLE, "w", [[i, 1, "S", "3", "{}", 0] for i in names]) == [1] * 500
    assert len(shard.ok(Script.LOGGED, "w", [[i, 1, True] for i in names])) == 500
    assert shard.mark() == [500, 500]
    assert [shard.ok(Script.EXPIRE, -DAY) for _ in range(4)] == [200, 200, 100, 0]


def test_d3_9000_elements_break_nothing(shard: Shard) -> None:
    names = [f"n{n}" for n in range(9000)]
    shard.register("w", [f"name{n}" for n in range(8999)] + ["*"])
    assert shard.redis.scard(shard.keys("names", "w")) == 9000
    shard.add(*names)
    assert len(shard.taken(9000)) == 9000
    assert shard.ok(Script.RELEASE, "w", [[i, 1] for i in names]) == 9000
    assert len(shard.taken(9000)) == 9000
    assert shard.ok(Script.SETTLE, "w", [[i, 2, "R", "3", "{}", 0] for i in names]) == [1] * 9000
    until(lambda: len(shard.taken(9000)) == 9000)
    assert shard.ok(Script.SYNC, "w", True)[1] is not None
    steps = [shard.recover(started=names).values for _ in range(45)]
    assert steps[0] == [8800, 200] and steps[-1] == [0, 200]
    assert shard.ok(Script.LOGGED, "w", [[i, 2, False] for i in names]) == []
    assert shard.queue("bytes") == sum(len(shard.record(i, offset=0)[5]) for i in names)


def test_p16_a_purge_and_the_end_of_a_worker_go_in_slices_of_200(shard: Shard) -> None:
    for at in range(0, 1000, 500):
        shard.add(*[f"n{n}" for n in range(at, at + 500)])
    for n in range(300):
        shard.redis.zrem(shard.keys("ready", "default"), f"n{n}")
        shard.redis.hset(shard.keys("task", f"n{n}"), mapping={"s": "d", "due": 1})
        shard.redis.zadd(shard.keys("scheduled", "default"), {f"n{n}": now_ms() + DAY})
    dropped, before = shard.ok(Script.PURGE, "default", False)
    sizes = [dropped] + [shard.ok(Script.PURGE, "default", before)[0] for _ in range(5)]
    assert sizes == [200, 200, 200, 200, 200, 0]


@pytest.mark.parametrize(("kind", "size"), [("S", 200), ("F", 100)])
def test_p16_a_cascade_of_10_000_dependents_goes_in_slices(shard: Shard, kind: str, size: int) -> None:
    shard.add("root")
    for at in range(0, 10_000, 250):
        shard.add(*[f"n{n}" for n in range(at, at + 250)], after=["root"])
    shard.taken(1)
    shard.redis.delete(shard.keys("wake", "default"))
    shard.settle("root", kind=kind, value="{}")
    waiting = shard.keys("waiting")
    assert shard.redis.zcard(waiting) == 10_000 - size
    assert shard.redis.llen(shard.keys("wake", "default")) == 1, "somebody must go on"
    for n in range(2, 10_000 // size + 1):
        assert shard.redis.zcard(waiting) > 0
        answer = shard.take(0)
        assert answer.values[2], "there is more to do"
        assert shard.redis.zcard(waiting) == 10_000 - n * size
    shard.take(0)
    assert not {"fan", "d:root"} & set(shard.dump())
    assert shard.queue("F" if kind == "F" else "bytes") > 10_000


def test_p16_many_short_cascades_share_one_slice(shard: Shard) -> None:
    names = [f"n{n}" for n in range(500)]
    shard.add(*names)
    for some in names[:250], names[250:]:
        shard.admit(*[shard.record(f"d{i}", after=[i]) for i in some])
    shard.taken(500)
    shard.ok(Script.SETTLE, "w", [[i, 1, "S", "3", "{}", 0] for i in names])
    assert shard.redis.llen(shard.keys("fan")) == 300
    assert shard.take(0).values[2]
    assert shard.redis.llen(shard.keys("fan")) == 100


def test_p16_who_ended_while_waiting_stays_ended(shard: Shard) -> None:
    shard.add("first")
    shard.add("a", "b", "c", after=["first"])
    assert shard.ok(Script.CANCEL, ["a"]) == ["C"]
    shard.taken(1)
    shard.settle("first")
    assert [shard.state(i) for i in "abc"] == ["C", "q", "q"]


def test_waiters_are_told_once_of_an_end(shard: Shard) -> None:
    shard.add("a", "b", "c")
    told = shard.redis.pubsub()
    told.subscribe(shard.keys("notices", "me"))
    until(lambda: told.get_message(timeout=0.1))
    assert shard.ok(Script.WATCH, "me", ["a", "b", "c", "nobody"]) == ["", "", "", False]
    shard.taken()
    long = json.dumps("x" * 70)
    shard.ok(Script.SETTLE, "w", [["a", 1, "S", '{"ü":1}', "{}", 0], ["b", 1, "S", long, "{}", 0], ["c", 1, "F", "{}", "{}", 0]])
    message = until(lambda: told.get_message(timeout=0.1))
    assert msgspec.msgpack.decode(message["data"]) == ["a", 'S{"ü":1}', "b", "S", "c", "F"]
    assert shard.ok(Script.WATCH, "me", ["a", "b", "c"]) == ['S{"ü":1}', "S", "F"], "with results that are short"
    assert "wc:a" not in shard.dump()
    told.close()


# --- D3: a full server -----------------------------------------------------------------------------


def test_d3_a_full_server_refuses_admission_and_drains_by_itself(own: ValkeyServer) -> None:
    shard = Shard(own.url)
    shard.add("a", "b", "c", "d", "e", "f")
    assert [i for i, _ in shard.taken(4)] == ["a", "b", "c", "d"]
    before = shard.dump()
    shard.redis.config_set("maxmemory", 1)
    record = shard.record("x", sent=now_ms() + DAY)
    with pytest.raises(StoreError, match="full"):
        shard.admit(record)
    assert shard.dump() == before, "a refused script did nothing at all"
    assert [i for i, _ in shard.taken(1)] == ["e"]
    assert shard.settle("a") == 1
    assert shard.settle("b", kind="F", value="{}") == 1
    assert shard.logged("a") == ["default:0:0"]
    assert shard.ok(Script.RELEASE, "w", [["c", 1]]) == 1
    assert shard.ok(Script.BEAT, ["w"])[0] == []
    assert shard.ok(Script.CANCEL, ["f"]) == ["C"]
    assert sorted(shard.ok(Script.SYNC, "w", True)[1]) == [["d", 1], ["e", 1]]
    assert shard.mark(caught_up=True) == [6, 1]
    shard.register("v")
    assert shard.recover().values == [0, 2]
    assert shard.ok(Script.EXPIRE, -DAY) == 1
    assert shard.ok(Script.PURGE, "default", False)[0] == 3
    shard.redis.config_set("maxmemory", 0)
    shard.admit(record)
    assert shard.taken(inc="v") == [("x", 1)]


def test_d3_raw_out_of_memory_is_what_redis_says(own: ValkeyServer) -> None:
    """Every script has a shebang: one without would begin, pop tasks, and break off."""
    shard = Shard(own.url)
    shard.redis.config_set("maxmemory", 1)
    with pytest.raises((OutOfMemoryError, ResponseError), match="maxmemory"):
        shard.redis.eval("#!lua\nreturn redis.call('GET', KEYS[1])", 1, shard.keys.epoch)


# --- D8, P1, P2: lives of the server ------------------------------------------------------------------


def hold(shard: Shard, i: str, attempt: int = 1) -> list[object]:
    record = shard.record(i, offset=0)
    return [i, attempt, "add", "default", record[5], record[6], record[12]]


def assertion(shard: Shard, *tasks: list[object], inc: str = "w") -> list[str]:
    dropped: list[str] = shard.ok(Script.ASSERT, inc, ["worker", inc], ["*"], list(tasks))
    return dropped


def test_d8_p1_another_life_of_the_server_answers_restarted_until_it_is_opened(own: ValkeyServer) -> None:
    shard = Shard(own.url)
    shard.add("a", "b", "c")
    shard.taken(2)
    own.stop()
    own.start()
    for script, args in ((Script.SETTLE, ["w", []]), (Script.BEAT, [["w"]]), (Script.OPEN, [0]), (Script.ASSERT, ["w", [], [], []])):
        assert shard.run(script, *args).status == "RESTARTED"
    before = shard.store.epoch
    epoch = shard.store.renew("second")
    assert (epoch.open, epoch.reason) == (False, "restarted")
    assert epoch.number > before.number
    assert shard.run(Script.SETTLE, "w", []).status == "CLOSED"
    assert shard.ok(Script.BEAT, ["w"])[0] == []
    assert shard.ok(Script.OPEN, 60_000)[0] is False, "w has not asserted, and the lease is not over"
    assert assertion(shard, hold(shard, "a")) == assertion(shard, hold(shard, "a")) == []
    assert shard.ok(Script.OPEN, 60_000)[0] is True
    assert shard.settle("a") == 1
    assert [i for i, _ in shard.taken()] == ["b", "c"]


def test_d8_p2_open_waits_for_the_lease_where_somebody_is_silent(shard: Shard) -> None:
    shard.register("silent")
    shard.redis.hset(shard.keys.epoch, "run", "0" * 40)
    shard.store.renew("second")
    assertion(shard)
    told, number, left = shard.ok(Script.OPEN, 60_000)
    assert (told, number) == (False, shard.store.epoch.number) and 0 < left <= 60_000
    assert until(lambda: shard.ok(Script.OPEN, 50)[0])
    assert shard.ok(Script.OPEN, 60_000)[0] is True


def test_d8_p2_an_old_epoch_is_refused_everywhere(shard: Shard) -> None:
    old = shard.store.epoch
    shard.redis.hset(shard.keys.epoch, "run", "0" * 40)
    shard.store.renew("second")
    shard.store.epoch = old
    for script in (Script.SETTLE, Script.BEAT, Script.OPEN, Script.ASSERT, Script.TAKE, Script.LOGGED, Script.MARK):
        assert shard.run(script, "w", 1, [], []).status == "EPOCH"


def test_d8_close_may_be_repeated_and_closes_only_what_its_caller_saw(shard: Shard) -> None:
    seen, number = shard.store.epoch.id, shard.store.epoch.number
    assert shard.ok(Script.CLOSE, "x", number, seen, False)[0] == seen, "nothing is wrong with it"
    shard.redis.hset(shard.keys.epoch, "run", "0" * 40)
    first = shard.ok(Script.CLOSE, "x", number, seen, False)
    assert first[0] == "x" and first[2] is False and first[1] > number
    assert shard.ok(Script.CLOSE, "x", number, seen, False) == first
    assert shard.ok(Script.CLOSE, "y", number, seen, True) == first, "another saw the same, later"
    shard.store.epoch = shard.store.epoch._replace(id="x")
    shard.ok(Script.OPEN, 0)
    assert shard.ok(Script.CLOSE, "y", number, seen, True)[0:3] == ["x", first[1], True]


def test_d8_p1_an_emptied_server_answers_empty_and_waits_for_a_lease(own: ValkeyServer) -> None:
    shard = Shard(own.url)
    shard.add("a")
    shard.taken()
    shard.redis.flushall()
    assert shard.run(Script.SETTLE, "w", []).status == "EMPTY"
    epoch = shard.store.renew("second")
    assert (epoch.open, epoch.reason) == (False, "emptied")
    assert assertion(shard, hold(shard, "a")) == []
    assert shard.ok(Script.OPEN, 60_000)[0] is False, "nobody knows who else lives"
    assert until(lambda: shard.ok(Script.OPEN, 20)[0])
    shard.mark(start=0)
    assert shard.admit(shard.record("a", offset=0)).values == [False, [], []]
    assert (shard.state("a"), shard.mark()) == ("p", [1, 0])
    assert shard.settle("a") == 1
    assert shard.logged("a") == ["default:0:0"]


def test_after_a_loss_nobody_is_unknown_until_the_log_has_been_read_again(own: ValkeyServer) -> None:
    shard = Shard(own.url)
    assert shard.ok(Script.WATCH, "me", ["a"]) == [False]
    shard.redis.flushall()
    shard.store.renew("second")
    until(lambda: shard.ok(Script.OPEN, 20)[0])
    opened = int(shard.redis.hget(shard.keys.epoch, "opened_at"))
    for ago, read, answer in (0, [], ""), (20_000, [opened, opened - 10_001], ""), (20_000, [opened, opened - 9_999], False):
        shard.redis.hset(shard.keys.epoch, "opened_at", opened - ago)
        for number, time in enumerate(read):
            shard.redis.hset(shard.keys("intake"), f"default:{number}", time)
        assert shard.ok(Script.WATCH, "me", ["a", "b"]) == [answer, answer]


def test_d8_p1_an_epoch_of_somebody_who_knew_nothing_is_closed_by_one_who_knew(own: ValkeyServer) -> None:
    worker = Shard(own.url)
    worker.redis.flushall()
    client = Shard(own.url, worker.store.config.namespace, worker=False)
    assert (client.store.epoch.open, client.store.epoch.reason) == (True, "fresh")
    epoch = worker.store.renew("suspicious")
    assert (epoch.id, epoch.open, epoch.reason) == ("suspicious", False, "emptied")
    assert epoch.number > client.store.epoch.number
    with pytest.raises(NamespaceClosed):
        client.store.call(Script.CANCEL, ["a"])
    another = Shard(own.url, worker.store.config.namespace, worker=False)
    assert another.store.epoch.id == "suspicious"


def test_p2_what_is_asserted_stays_with_its_holder_unless_it_is_outranked(shard: Shard) -> None:
    shard.add("same", "final", "newer", "given_back", "rolled_back", "retried")
    shard.taken()
    shard.settle("final")
    shard.settle("retried", kind="R", delay=1000)
    shard.ok(Script.RELEASE, "w", [["newer", 1], ["given_back", 1], ["rolled_back", 1]])
    shard.redis.hset(shard.keys("task", "newer"), "a", 5)
    shard.redis.hdel(shard.keys("task", "rolled_back"), "a")
    shard.redis.hset(shard.keys.epoch, "run", "0" * 40)
    shard.store.renew("second")
    names = ["same", "final", "newer", "given_back", "rolled_back", "retried", "wiped"]
    assert assertion(shard, *[hold(shard, i) for i in names]) == ["final", "newer", "given_back", "retried"]
    assert {i for i in names if shard.state(i) == "p"} == {"same", "rolled_back", "wiped"}
    shard.ok(Script.OPEN, 0)
    assert [shard.settle(i) for i in names if shard.state(i) == "p"] == [1, 1, 1]
    assert shard.settle("retried", kind="R") == 2


def test_p13_a_late_copy_of_an_assertion_takes_nothing_away(shard: Shard) -> None:
    shard.redis.hset(shard.keys.epoch, "run", "0" * 40)
    shard.store.renew("second")
    assertion(shard)
    shard.ok(Script.OPEN, 0)
    shard.add("a")
    shard.taken()
    assert assertion(shard) == []
    assert (shard.state("a"), shard.settle("a")) == ("p", 1)


def test_p2_a_retry_of_a_task_asserted_after_a_wipe_has_its_inputs(shard: Shard) -> None:
    """Its worker knows its message only; the rest comes with its record."""
    shard.add("first")
    shard.finish("first")
    assertion(shard, hold(shard, "second"))
    shard.admit(shard.record("second", after=["first"], inputs="list", priority=3))
    assert shard.ok(Script.EXPIRE, -DAY) == 0, "it is depended on"
    shard.settle("second", kind="R")
    task = until(lambda: shard.take().values[0])[0]
    assert task[7] == ["list", ["3"]]
    assert shard.settle("second", 2) == 1
    shard.logged("second", 2)
    assert shard.ok(Script.EXPIRE, -DAY) == 2


# --- P18: inboxes ------------------------------------------------------------------------------------


def test_p18_a_message_for_one_worker_waits_in_its_inbox_and_ends_when_the_worker_is_gone(shard: Shard) -> None:
    fields = ["worker", "w", "inbox", "inbox.w"]
    shard.ok(Script.REGISTER, "w", fields, ["*"], ["default", "inbox.w"])
    shard.add("mine", inbox="inbox.w", expires=now_ms() + 200)
    shard.add("later", inbox="inbox.w", expires=now_ms() + DAY)
    assert shard.taken() == [], "nobody takes it from the shared queue"
    assert shard.mark() == [2, 0], "its position is that of the topic it stands in"
    shard.recover()
    until(lambda: shard.ok(Script.EXPIRE, DAY) == 0 and shard.state("mine") == "F")
    assert shard.state("later") == "q"
    assert shard.redis.smembers(shard.keys("gone")) == {b"inbox.w"}
    shard.ok(Script.REGISTER, "v", fields, ["*"], ["default", "inbox.w"])
    assert not shard.redis.exists(shard.keys("gone"))
    answer = shard.run(Script.TAKE, "v", 1, 10, ["inbox.w"], 0)
    assert [task[0] for task in answer.values[0]] == ["later"]
