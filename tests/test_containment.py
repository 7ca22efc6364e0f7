"""Tasks that go too far are stopped, and harm nobody: limits, processes of their own, cancelling what runs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Servers, Worker, ledger, until

import krq
from krq import TaskStatus
from krq.dev.valkey import ValkeyServer
from krq.errors import OptionError


@pytest.fixture(scope="module")
def place(valkey: ValkeyServer) -> Servers:
    return Servers(valkey.url, valkey.url, f"c{os.urandom(4).hex()}", heartbeat=0.3, lease=3, concurrency=4)


@pytest.fixture(scope="module")
def worker(place: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One worker with four slots for all tests of this file: none may harm it."""
    made = Worker(place, tmp_path_factory.mktemp("contained") / "w.log", script="contained_app.py").ready()
    yield made
    made.close()


@pytest.fixture
def app(place: Servers, worker: Worker) -> Iterator[krq.KRQ]:
    with place.app() as app:
        yield app


def end(app: krq.KRQ, name: str, *args: object, within: float = 10.0) -> krq.TaskInfo:
    return app.submit(name, *args).wait(timeout=within)


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_busy_loop_is_stopped_and_its_slot_is_usable_at_once(app: krq.KRQ) -> None:
    app.submit("where").result(timeout=10)
    began = time.monotonic()
    tasks = [app.handle(app.send_task("spins", [], retries=0)) for _ in range(4)]
    infos = [task.wait(timeout=10) for task in tasks]
    assert time.monotonic() - began < 2
    for info in infos:
        assert info.error is not None
        assert (info.status, info.error.type, info.deaths) == (TaskStatus.FAILED, "TIMED_OUT", 0)
        assert "ran for longer than 1 s; its process was killed" in info.error.message
    assert app.submit("add", 1, 2).result(timeout=1) == 3


def test_a_c_call_is_stopped_and_its_timeout_is_retried(app: krq.KRQ) -> None:
    info = end(app, "backtracks")
    assert info.error is not None
    assert (info.error.type, info.attempt, info.failures) == ("TIMED_OUT", 2, 1)


def test_a_call_may_ask_for_a_timeout_of_its_own(app: krq.KRQ, tmp_path: Path) -> None:
    task = app.handle(app.send_task("waits", [str(tmp_path / "l")], timeout=0.5, retries=0))
    info = task.wait(timeout=5)
    assert info.error is not None
    assert info.error.type == "TIMED_OUT"


def test_a_late_coroutine_is_cancelled(app: krq.KRQ, tmp_path: Path) -> None:
    info = end(app, "dawdles", str(tmp_path / "l"))
    assert info.error is not None
    assert info.error.type == "TIMED_OUT"
    assert ledger(tmp_path / "l") == [["E", info.id]]


def test_a_soft_timeout_is_raised_in_the_task(app: krq.KRQ, tmp_path: Path) -> None:
    assert app.submit("tidies", str(tmp_path / "l")).result(timeout=5) == "tidied"
    assert ledger(tmp_path / "l") == [["soft"]]
    info = end(app, "ignores")
    assert info.error is not None
    assert (info.status, info.error.type) == (TaskStatus.FAILED, "SoftTimeout")


def test_who_takes_too_much_memory_is_killed(app: krq.KRQ) -> None:
    info = end(app, "hoards")
    assert info.error is not None
    assert info.error.type == "MEMORY_LIMIT"
    assert "its limit is 80 MB" in info.error.message


def test_an_isolated_task_runs_in_another_process_and_is_used_again(app: krq.KRQ, worker: Worker) -> None:
    first, parent = app.submit("where").result(timeout=10)
    assert parent == worker.process.pid
    assert app.submit("where").result(timeout=10)[0] == first
    assert app.submit("where_async").result(timeout=10) in worker.children
    assert first in worker.children


def test_what_an_isolated_task_raises_or_returns_comes_back(app: krq.KRQ) -> None:
    info = end(app, "raises")
    assert info.error is not None
    assert (info.error.type, info.error.message) == ("ValueError", "from afar")
    assert 'raise ValueError("from afar")' in info.error.traceback
    assert "krq/worker" not in info.error.traceback
    info = end(app, "gives_nothing_readable")
    assert info.error is not None
    assert info.error.type == "NOT_SERIALIZABLE"


@pytest.mark.parametrize("deaf", [False, True])
def test_a_cancelled_process_is_told_and_then_killed(app: krq.KRQ, tmp_path: Path, deaf: bool) -> None:
    path = tmp_path / "l"
    task = app.submit("lingers", str(path), deaf)
    until(lambda: ledger(path), "it runs")
    assert task.cancel()
    assert task.wait(timeout=5).status is TaskStatus.CANCELLED
    assert ledger(path)[1] == ["stopped", task.id]
    until(lambda: gone(int(ledger(path)[0][2])), "its process has ended", 3)


def test_a_cancelled_thread_gets_an_exception(app: krq.KRQ, tmp_path: Path) -> None:
    task = app.submit("loops", str(tmp_path / "l"))
    until(lambda: ledger(tmp_path / "l"), "it runs")
    assert task.cancel()
    assert task.wait(timeout=5).status is TaskStatus.CANCELLED
    assert app.submit("add", 1, 2).result(timeout=2) == 3


def test_the_processes_that_a_task_has_started_die_with_it(app: krq.KRQ, tmp_path: Path) -> None:
    path = tmp_path / "l"
    task = app.submit("leaves_a_process", str(path))
    until(lambda: ledger(path), "it runs")
    info = task.wait(timeout=5)
    assert info.error is not None
    assert info.error.type == "TIMED_OUT"
    before = path.stat().st_size
    app.submit("where").result(timeout=5)
    assert path.stat().st_size == before


def test_misbehaviour_harms_nobody_else(app: krq.KRQ, worker: Worker) -> None:
    children = worker.children
    assert end(app, "misbehaves", "close").status is TaskStatus.FAILED
    assert app.submit("misbehaves", "fork").result(timeout=5) == "fork"
    assert app.submit("misbehaves", "interrupt").result(timeout=5) == "interrupt"
    assert app.submit("add", 1, 2).result(timeout=2) == 3
    assert set(children) <= set(worker.children)


def test_a_task_that_kills_its_process_is_found_out_and_its_neighbours_are_not_counted(place: Servers, tmp_path: Path) -> None:
    own = Servers(place.broker, place.backend, f"p{os.urandom(4).hex()}", **place.settings)
    killer = Worker(own, tmp_path / "w.log", script="contained_app.py").ready()
    try:
        with own.app() as app:
            poison = app.submit("segfaults")
            neighbours = app.submit_many([{"task": "work", "args": [str(tmp_path / "l"), f"k{i}", 0.02]} for i in range(200)])
            info = poison.wait(timeout=30)
            assert info.error is not None
            assert (info.status, info.deaths, info.interruptions, info.error.type) == (TaskStatus.FAILED, 3, 3, "POISON")
            assert "killed by SIGSEGV" in info.error.message
            for task in neighbours:
                assert task.result(timeout=20).startswith("k")
            assert {task.status().deaths for task in neighbours} == {0}
            assert len(app.failures()) == 1
            assert app.failures()[0].cause == "killed by SIGSEGV"
            assert poison.id in app.failures()[0].ran
            assert any("is ready" in line for line in app.failures()[0].tail)
            (letter,) = until(app.dead_letters, "it is buried")
            assert (letter.id, letter.code) == (poison.id, "POISON")
    finally:
        killer.close()


def test_exit_of_a_process_in_the_middle_of_a_stop_is_no_orderly_end(place: Servers, tmp_path: Path) -> None:
    own = Servers(place.broker, place.backend, f"p{os.urandom(4).hex()}", **place.settings)
    one = Worker(own, tmp_path / "w.log", script="contained_app.py").ready()
    try:
        with own.app() as app:
            task = app.submit("misbehaves", "exit")
            until(lambda: app.failures(), "its child died")
            assert app.failures()[0].cause == "exit code 0"
            assert task.wait(timeout=20).status is TaskStatus.FAILED
    finally:
        one.close()


def test_who_accepts_overlap_goes_on_without_a_lease(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with ValkeyServer(tmp_path / "valkey", fsync="always") as own:
        place = Servers(own.url, own.url, "adrift", heartbeat=0.3, lease=2)
        one = Worker(place, tmp_path / "w.log", script="contained_app.py").ready()
        try:
            with place.app() as app:
                task = app.submit("goes_on", str(path), 6.0)
                until(lambda: ledger(path), "it runs")
                child = one.children
                own.stop()
                until(lambda: "goes on without a lease" in one.text, "its lease is over", 10)
                own.start()
                assert task.result(timeout=20) == "went on"
                assert task.status().attempt == 1
                assert one.children == child
        finally:
            one.close()
    assert [line[0] for line in ledger(path)] == ["S", "F"]


def test_a_process_is_replaced_after_so_many_tasks(place: Servers, tmp_path: Path) -> None:
    own = Servers(place.broker, place.backend, f"r{os.urandom(4).hex()}", **{**place.settings, "recycle": 20})
    one = Worker(own, tmp_path / "w.log", script="contained_app.py").ready()
    try:
        with own.app() as app:
            before = one.children
            tasks = app.submit_many([{"task": "add", "args": [i, 1]} for i in range(100)])
            assert [task.result(timeout=20) for task in tasks] == list(range(1, 101))
            until(lambda: not set(before) & set(one.children), "a fresh process")
            assert app.failures() == []
    finally:
        one.close()


def test_the_hosts_die_with_their_child(app: krq.KRQ, tmp_path: Path) -> None:
    path = tmp_path / "l"
    task = app.submit("lingers", str(path))
    until(lambda: ledger(path), "it runs")
    host = int(ledger(path)[0][2])
    os.kill(app.workers()[0].pid, signal.SIGKILL)
    until(lambda: gone(host), "its host has ended", 3)
    until(lambda: len(ledger(path)) == 2, "it runs again")
    assert task.status().deaths == 0
    task.cancel()
    assert task.wait(timeout=10).status is TaskStatus.CANCELLED


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timeout": 0}, "no number of seconds"),
        ({"timeout": float("nan")}, "no number of seconds"),
        ({"timeout": 1, "isolate": False}, "can't be limited so in a thread"),
        ({"soft_timeout": 2, "timeout": 1}, "is not below"),
        ({"memory_limit": "12"}, "less than an interpreter needs"),
        ({"memory_limit": "much"}, "is no size"),
        ({"on_lease_lost": "hope"}, "can't be used"),
        ({"isolate": "yes"}, "no bool"),
    ],
)
def test_limits_that_can_not_be_are_refused_at_registration(options: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        krq.KRQ().task(name="limited", **options)(lambda: None)
