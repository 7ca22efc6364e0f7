"""From send to result, through the real broker, the real store and a real worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from harness import Servers, Worker, ledger, running, until

import krq
from krq import TaskStatus


@pytest.fixture
def worker(servers: Servers, tmp_path: Path) -> Iterator[Worker]:
    with running(servers, tmp_path) as workers:
        yield workers[0]


def test_a_task_goes_from_send_to_result(app: krq.KRQ, worker: Worker) -> None:
    handle = app.submit("add", 1, 2)
    assert handle.result(timeout=10) == 3
    info = app.status(handle.id)
    assert (info.status, info.result, info.attempt, info.worker, info.queue, info.name) == (TaskStatus.SUCCESS, 3, 1, "w", "default", "add")
    assert str(info) == "success 3"
    assert info.sent is not None
    assert info.started is not None
    assert info.finished is not None
    assert info.sent <= info.started + 1
    assert info.started <= info.finished


def test_tasks_sent_before_any_worker_lived_run(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    task_id = app.send_task("add", [2, 3])
    assert app.status(task_id).status is TaskStatus.QUEUED
    with running(servers, tmp_path):
        assert app.result(task_id, timeout=15) == 5


def test_a_batch_comes_back_in_order(app: krq.KRQ, worker: Worker) -> None:
    handles = app.submit_many([{"task": "add", "args": [i, i]} for i in range(1_200)])
    assert [handle.result(timeout=20) for handle in handles] == [2 * i for i in range(1_200)]


def test_coroutines_run(app: krq.KRQ, worker: Worker) -> None:
    assert [handle.result(timeout=10) for handle in app.submit_many([{"task": "double", "args": [i]} for i in range(50)])] == [
        2 * i for i in range(50)
    ]


def test_results_can_be_awaited(app: krq.KRQ, worker: Worker) -> None:
    async def main() -> list[object]:
        handles = [app.submit("add", i, 1) for i in range(20)]
        return list(await asyncio.gather(*(handle.aresult(timeout=10) for handle in handles)))

    assert asyncio.run(main()) == list(range(1, 21))


def test_a_failure_carries_the_remote_traceback(app: krq.KRQ, worker: Worker) -> None:
    with pytest.raises(krq.TaskFailed) as caught:
        app.submit("fails").result(timeout=15)
    assert caught.value.kind == "ValueError"
    assert "attempt 3 of" in caught.value.message
    assert "tasks_app.py" in caught.value.traceback
    assert 'raise ValueError(f"attempt' in str(caught.value)


def test_failures_are_retried_with_back_off_then_final(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    handle = app.submit("fails", str(path))
    assert handle.wait(timeout=15).status is TaskStatus.FAILED
    assert [line[2] for line in ledger(path)] == ["1", "2", "3"]
    assert handle.status().failures == 2
    assert app.submit("fails", "", 1).result(timeout=15) == "at last"
    assert [info.id for info in app.tasks(status="failed")] == [handle.id]


def test_the_task_itself_may_ask_for_another_attempt_or_refuse(app: krq.KRQ, worker: Worker) -> None:
    assert app.submit("asks_again").result(timeout=10) == 2
    refused = app.submit("rejects").wait(timeout=10)
    assert (refused.status, refused.attempt) == (TaskStatus.FAILED, 1)
    assert refused.error is not None
    assert refused.error.type == "Reject"


def test_delays_and_etas_are_kept(app: krq.KRQ, worker: Worker) -> None:
    app.submit("add", 0, 0).result(timeout=15)
    sent = time.time()
    later = app.handle(app.send_task("add", [1, 1], delay=0.7))
    at = app.handle(app.send_task("add", [2, 2], eta=datetime.now(UTC) + timedelta(seconds=0.5)))
    until(lambda: later.status().status is TaskStatus.SCHEDULED, "admitted as scheduled", 0.6)
    assert later.result(timeout=10) == 2
    assert at.result(timeout=10) == 4
    for handle, wait in ((later, 0.7), (at, 0.5)):
        started = handle.status().started
        assert started is not None
        assert wait - 0.01 <= started - sent < wait + 2


def test_what_is_not_started_by_its_expiry_fails(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    late = app.handle(app.send_task("add", [1, 1], expires=time.time() + 0.3))
    until(lambda: time.time() > (late.status().sent or 0) + 0.4, "the expiry")
    with running(servers, tmp_path):
        info = late.wait(timeout=15)
    assert info.status is TaskStatus.FAILED
    assert info.error is not None
    assert info.error.type == "EXPIRED"


def test_after_waits_and_hands_over_results(app: krq.KRQ, worker: Worker) -> None:
    first = app.submit("add", 1, 2)
    second = app.send_task("add", [10], after=[first], inputs="prepend")
    assert app.result(second, timeout=10) == 13
    failed = app.submit("rejects")
    blocked = app.handle(app.send_task("add", [1, 1], after=[failed, first])).wait(timeout=10)
    assert blocked.error is not None
    assert blocked.error.type == "DEPENDENCY_FAILED"


def test_priority_runs_first(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    path = str(tmp_path / "ledger")
    app.pause("default")
    with running(Servers(servers.broker, servers.backend, servers.namespace, **{**servers.settings, "concurrency": 1}), tmp_path):
        until(lambda: app.workers(), "a worker")
        warm = app.send_task("add", [1, 1])
        app.resume("default")
        app.result(warm, timeout=15)
        app.pause("default")
        low = [app.send_task("work", [path, f"low{i}"], priority=-5) for i in range(3)]
        high = [app.send_task("work", [path, f"high{i}"], priority=5) for i in range(3)]
        until(lambda: all(app.status(t).status is TaskStatus.QUEUED for t in low + high), "all queued")
        app.resume("default")
        for task_id in low + high:
            app.result(task_id, timeout=15)
    started = [line[1] for line in ledger(tmp_path / "ledger") if line[0] == "S"]
    assert started == ["high0", "high1", "high2", "low0", "low1", "low2"]


def test_the_same_id_sent_twice_runs_once(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    for _ in range(3):
        app.send_task("work", [str(path), "k"], task_id="mine")
    assert app.result("mine", timeout=10) == "k"
    app.send_task("work", [str(path), "k"], task_id="mine")
    assert app.submit("add", 1, 1).result(timeout=10) == 2
    assert [line[0] for line in ledger(path)] == ["S", "F"]


def test_cancel_at_every_state(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    scheduled = app.handle(app.send_task("add", [1, 1], delay=60))
    assert scheduled.cancel()
    with pytest.raises(krq.TaskCancelled):
        scheduled.result(timeout=5)
    thread, coroutine = app.submit("waits", str(path)), app.submit("sleeps", str(path))
    until(lambda: len(ledger(path)) == 2, "both run")
    assert thread.cancel()
    assert coroutine.cancel()
    assert coroutine.wait(timeout=10).status is TaskStatus.CANCELLED
    assert thread.wait(timeout=10).status is TaskStatus.CANCELLED
    done = app.submit("add", 1, 1)
    assert done.result(timeout=10) == 2
    assert not done.cancel()
    with pytest.raises(krq.TaskNotFound):
        app.cancel("nobody")


def test_a_failed_task_can_be_run_again(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    handle = app.submit("fails", str(path), 3)
    assert handle.wait(timeout=15).status is TaskStatus.FAILED
    assert app.retry(handle).result(timeout=15) == "at last"
    info = handle.status()
    assert (info.status, info.attempt) == (TaskStatus.SUCCESS, 4)
    assert not app.tasks(status="failed")


def test_purge_drops_ready_scheduled_and_backlog(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    tasks = [app.send_task("work", [str(tmp_path / "ledger"), str(i)]) for i in range(20)]
    tasks.append(app.send_task("work", [str(tmp_path / "ledger"), "later"], delay=60))
    app.purge("default")
    with running(servers, tmp_path):
        assert app.submit("add", 1, 1).result(timeout=15) == 2
        for task_id in tasks:
            until(lambda task_id=task_id: _gone(app, task_id), f"{task_id} is cancelled or forgotten")  # type: ignore[misc]
    assert ledger(tmp_path / "ledger") == []


def _gone(app: krq.KRQ, task_id: str) -> bool:
    try:
        return app.status(task_id).status is TaskStatus.CANCELLED
    except krq.TaskNotFound:
        return True


def test_context_names_worker_attempt_and_fence(app: krq.KRQ, worker: Worker) -> None:
    name, attempt, fence = app.submit("who").result(timeout=10)
    assert (name, attempt, fence[1]) == ("w", 1, 1)
    assert fence[0] > 1_000_000


def test_workers_and_stats_tell_what_is(app: krq.KRQ, worker: Worker) -> None:
    app.submit("add", 1, 1).result(timeout=10)
    (info,) = app.workers()
    assert (info.id, info.succeeded, info.queues) == ("w", 1, ["default"])
    stats = app.stats()
    assert (stats.workers, stats.queues["default"].succeeded, stats.queues["default"].ready) == (1, 1, 0)
    until(lambda: app.stats().outbox == 0, "the outbox is in the log")
    until(lambda: app.stats().queues["default"].backlog == 0, "no backlog")


def test_the_log_has_one_entry_for_each_ended_attempt(app: krq.KRQ, worker: Worker) -> None:
    from krq import events

    handles = [app.submit("add", i, 1) for i in range(5)]
    failed = app.submit("fails")
    for handle in [*handles, failed]:
        handle.wait(timeout=15)
    until(lambda: app.stats().outbox == 0, "the outbox is in the log")
    broker = app._clients.broker
    entries = [entry for _, record in broker.read(app.config.events_topic, 100) for entry in events.decode_page(record.value).entries]
    ended = sorted((entry.id, entry.attempt, entry.outcome) for entry in entries)
    assert ended == sorted(
        [(handle.id, 1, "success") for handle in handles] + [(failed.id, 1, "retry"), (failed.id, 2, "retry"), (failed.id, 3, "failed")]
    )
