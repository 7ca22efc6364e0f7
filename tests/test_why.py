"""`krq why`: the story of one task, in each state that people ask about; by hand, and with real workers on both brokers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import Servers, running, until
from shard import Shard, now_ms

import krq
from krq import TaskStatus, brokers, events
from krq.brokers.base import Outgoing
from krq.dev.valkey import ValkeyServer
from krq.errors import TaskNotFound
from krq.info import Story
from krq.store.scripts import Script

#: an attempt's end, as its history has it
FAILED = {"attempt": 1, "outcome": "retry", "worker": "w", "error": {"type": "OSError", "message": "away"}}


@pytest.fixture
def shard(valkey: ValkeyServer, namespace: str) -> Iterator[Shard]:
    """One shard by hand, with a live worker ``w`` that knows all; one server is enough, as nothing here is a script's."""
    made = Shard(valkey.url, namespace, worker=False)
    made.mark(start=0)
    serve(made)
    yield made
    made.store.close()


@pytest.fixture
def app(valkey: ValkeyServer, shard: Shard, namespace: str) -> Iterator[krq.KRQ]:
    with krq.KRQ(valkey.url, valkey.url, namespace, window=2) as app:
        yield app


def serve(shard: Shard, inc: str = "w", names: Sequence[str] = ("*",), limits: Sequence[tuple[str, str]] = ()) -> None:
    """A worker of the queue ``default``."""
    fields = ["worker", inc, "queues", "default", "slots", 1, "host", "here", "pid", 1]
    shard.ok(Script.REGISTER, inc, fields, list(names), ["default"], limits)


def codes(story: Story) -> list[str]:
    return [reason.code for reason in story.reasons]


def told(story: Story) -> str:
    return "\n".join(moment.text for moment in story.past)


def settle_retry(shard: Shard, i: str, delay: int, at: int) -> None:
    entry = {**FAILED, "started": at - 10, "finished": at}
    assert shard.ok(Script.SETTLE, "w", [[i, 1, "R", '{"type":"OSError"}', "{}", delay, json.dumps(entry)]]) == [1]


# --- each state, by hand -------------------------------------------------------------------------


def test_finished(app: krq.KRQ, shard: Shard) -> None:
    shard.add("a")
    shard.add("b", after=["a"])
    shard.finish("a", "b")
    story = app.why("b")
    assert [moment.kind for moment in story.past] == ["sent", "released", "started", "success"]
    assert "It waited for a (add), which ended: success" in told(story) and "Attempt 1 began on w" in told(story)
    assert story.past[-1].text.endswith(": 3") and story.reasons == [] and "it has ended" in story.next


def test_failed_after_a_retry(app: krq.KRQ, shard: Shard) -> None:
    shard.add("a")
    assert shard.taken() == [("a", 1)]
    settle_retry(shard, "a", 0, now_ms())
    assert shard.taken() == [("a", 2)]
    entry = {**FAILED, "attempt": 2, "outcome": "failed", "started": now_ms(), "finished": now_ms()}
    shard.ok(Script.SETTLE, "w", [["a", 2, "F", '{"type":"OSError","message":"away"}', "{}", 0, json.dumps(entry)]])
    story = app.why("a")
    assert [moment.kind for moment in story.past] == ["sent", "started", "retry", "started", "failed", "failed"]
    assert "Attempt 1 failed (OSError: away), to be tried again" in told(story)
    assert story.past[-1].text == "Ended as failed: OSError: away" and "`krq retry a`" in story.next


def test_waiting_for_a_dependency(app: krq.KRQ, shard: Shard) -> None:
    shard.add("a", name="first")
    shard.taken()
    settle_retry(shard, "a", 60_000, now_ms())
    shard.add("b", after=["a", "nobody"])
    story = app.why("b")
    assert [(reason.code, reason.id) for reason in story.reasons] == [("dependency", "a"), ("dependency", "nobody")]
    assert story.reasons[0].text == "It waits for a (first), which is scheduled after a failure"
    assert "nobody has published" in story.reasons[1].text and "if one does not succeed, it fails" in story.next
    assert app.why("nobody").reasons[0].code == "unpublished"


def test_waiting_for_many(app: krq.KRQ, shard: Shard) -> None:
    shard.add("b", after=[["g:", 700]])
    story = app.why("b")
    assert len(story.reasons) == 11 and story.reasons[9].id == "g:9"
    assert story.reasons[10].text.startswith("251 of 700 tasks have not ended")  # edges come slice by slice


def test_ends_with_what_it_made(app: krq.KRQ, shard: Shard) -> None:
    shard.add("a")
    shard.taken()
    assert shard.ok(Script.SETTLE, "w", [["a", 1, "W", "3", "{}", 0, False, [["c"], "own", ["c"], ""]]]) == [1]
    story = app.why("a")
    assert [moment.kind for moment in story.past] == ["sent", "started", "spawned"] and codes(story) == ["children"]
    assert story.reasons[0].id == "c" and story.next.startswith("It ends when")


def test_in_back_off(app: krq.KRQ, shard: Shard) -> None:
    shard.add("a")
    shard.taken()
    settle_retry(shard, "a", 60_000, at := now_ms())
    (reason,) = app.why("a").reasons
    assert (reason.code, reason.since) == ("backoff", at / 1000)
    assert "Attempt 1 failed (OSError: away)" in reason.text and "attempt 2" in reason.text
    assert reason.until is not None and 55 < reason.until - time.time() < 65


def test_delayed(app: krq.KRQ, shard: Shard) -> None:
    shard.add("a", due=now_ms() + 60_000)
    (reason,) = app.why("a").reasons
    assert reason.code == "delay" and reason.until is not None and 55 < reason.until - time.time() < 65


def test_paused(app: krq.KRQ, shard: Shard) -> None:
    shard.add("a", "b")
    app.pause("default")
    story = app.why("b")
    assert codes(story) == ["paused", "position"]
    assert "`krq resume default`" in story.reasons[0].text and "number 2 of 2" in story.reasons[1].text
    app.resume("default")
    assert codes(app.why("b")) == ["position"]


def test_its_place_in_the_queue(app: krq.KRQ, shard: Shard) -> None:
    shard.add("a", "b", "c")
    text = app.why("c").reasons[0].text
    assert text == "It is number 3 of 3 ready tasks of the queue default; a worker with a free slot is about to take it"


def test_kept_back_by_a_limit(app: krq.KRQ, shard: Shard) -> None:
    serve(shard, limits=[("add", '{"c":1}'), ("mail", '{"o":true}'), ("slow", '{"r":"1/h","t":3600000}')])
    shard.add("a", "b")
    shard.add("c", "d", name="mail", key="k1")
    shard.add("e", "f", "g", name="slow")
    assert shard.taken() == [("a", 1), ("c", 1), ("e", 1), ("f", 1)]  # a rate may make up for one
    found = {i: app.why(i).reasons[0] for i in "bdg"}
    assert {reason.code for reason in found.values()} == {"limit"}
    assert found["b"].text == "max_concurrency: 1 of 1 run; it is number 1 of those that wait for that"
    assert found["d"].id == "c" and "c of the key k1 is before it" in found["d"].text
    assert "rate_limit: 1/h is used up" in found["g"].text
    assert found["g"].until is not None and 3000 < found["g"].until - time.time() < 3700


def test_its_worker_died(app: krq.KRQ, shard: Shard) -> None:
    shard.add("a")
    shard.taken()
    shard.ok(Script.BEAT, ["w"])
    shard.recover(started=["a"])
    story = app.why("a")
    assert story.past[-1].kind == "interrupted"
    assert [moment.kind for moment in story.past] == ["sent", "started", "interrupted"] and "Attempt 1 began on w" in told(story)
    assert "Attempt 1 was interrupted: the worker died (killed); its last heartbeat was" in story.past[-1].text
    assert "it held this task alone" in story.past[-1].text and codes(story) == ["no_worker", "position"]
    assert story.next.startswith("A worker of the queue must come")


def test_its_worker_is_silent_or_dead(app: krq.KRQ, shard: Shard) -> None:
    shard.add("a")
    shard.taken()
    shard.ok(Script.BEAT, ["w"])
    assert codes(app.why("a")) == ["running"]
    shard.redis.hset(shard.keys("worker", "w"), "beat", now_ms() - 6_000)
    story = app.why("a")
    assert codes(story) == ["worker_dead", "running"] and "was not heard of for 6." in story.reasons[0].text
    assert app.cancel("a") and codes(app.why("a")) == ["worker_dead", "cancel", "running"]
    shard.redis.hdel(shard.keys("beats"), "w")
    assert "is dead" in app.why("a").reasons[0].text


def test_no_live_worker_knows_it(app: krq.KRQ, shard: Shard) -> None:
    shard.ok(Script.RECOVER, "w", False, [], "", 3, [], [])
    serve(shard, "v", names=["other"])
    shard.add("a")
    assert codes(app.why("a")) == ["unknown_task", "position"]
    assert shard.taken(inc="v", grace=600_000) == []
    (reason,) = app.why("a").reasons
    assert reason.code == "unknown_task" and "No live worker of the queue default knows a task named add" in reason.text
    assert reason.since is not None and reason.until == pytest.approx(reason.since + 600)
    serve(shard, "u")
    assert "one does now" in app.why("a").reasons[0].text


def test_in_the_backlog(app: krq.KRQ, shard: Shard) -> None:
    for name in "abc":
        app.send_task("add", task_id=name)
    story = app.why("c")
    assert story.task is not None and story.task.status is TaskStatus.QUEUED and codes(story) == ["backlog"]
    assert "3 records of the queue default have not been read, its own among them" in story.reasons[0].text
    assert "its 2 ready tasks already" in story.reasons[0].text and "when there is room" in story.next


def test_it_expires(app: krq.KRQ, shard: Shard) -> None:
    shard.add("a", expires=now_ms() + 60_000)
    assert codes(app.why("a")) == ["position", "expires"]


def test_closed(app: krq.KRQ, shard: Shard) -> None:
    shard.add("a")
    shard.redis.hset(shard.keys.epoch, "open", 0)
    assert codes(app.why("a"))[0] == "closed"


def test_nobody_knows_it(app: krq.KRQ) -> None:
    with pytest.raises(TaskNotFound, match="the log has nothing"):
        app.why("nope")


def test_forgotten_by_redis(app: krq.KRQ, shard: Shard) -> None:
    app.send_task("add", task_id="a")
    entry = events.Entry(id="a", outcome="success", name="add", attempt=2, worker="w", result=3, finished=5_000)
    broker = brokers.make(app.config)
    broker.publish([Outgoing(app.config.events_topic, events.encode_page([events.encode_entry(entry)]))], 5)
    broker.close()
    shard.redis.delete(shard.keys("task", "a"))
    story = app.why("a")
    assert story.task is None and [moment.kind for moment in story.past] == ["sent", "success"] and codes(story) == ["not_known"]
    assert story.past[1].text == "Attempt 2 on w succeeded: 3"


# --- with real workers, through the command ------------------------------------------------------


def why(servers: Servers, task_id: str) -> dict[str, Any]:
    """What the command prints; the text must say the same."""
    command = [sys.executable, "-P", "-m", "krq", "why", task_id, "--json"]
    done = subprocess.run(command, env=servers.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_day_in_a_queue(servers: Servers, tmp_path: Path) -> None:
    with servers.app(window=1) as app:
        broker = brokers.make(app.config)
        foreign = {"task": "add", "task-id": "foreign", "args": [1, 2]}
        broker.publish([Outgoing(app.config.topic("default"), json.dumps(foreign).encode())], 10)
        broker.close()
        story = app.why("foreign")
        assert story.task is None and codes(story) == ["backlog"] and "1 record of the queue default" in story.reasons[0].text
        for name in ("away1", "away2"):
            app.send_task("add", [1, 2], task_id=name, queue="away")
        story = app.why("away2")
        assert codes(story) == ["backlog", "no_worker"] and "2 records of the queue away" in story.reasons[0].text
        if app.config.broker.startswith("redis"):
            assert codes(app.why("away1")) == ["no_worker", "position"]
        with running(servers, tmp_path) as (worker,):
            until(lambda: any(one and one.status.final for one in app.infos(["foreign"])), "the foreign one ran")
            found = why(servers, "foreign")
            assert [one["kind"] for one in found["past"]] == ["sent", "started", "success"] and found["reasons"] == []
            failing = app.send_task("fails", [], task_id="failing", backoff=krq.Backoff(300))
            app.send_task("add", [1, 2], task_id="behind", after=[failing])
            app.send_task("nowhere", [], task_id="unknown")
            until(lambda: codes(app.why("failing")) == ["backoff"], "it is in back-off")
            assert [one.id for one in app.why("behind").reasons] == ["failing"]
            until(lambda: codes(app.why("unknown")) == ["unknown_task"] and app.why("unknown").reasons[0].since, "nobody knows it")
            app.send_task("work", [str(tmp_path / "ledger"), "k", 60], task_id="long")
            until(lambda: (tmp_path / "ledger").exists(), "it runs")
            assert codes(app.why("long")) == ["running"]
            os.kill(worker.children[0], signal.SIGKILL)
            until(lambda: app.status("long").attempt == 2, "it runs again")
            story = app.why("long")
            death = next(one for one in story.past if one.kind == "interrupted")
            assert "the worker died (" in death.text and "SIGKILL" in death.text and "last heartbeat" in death.text
            assert story.past[-1].text.startswith("Attempt 2 began on w")
            app.pause("default")
            app.send_task("add", [1, 2], task_id="paused")
            until(lambda: "position" in codes(app.why("paused")), "intake has it")
            assert codes(app.why("paused")) == ["paused", "position"]


def test_the_text(app: krq.KRQ, shard: Shard, valkey: ValkeyServer, namespace: str) -> None:
    shard.add("a", name="x\x1b[31m")
    app.pause("default")
    servers = Servers(valkey.url, valkey.url, namespace)
    command = [sys.executable, "-P", "-m", "krq", "why", "a"]
    out = subprocess.run(command, env=servers.environ, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[0].endswith("a  queued") and "\x1b" not in out
    assert "What happened\n  2" in out and "What it waits for\n  The queue default is paused" in out and "What comes next\n  " in out
