"""Workflows on real servers: chains, groups, graphs and roll calls, also when workers die in the middle."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Servers, Worker, all_met, ledger, running, until

import krq
from krq import TaskStatus


@pytest.fixture
def worker(servers: Servers, tmp_path: Path) -> Iterator[Worker]:
    with running(servers, tmp_path) as workers:
        yield workers[0]


# --- chains and groups ---------------------------------------------------------------------------


def test_each_step_gets_the_result_of_the_one_before(app: krq.KRQ, worker: Worker) -> None:
    handle = (app.signature("add", 1, 2) | app.signature("add", 10) | app.signature("double")).send()
    assert handle.result(timeout=15) == 26
    assert handle.results(timeout=5) == [3, 13, 26]
    assert [child.result(timeout=5) for child in handle.children] == [3, 13, 26]
    assert handle.progress() == (3, 3)
    assert str(handle) == str(handle.last)


def test_a_group_gives_its_results_in_order(app: krq.KRQ, worker: Worker) -> None:
    handle = krq.group(app.signature("add", i, i) for i in range(9)).send()
    assert handle.result(timeout=15) == [2 * i for i in range(9)]
    assert handle.progress() == (9, 9)
    assert asyncio.run(handle.aresult(timeout=5)) == [2 * i for i in range(9)]
    with pytest.raises(TimeoutError):
        krq.group(app.signature("waits", os.devnull, 5.0) for _ in range(2)).send().result(timeout=0.1)


def test_a_final_task_gets_the_list(app: krq.KRQ, worker: Worker) -> None:
    members = [app.signature("add", i, i) for i in range(9)]
    assert (krq.group(members) | app.signature("total")).send().result(timeout=15) == 72
    chains = [member | app.signature("add", 1) for member in members]
    between = krq.group(chains) | krq.group(app.signature("total"), app.signature("count")) | app.signature("total")
    handle = between.send()
    assert handle.result(timeout=15) == 81 + 9
    assert handle.results(timeout=5) == [[2 * i + 1 for i in range(9)], [81, 9], 90]
    assert len(handle.ids) == 21


def test_nothing_is_a_group_too(app: krq.KRQ, worker: Worker) -> None:
    assert (krq.group() | app.signature("count")).send().result(timeout=15) == 0
    behind: krq.ChainHandle[list[Any]] = (app.signature("add", 1, 2) | krq.group()).send()
    assert behind.result(timeout=10) == []
    assert behind.children[0].status().status is TaskStatus.SUCCESS  # type: ignore[union-attr]


def test_a_diamond(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    path = str(tmp_path / "ledger")
    top = app.submit("work", path, "top", 0.1)
    sides = [app.send_task("work", [path, name, 0.1], after=[top]) for name in ("left", "right")]
    bottom = app.send_task("count", [], after=sides, inputs="list")
    assert app.result(bottom, timeout=15) == 2
    order = [(line[0], line[1]) for line in ledger(tmp_path / "ledger")]
    assert order[:2] == [("S", "top"), ("F", "top")]
    assert {name for _, name in order[2:]} == {"left", "right"}


def test_children_come_in_the_order_of_their_ends(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    path = str(tmp_path / "ledger")
    handle = krq.group(app.signature("work", path, str(n), n * 0.3) for n in (2, 1, 0)).send()
    assert [child.result(timeout=1) for child in handle.as_completed(timeout=15)] == ["0", "1", "2"]
    slow = krq.group(app.signature("work", path, "slow", 5.0), app.signature("add", 1, 1)).send()
    came = slow.as_completed(timeout=1)
    assert next(came).result(timeout=1) == 2
    with pytest.raises(krq.ResultTimeout, match="1 of 2 tasks"):
        next(came)
    assert slow.progress() == (1, 2)


def test_workflows_can_be_cancelled_and_waited_for(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    path = str(tmp_path / "ledger")
    handle = (app.signature("waits", path) | krq.group(app.signature("add", 1), app.signature("add", 2)) | app.signature("total")).send()
    until(lambda: ledger(tmp_path / "ledger"), "the first step runs")
    later = app.handle(app.send_task("count", [[]], after=[handle]))
    assert handle.cancel() == 4
    with pytest.raises(krq.TaskCancelled):
        handle.result(timeout=10)
    info = later.wait(timeout=10)
    assert info.error is not None
    assert info.error.type == "DEPENDENCY_FAILED"


def test_a_failed_member_fails_the_final_task_by_name(app: krq.KRQ, worker: Worker) -> None:
    failed = app.signature("rejects").options(task_id="culprit")
    handle = (krq.group(app.signature("add", 1, 1), failed | app.signature("add", 1)) | app.signature("total")).send()
    with pytest.raises(krq.TaskFailed) as caught:
        handle.result(timeout=15)
    assert caught.value.kind == "DEPENDENCY_FAILED"
    with pytest.raises(krq.TaskFailed) as first:
        handle.children[0].result(timeout=5)
    assert first.value.kind == "DEPENDENCY_FAILED"
    for error in (caught.value, first.value):
        assert "culprit" in error.message
        assert "rejects" in error.message
        assert "Reject: not today" in error.message


# --- what the first seed calls them --------------------------------------------------------------


def test_chain_tasks_calls_back_with_all_results(app: krq.KRQ, worker: Worker) -> None:
    called: list[tuple[list[Any], str]] = []
    done = threading.Event()

    def callback(results: list[Any]) -> None:
        called.append((results, threading.current_thread().name))
        done.set()

    handle = app.chain_tasks([("add", [1, 2]), ("mul", [3, 4])], final_callback=callback)
    assert handle.result(timeout=15) == 12
    assert done.wait(5)
    assert called == [([3, 12], "krq-callbacks")]


def test_callbacks_that_fail_stop_no_other(app: krq.KRQ, worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()
    app.chain_tasks([("rejects", []), ("add", [1, 2])], final_callback=lambda _: done.set())
    until(lambda: "its callback is not called" in caplog.text, "the failure is logged")
    app.chain_tasks([("add", [1, 2])], final_callback=lambda results: results[7])
    until(lambda: "IndexError" in caplog.text, "the exception is logged")
    assert not done.is_set()
    app.chain_tasks([("add", [1, 2])], final_callback=lambda _: done.set())
    assert done.wait(10)


def test_group_tasks_runs_the_final_task_last(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    handle = app.group_tasks([("add", [1, 2]), ("mul", [3, 4])], ("sub", [10, 5]))
    assert handle.result(timeout=15) == 5
    assert handle.results(timeout=5) == [[3, 12], 5]
    path = str(tmp_path / "ledger")
    app.group_tasks([("work", [path, str(i), 0.2]) for i in range(3)], ("work", [path, "final"])).result(timeout=15)
    assert [line[1] for line in ledger(tmp_path / "ledger")][-2:] == ["final", "final"]
    assert app.group_tasks([], ("sub", [10, 5])).result(timeout=15) == 5


# --- deaths --------------------------------------------------------------------------------------


def test_a_chain_survives_the_death_of_its_worker(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with running(servers, tmp_path) as (worker,):
        handle: krq.ChainHandle[Any] = krq.chain(*[app.signature("step", str(path), n, 0.1).options(retries=0) for n in range(20)]).send()
        until(lambda: any(line[:2] == ["S", "9"] for line in ledger(path)), "it is in the middle")
        os.kill(worker.children[0], signal.SIGKILL)
        assert handle.result(timeout=30) == list(range(20))
    starts = Counter(line[1] for line in ledger(path) if line[0] == "S")
    ends = Counter(line[1] for line in ledger(path) if line[0] == "F")
    assert set(starts) == {str(n) for n in range(20)}
    twice = [n for n, times in starts.items() if times > 1]
    assert len(twice) <= 1, "only what ran at the kill runs twice"
    assert all(times == 1 for n, times in ends.items() if n not in twice)


def test_a_group_of_a_thousand_survives_it_too(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with running(servers, tmp_path) as (worker,):
        handle = (krq.group(app.signature("work", str(path), str(i)) for i in range(1_000)) | app.signature("count")).send()
        until(lambda: len(ledger(path)) > 200, "it is in the middle")
        os.kill(worker.children[0], signal.SIGKILL)
        assert handle.result(timeout=40) == 1_000
        group = handle.children[0]
        assert group.result(timeout=5) == [str(i) for i in range(1_000)]
        assert isinstance(group, krq.GroupHandle)
        assert group.progress() == (1_000, 1_000)
    starts = Counter(line[1] for line in ledger(path) if line[0] == "S")
    assert len(starts) == 1_000
    assert max(starts.values()) <= 2


def test_a_wide_group_has_one_final_task(app: krq.KRQ, worker: Worker) -> None:
    handle = (krq.group(app.signature("add", i, 0) for i in range(2_500)) | app.signature("count")).send()
    assert handle.result(timeout=60) == 2_500


# --- roll calls ----------------------------------------------------------------------------------


def test_a_broadcast_is_a_roll_call(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    assert app.broadcast("who").results(timeout=1) == {}
    with running(servers, tmp_path, ("w1", "w2", "w3")) as workers:
        roll = app.broadcast("who", [])
        answers = roll.results(timeout=20)
        assert {worker: answer[0] for worker, answer in answers.items()} == {"w1": "w1", "w2": "w2", "w3": "w3"}
        assert (sorted(roll.arrived()), roll.missing(), roll.errors()) == (["w1", "w2", "w3"], [], {})
        assert {info.inbox for info in app.workers()} == {"inbox.w1", "inbox.w2", "inbox.w3"}
        refused = app.broadcast("rejects")
        assert refused.results(timeout=20) == {}
        assert {worker: error.type for worker, error in refused.errors().items()} == {"w1": "Reject", "w2": "Reject", "w3": "Reject"}
        assert refused.missing() == []
        for pid in [workers[1].process.pid, *workers[1].children]:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        roll = app.broadcast("who", [])
        assert sorted(roll.results(timeout=2)) == ["w1", "w3"]
        assert time.monotonic() - began < 4
        assert (sorted(roll.arrived()), roll.missing()) == (["w1", "w3"], ["w2"])


def test_each_child_is_called_by_its_own_name(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    with running(servers, tmp_path, ("w",), processes=2):
        assert {worker: answer[0] for worker, answer in app.broadcast("who").results(timeout=20).items()} == {"w.1": "w.1", "w.2": "w.2"}


def test_what_a_gone_worker_never_started_expires(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    with running(servers, tmp_path, ("w1", "w2")) as workers:
        assert len(app.broadcast("who").results(timeout=20)) == 2
        all_met(app)
        workers[1].kill_tree()
        roll = app.broadcast("who", [], expires=time.time() + 2)
        assert len(roll) == 2
        assert list(roll.results()) == ["w1"]
        error = roll.members["w2"].status().error
        assert error is not None
        assert error.type == "EXPIRED"
        assert roll.missing() == ["w2"]
        until(lambda: len(app.workers()) == 1, "its death is seen")
        assert list(app.broadcast("who").results(timeout=10)) == ["w1"]
