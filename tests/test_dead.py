"""Dead letters: what becomes one, what they keep, and what may be done with them: by the app, and by the command line."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_shell import Shell
from harness import Servers, Worker, running, until
from shard import Shard, now_ms

import krq
from krq import TaskStatus, errors, events
from krq.brokers.base import Outgoing
from krq.dev.kafka import KafkaServer
from krq.dev.valkey import ValkeyServer
from krq.events import DeadLetter
from krq.store.records import AT_HAND, cut, letters
from krq.store.scripts import Script

INVALID = b'{"task": '
BINARY = b"\xff\xfe\x00\x01 bytes"


def dead(app: krq.KRQ, number: int, **wanted: Any) -> list[DeadLetter]:
    """The dead letters, once there are so many."""
    return until(lambda: (found := app.dead_letters(**wanted)) and len(found) == number and found, f"{number} dead letters")


def in_topic(app: krq.KRQ) -> list[DeadLetter]:
    return [events.decode_letter(record.value) for _, record in app._clients.broker.read(app.config.dead_topic, 1000)]


@pytest.fixture
def worker(servers: Servers, tmp_path: Path) -> Iterator[Worker]:
    with running(servers, tmp_path) as workers:
        yield workers[0]


# --- what becomes one ----------------------------------------------------------------------------


def test_what_fails_by_its_own_doing_becomes_a_dead_letter_and_nothing_else(servers: Servers, tmp_path: Path) -> None:
    patient = Servers(servers.broker, servers.backend, servers.namespace, **{**servers.settings, "unknown_task_grace": 0.5})
    with patient.app() as app, running(patient, tmp_path):
        failed, rejected = app.submit("fails"), app.submit("rejects")
        dependent = app.handle(app.send_task("add", [1, 2], after=[failed]))
        unknown = app.submit("nobody_knows", 1)
        late = app.handle(app.send_task("add", [1, 2], delay=0.5, expires=time.time() + 0.1))
        cancelled = app.handle(app.send_task("add", [1, 2], delay=100))
        cancelled.cancel()
        app._clients.broker.publish([Outgoing(app.config.topic("default"), INVALID)], 10)
        ended = [task.wait(timeout=20).status for task in (failed, rejected, dependent, unknown, late, cancelled)]
        assert ended == [TaskStatus.FAILED] * 5 + [TaskStatus.CANCELLED]
        until(lambda: app.stats().outbox == 0, "all ends are logged")
        told = {letter.code: letter for letter in dead(app, 4)}
        assert {code: letter.id for code, letter in told.items()} == {
            "ValueError": failed.id, "Reject": rejected.id, "TASK_UNKNOWN": unknown.id, "MESSAGE_INVALID": "",
        }  # fmt: skip
        assert told["ValueError"].reason.endswith("(all of its 2 retries are used up)")
        assert told["Reject"].reason == "not today (the task rejected it)"
        assert told["ValueError"].error is not None
        assert "in fails" in told["ValueError"].error.traceback
        assert json.loads(told["ValueError"].original)["task"] == "fails"
        assert told["ValueError"].attempt == 3
        assert told["MESSAGE_INVALID"].original == INVALID
        assert {letter.ref for letter in in_topic(app)} == {letter.ref for letter in told.values()}


def test_letters_are_found_paged_and_filtered(app: krq.KRQ, worker: Worker) -> None:
    tasks = [app.submit("rejects") for _ in range(5)] + [app.submit("add", "x", 1)]
    for task in tasks:
        task.wait(timeout=15)
    found = dead(app, 6)
    assert [letter.at for letter in found] == sorted((letter.at for letter in found), reverse=True)
    page, rest = app.dead_letters(3), app.dead_letters(before=found[2].at / 1000)
    assert page == found[:3]
    assert rest == [letter for letter in found if letter.at < found[2].at]
    assert [letter.name for letter in app.dead_letters(code="TypeError")] == ["add"]
    assert [len(app.dead_letters(name=name, queue=queue)) for name, queue in (("rejects", "default"), ("add", "other"))] == [5, 0]
    assert app.dead_letter(tasks[0]).id == app.dead_letter(tasks[0].id).ref == tasks[0].id
    assert app.stats().dead == 6
    for act in (app.dead_letter, app.retry_dead):
        with pytest.raises(errors.TaskNotFound, match="nobody"):
            act("nobody")
    assert app.purge_dead("nobody") == 0
    with pytest.raises(errors.OptionError, match="not by both"):
        app.purge_dead(tasks, name="rejects")


def test_letters_are_retried_by_id_by_filter_and_all(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    tasks = [app.submit("fails", str(ledger), 3) for _ in range(4)]
    other = app.submit("rejects")
    for task in [*tasks, other]:
        assert task.wait(timeout=20).status is TaskStatus.FAILED
    dead(app, 5)
    assert app.retry_dead(tasks[0]) == 1
    assert app.retry_dead([tasks[1].id]) == 1
    assert tasks[0].result(timeout=15) == tasks[1].result(timeout=15) == "at last"
    assert {letter.id for letter in dead(app, 3)} == {tasks[2].id, tasks[3].id, other.id}
    assert app.retry_dead(name="fails", code="KeyError") == 0
    assert app.retry_dead([]) == 0
    assert app.retry_dead(name="fails") == 2
    assert [task.result(timeout=15) for task in tasks] == ["at last"] * 4
    assert app.retry_dead() == 1
    again = until(lambda: (seen := app.dead_letters()) and seen[0].attempt == 2 and seen, "it is rejected again")
    assert [letter.id for letter in again] == [other.id]
    app.retry(other)
    until(lambda: [letter.attempt for letter in app.dead_letters()] == [3], "a plain retry lets go of the letter, too")


def test_what_waited_for_a_letter_follows_its_retry(app: krq.KRQ, worker: Worker) -> None:
    handle = (app.signature("fails", "", 3) | app.signature("count")).send()
    assert handle.children[-1].wait(timeout=20).error.type == "DEPENDENCY_FAILED"
    until(lambda: app.dead_letters(), "it is buried")
    assert app.retry_dead() == 1
    assert handle.result(timeout=20) == len("at last")
    until(lambda: app.dead_letters() == [], "and dug out")


def test_a_record_that_is_no_task_is_kept_whole_and_not_retried(app: krq.KRQ, worker: Worker) -> None:
    app._clients.broker.publish([Outgoing(app.config.topic("default"), raw) for raw in (INVALID, BINARY)], 10)
    task = app.submit("rejects")
    found = dead(app, 3)
    assert {letter.original for letter in found if letter.partition >= 0} == {INVALID, BINARY}
    ref = next(letter.ref for letter in found if letter.partition >= 0)
    assert ref.startswith("default:")
    assert app.dead_letter(ref).ref == ref
    with pytest.raises(errors.OptionError, match="krq dead show --raw"):
        app.retry_dead([task.id, ref])
    assert len(app.dead_letters()) == 3, "all or none"
    assert app.retry_dead() == 1, "of all, those that can be"
    dead(app, 3)
    assert app.purge_dead(code="MESSAGE_INVALID") == 2
    assert app.purge_dead() == 1
    assert app.dead_letters() == []
    assert app.stats().dead == 0
    assert task.status().status is TaskStatus.FAILED


def test_a_letter_outlives_its_task(valkey: ValkeyServer, namespace: str, tmp_path: Path) -> None:
    servers = Servers(valkey.url, valkey.url, namespace, heartbeat=0.3, lease=3)
    with servers.app() as app, running(servers, tmp_path):
        large = app.handle(app.send_task("rejects", [], headers={"pad": "x" * 100_000}))
        task = app.submit("rejects")
        large.wait(timeout=15)
        task.wait(timeout=15)
        dead(app, 2)
        redis, keys = app._clients.store.redis, app._clients.store.keys
        for one in (task, large):
            redis.delete(*(keys(name, one.id) for name in ("task", "message", "result", "history")))
            redis.lrem(keys("done"), 0, one.id)
        assert app.retry_dead(task) == 1
        assert task.wait(timeout=15).status is TaskStatus.FAILED
        dead(app, 2)
        letter = app.dead_letter(large)
        assert letter.size > 100_000 > len(letter.value)
        with pytest.raises(errors.OptionError, match="is gone"):
            app.retry_dead(large)
        whole = next(one for one in in_topic(app) if one.id == large.id)
        assert len(whole.original) == letter.size


# --- nothing is lost -----------------------------------------------------------------------------


def test_the_letter_of_a_worker_that_dies_before_it_has_logged_is_published_by_another(servers: Servers, tmp_path: Path) -> None:
    with servers.app() as app:
        broken = Worker(servers, tmp_path / "a.log", "a")
        try:
            broken.ready()
            app.submit("add", 1, 1).result(timeout=15)
            redis, keys = app._clients.store.redis, app._clients.store.keys
            entry = events.Entry(id="gone", outcome="failed", name="add", queue="default", attempt=1, worker="a",
                                 error=krq.outcome.ErrorInfo("ValueError", "boom", "Traceback"), finished=now_ms(), reason="used up")
            redis.set(keys("message", "gone"), '{"task":"add","task-id":"gone"}')
            redis.hset(keys("outbox", "a~dead"), "gone:1", events.encode_entry(entry))
            redis.sadd(keys("orphans"), "a~dead")
            (letter,) = dead(app, 1)
            assert (letter.id, letter.code, letter.reason, letter.attempt) == ("gone", "ValueError", "boom (used up)", 1)
            assert letter.original == b'{"task":"add","task-id":"gone"}'
            assert [one.id for one in in_topic(app)] == ["gone"]
        finally:
            broken.close()


# --- the script ----------------------------------------------------------------------------------


def letter(ref: str, at: int = 1, **more: Any) -> list[Any]:
    return letters([DeadLetter(reason="r", code="C", at=at, id=ref, **more)])[0]


def test_the_newest_thousand_are_kept_and_set_and_hash_agree(shard: Shard) -> None:
    shard.ok(Script.DEAD, [letter(f"d{at}", at) for at in range(600)], [])
    shard.ok(Script.DEAD, [letter(f"d{at}", at) for at in range(500, 1100)], ["d700", "d700", "nobody"])
    assert shard.ok(Script.DEAD, [], ["d800"]) == 1
    kept = {i.decode() for i in shard.redis.zrange(shard.keys("dead"), 0, -1)}
    assert kept == {f"d{at}" for at in range(100, 1100)} - {"d700", "d800"} | {"d99"}
    assert {i.decode() for i in shard.redis.hkeys(shard.keys("letters"))} == kept


def test_a_letter_of_a_task_that_was_sent_again_is_not_kept(shard: Shard) -> None:
    shard.add("x")
    shard.take()
    shard.settle("x", kind="F", value='{"type":"E"}')
    late = letter("x", attempt=1)
    shard.ok(Script.DEAD, [late], [])
    assert shard.redis.zcard(shard.keys("dead")) == 1
    shard.logged("x")
    shard.admit(shard.record("x", generation=1))
    assert shard.redis.zcard(shard.keys("dead")) == shard.redis.hlen(shard.keys("letters")) == 0, "gone with the next generation"
    shard.ok(Script.DEAD, [late], [])
    assert shard.redis.zcard(shard.keys("dead")) == 0
    shard.take()
    shard.settle("x", attempt=2, kind="F", value='{"type":"E"}')
    shard.ok(Script.DEAD, [late, letter("x", attempt=2)], [])
    assert shard.redis.zcard(shard.keys("dead")) == 1


def test_the_history_goes_with_its_task(shard: Shard) -> None:
    shard.add("x")
    for attempt in range(1, 15):
        shard.taken()
        shard.ok(Script.SETTLE, "w", [["x", attempt, "F" if attempt == 14 else "R", "{}", "{}", 0, json.dumps({"attempt": attempt})]])
    told = [json.loads(raw)["attempt"] for raw in shard.redis.lrange(shard.keys("history", "x"), 0, -1)]
    assert told == list(range(5, 15))
    shard.logged("x", attempt=14)
    shard.mark(caught_up=True)
    time.sleep(0.002)
    assert shard.ok(Script.EXPIRE, 0) == 1
    assert not shard.redis.exists(shard.keys("history", "x"))


def test_a_letter_at_hand_is_bounded() -> None:
    for value in ("x" * 10**6, '"' * 10**6, "\x01" * 10**6, "é" * 10**6):
        short = cut(DeadLetter(reason="r", code="C", at=1, value=value), AT_HAND)
        assert len(events.encode_letter(short)) <= AT_HAND
        assert short.size == 10**6
        assert value.startswith(short.value)
    small = DeadLetter(reason="r", code="C", at=1, value="x" * 1000)
    assert cut(small, AT_HAND) is small
    binary = cut(DeadLetter(reason="r", code="C", at=1, **events.original(b"\xff" * 10**6)), AT_HAND)
    assert set(binary.original) == {255}


# --- by the command line -------------------------------------------------------------------------


@pytest.fixture
def shell(valkey: ValkeyServer, namespace: str, tmp_path: Path) -> Iterator[Shell]:
    """A namespace with three failed tasks and a record that is no text."""
    made = Shell(tmp_path, valkey.url, namespace)
    servers = Servers(valkey.url, valkey.url, namespace, heartbeat=0.3, lease=3)
    with running(servers, tmp_path), made.app() as app:
        for task_id in ("a", "b", "c"):
            app.handle(app.send_task("fails", [], task_id=task_id, retries=1)).wait(timeout=15)
        app._clients.broker.publish([Outgoing(app.config.topic("default"), BINARY)], 10)
        dead(app, 4)
        yield made


def test_the_list_and_one_letter(shell: Shell) -> None:
    listed = shell.json("dead")
    assert {one["ref"] for one in listed} >= {"a", "b", "c"}
    assert len(shell.ok("dead", "--code", "ValueError").splitlines()) == 4
    shown = shell.ok("dead", "show", "a")
    assert "ValueError" in shown
    assert "its one retry is used up" in shown
    assert '"task":"fails"' in shown
    assert "in fails" in shown
    rows = [line.split()[:3] for line in shown.splitlines()]
    assert ["1", "retry", "w"] in rows
    assert ["2", "failed", "w"] in rows
    one = shell.json("dead", "show", "a")
    assert [attempt["outcome"] for attempt in one["history"]] == ["retry", "failed"]
    assert json.loads(one["value"])["task-id"] == "a"
    assert [attempt["outcome"] for attempt in shell.json("task", "a")["history"]] == ["retry", "failed"]
    assert "ATTEMPT  OUTCOME" in shell.ok("task", "a")
    code, out, err = shell.run("dead", "show", "nobody")
    assert (code, out) == (1, "")
    assert err.startswith("Error: No dead letter 'nobody' is at hand")


def test_the_original_bytes(shell: Shell) -> None:
    ref = next(one["ref"] for one in shell.json("dead") if one["ref"].startswith("default:"))
    assert f"000000  {BINARY.hex(' '):<47}  .... bytes" in shell.ok("dead", "show", ref)
    words = [sys.executable, "-P", "-m", "krq", "dead", "show", ref, "--raw"]
    assert subprocess.run(words, env=shell.environment, capture_output=True, check=True).stdout == BINARY
    code, _, err = shell.run("dead", "retry", ref)
    assert code == 1
    assert "krq dead show --raw" in err


def test_retry_and_purge(shell: Shell) -> None:
    for words in (("dead", "retry"), ("dead", "purge", "--yes"), ("dead", "retry", "a", "--all"), ("dead", "purge", "--all")):
        assert shell.run(*words)[0] == 2, words
    assert shell.ok("dead", "retry", "a", "--namespace", shell.namespace) == "1 task sent again.\n"
    app = shell.app()
    until(lambda: app.status("a").attempt == 4 and app.dead_letters(name="fails") and len(app.dead_letters()) == 4, "it has failed again")
    code, out, err = shell.run("dead", "--namespace", shell.namespace, "retry", "--all", KRQ_NAMESPACE="other")
    assert (code, out) == (0, "3 tasks sent again.\n")
    assert err == "1 letter stayed: records that are no task, or tasks that are not failed.\n"
    until(lambda: len(app.dead_letters(name="fails")) == 3, "all have failed again")
    assert shell.ok("dead", "purge", "b", "--yes") == "1 dead letter dropped.\n"
    assert shell.ok("dead", "purge", "--code", "MESSAGE_INVALID", "-y") == "1 dead letter dropped.\n"
    assert {one["ref"] for one in shell.json("dead")} == {"a", "c"}
    assert _at_a_terminal(shell, b"n\n", "dead", "purge", "--all")[0] == 1
    code, out = _at_a_terminal(shell, b"y\n", "dead", "purge", "--all")
    assert code == 0
    assert "Drop 2 dead letters?" in out
    assert app.dead_letters() == []
    app.close()


def _at_a_terminal(shell: Shell, answer: bytes, *words: str) -> tuple[int, str]:
    """The exit code and what was said to somebody who types this."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-P", "-m", "krq", *words], env=shell.environment, stdin=theirs, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as process:
        os.write(ours, answer)
        out = process.communicate(timeout=30)[0]
    os.close(ours)
    os.close(theirs)
    return process.returncode, out


def test_a_conflict_is_buried_before_its_record_counts_as_read(shard: Shard) -> None:
    shard.add("x")
    batch = [shard.record("y"), shard.record("x", raw="{1}"), shard.record("z"), shard.record("x", raw="{2}")]

    def admit(*buried: int) -> Any:
        return shard.run(Script.ADMIT, ["default", 0, "tid", 1, 5, now_ms()], 10, 1 << 20, 60, batch, list(buried)).values

    for _ in range(2):
        assert admit() == [2, [2, 4], []], "nothing passes the first"
        assert (shard.mark(), shard.state("y"), shard.state("z")) == ([2, 0], "q", None)
    assert admit(2, 4) == [False, [2, 4], [2, 4]]
    assert (shard.mark(), shard.state("z")) == ([5, 0], "q")
    assert admit(2, 4) == [False, [], []]


def test_a_conflict_is_published_once(kafka: KafkaServer, valkey: ValkeyServer, namespace: str, tmp_path: Path) -> None:
    servers = Servers(kafka.url, valkey.url, namespace, heartbeat=0.3, lease=3, partitions=1)
    with servers.app() as app, running(servers, tmp_path):
        app.submit("add", 0, 0).result(timeout=15)
        topic = app.config.topic("default")
        records = [json.dumps({"task": "add", "task-id": f"i{n % 3}", "args": [n, 1]}).encode() for n in range(9)]
        app._clients.broker.publish([Outgoing(topic, raw) for raw in records], 10)
        found = dead(app, 6)
        assert {(one.id, one.code) for one in found} == {(f"i{n}", "ID_CONFLICT") for n in range(3)}
        assert sorted(app.result(f"i{n}", timeout=15) for n in range(3)) == [1, 2, 3]
        until(lambda: len(in_topic(app)) == 6, "all are published")
        with pytest.raises(errors.OptionError, match="ID_CONFLICT"):
            app.retry_dead(found[0].ref)
        until(lambda: app._clients.broker.lag([topic], app.config.group_id)[topic] == 0, "nothing is left incomplete")
