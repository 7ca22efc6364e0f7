"""Retries in a worker: nothing a task raises ends more than its attempt, and each attempt stands in the history."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import Servers, Worker, ledger, running, until

import krq
from krq import Backoff, TaskStatus, errors
from krq.dev.kafka import KafkaServer
from krq.dev.valkey import ValkeyServer


class World:
    """A worker of one slot for all the tests here."""

    def __init__(self, app: krq.KRQ, worker: Worker, folder: Path) -> None:
        self.app, self.worker, self.folder = app, worker, folder

    def ledger(self) -> Path:
        return self.folder / os.urandom(4).hex()

    def ends(self, name: str, *args: Any, **options: Any) -> krq.TaskInfo:
        return self.app.handle(self.app.send_task(name, list(args), **options)).wait(timeout=20)


@contextmanager
def world_on(servers: Servers, folder: Path) -> Iterator[World]:
    with running(servers, folder, script="tasks_failing.py") as (worker,), servers.app() as app:
        yield World(app, worker, folder)


@pytest.fixture(scope="module")
def world(valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    servers = Servers(valkey.url, valkey.url, f"t{os.urandom(5).hex()}", heartbeat=0.3, lease=3, concurrency=2, window=1000)
    with world_on(servers, tmp_path_factory.mktemp("retries")) as made:
        yield made
        assert made.app.failures() == [], "nothing here ends a worker"


@pytest.mark.parametrize(("task", "what", "kind"), [
    ("raises", "exit", "SystemExit"), ("raises", "interrupt", "KeyboardInterrupt"), ("raises", "generator", "GeneratorExit"),
    ("raises", "locked", "Locked"), ("raises", "huge", "ValueError"), ("raises", "surrogate", "ValueError"),
    ("raises", "group", "ExceptionGroup"), ("raises", "circle", "ValueError"), ("raises", "deep", "RecursionError"),
    ("araises", "exit", "SystemExit"), ("araises", "interrupt", "KeyboardInterrupt"), ("araises", "generator", "GeneratorExit"),
    ("children", "exit", "SystemExit"), ("children", "interrupt", "KeyboardInterrupt"),
])  # fmt: skip
def test_whatever_a_task_raises_ends_its_attempt_only(world: World, task: str, what: str, kind: str) -> None:
    info = world.ends(task, what)
    assert info.status is TaskStatus.FAILED
    assert info.error is not None
    assert info.error.type == kind
    assert len(info.error.message) <= 8_000
    assert world.ends("araises" if task == "raises" else task, "group").error is not None, "coroutines run on"
    assert world.ends("add", 1, 2).result == 3


def test_retry_on_and_give_up_on_in_a_worker(world: World) -> None:
    paths = [world.ledger() for _ in range(3)]
    assert world.ends("away", str(paths[0])).attempt == 2
    assert world.ends("away", str(paths[1]), "other").attempt == 1
    assert world.ends("gives_up", str(paths[2])).attempt == 2
    assert [len(ledger(path)) for path in paths] == [2, 1, 2]
    assert world.ends("away", str(paths[1]), "other", retry_on=ValueError, retries=2, backoff=Backoff.fixed(0.01)).attempt == 3


def test_a_custom_back_off_in_a_worker(world: World) -> None:
    path = world.ledger()
    assert world.ends("custom", str(path), "known").result == 3
    times = [float(at) for _, at in ledger(path)]
    assert times[1] - times[0] >= 0.01
    assert times[2] - times[1] >= 0.02
    broken = world.ends("custom", str(world.ledger()), "unknown")
    assert broken.error is not None
    assert (broken.attempt, broken.error.type) == (1, "BACKOFF_FAILED")
    assert "ZeroDivisionError" in broken.error.traceback
    assert "ValueError: unknown" in broken.error.traceback
    ended = world.ends("exits_in_policy")
    assert ended.error is not None
    assert ended.error.type == "BACKOFF_FAILED"


def test_hooks_are_told_what_was_decided_and_may_fail(world: World) -> None:
    good, bad = world.ledger(), world.ledger()
    assert world.ends("hooked", str(good), 2).result == 7
    assert ledger(good) == [["retry", "1", "ValueError"], ["success", "2", "7"]]
    assert world.ends("hooked", str(bad), 99).status is TaskStatus.FAILED
    assert ledger(bad) == [["retry", "1", "ValueError"], ["failure", "2", "ValueError"]]
    assert world.worker.text.count("a hook of hooked failed") == 4


def test_what_a_task_asks_for_by_retry(world: World) -> None:
    assert world.ends("asks", "0.01").result == 2
    for wrong in ("-1", "nan", "inf", "1e30"):
        info = world.ends("asks", wrong, retries=0)
        assert info.error is not None
        assert info.error.type == "TASK_OPTION_INVALID", wrong
    beyond = world.ends("asks", "0", retries=0)
    assert beyond.error is not None
    assert (beyond.status, beyond.error.type, beyond.error.message) == (TaskStatus.FAILED, "Retry", "again")


def test_max_age_in_a_worker(world: World) -> None:
    info = world.ends("old")
    assert info.finished is not None
    assert info.sent is not None
    assert 2 <= info.attempt < 51
    assert info.finished - info.sent < 1.5
    assert "older than max_age=1 s" in until(lambda: world.app.dead_letters(name="old"), "it is buried")[0].reason


def test_a_waiting_retry_holds_no_slot(world: World) -> None:
    waiting = [world.app.submit("patient") for _ in range(20)]
    until(lambda: all(task.status().status is TaskStatus.SCHEDULED for task in waiting), "all wait for their second attempt")
    assert world.ends("add", 2, 2).result == 4
    assert world.app.workers()[0].busy == 0
    assert world.app.cancel_all([task.id for task in waiting]) == 20


# --- history -------------------------------------------------------------------------------------


def test_the_history_has_each_attempt_that_did_not_succeed(world: World) -> None:
    path = world.ledger()
    good = world.ends("custom", str(path), "known")
    told = world.app.history(good.id)
    assert [(one.attempt, one.outcome, one.worker) for one in told] == [(1, "retry", "w"), (2, "retry", "w")]
    assert told[0].error is not None
    assert "ValueError: known" in told[0].error.traceback
    assert told[0].started is not None
    assert told[0].finished is not None
    assert told[0].started <= told[0].finished
    assert world.app.history(world.ends("add", 1, 1).id) == []
    with pytest.raises(errors.TaskNotFound):
        world.app.history("nobody")


def test_the_history_is_bounded(world: World) -> None:
    info = world.ends("away", str(world.ledger()), "away", retries=14, backoff=Backoff.fixed(0))
    told = world.app.history(info.id)
    assert [(one.attempt, one.outcome) for one in told] == [(n, "retry") for n in range(6, 15)] + [(15, "failed")]
    huge = world.app.history(world.ends("raises", "huge").id)[0].error
    assert huge is not None
    assert len(huge.message) < 2_100
    assert len(huge.traceback) < 2_100
    world.app.retry(info.id)
    again = until(lambda: (one := world.app.status(info.id)).attempt > 15 and one.status is TaskStatus.FAILED and one, "it has run again")
    assert [one.attempt for one in world.app.history(info.id)][-2:] == [again.attempt - 1, again.attempt]


def test_interruptions_and_what_was_handed_back_are_in_the_history(
    kafka: KafkaServer, valkey: ValkeyServer, namespace: str, tmp_path: Path
) -> None:
    path = tmp_path / "ledger"
    servers = Servers(kafka.url, valkey.url, namespace, heartbeat=0.3, lease=3, partitions=2, grace=0.2)
    with world_on(servers, tmp_path) as one:
        task = one.app.submit("holds", str(path))
        until(lambda: len(ledger(path)) == 1, "it runs")
        os.kill(one.worker.children[0], signal.SIGKILL)
        until(lambda: len(ledger(path)) == 2, "it runs again")
        one.worker.stop()
        interrupted, back = one.app.history(task.id)
        assert (interrupted.attempt, interrupted.outcome, interrupted.worker) == (1, "interrupted", "w")
        assert "SIGKILL" in interrupted.cause
        assert (back.attempt, back.outcome, back.worker) == (2, "handed back", "w")
        assert task.status().status is TaskStatus.QUEUED
