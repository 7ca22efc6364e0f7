"""The supervisor's part: wedged children, children that can't live, a supervisor that stands still, clocks that jump."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import Servers, Worker, ledger, running, until

from krq.dev.valkey import ValkeyServer


@pytest.fixture
def place(valkey: ValkeyServer, namespace: str) -> Servers:
    return Servers(valkey.url, valkey.url, namespace, heartbeat=0.3, lease=3)


@contextmanager
def odd(place: Servers, folder: Path, how: str) -> Iterator[Worker]:
    worker = Worker(place, folder / "w.log", how, script="odd_app.py")
    try:
        yield worker
    finally:
        worker.close()


def state(pid: int) -> str:
    """R, S, T, Z …; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def test_a_child_that_turns_no_more_is_killed_and_its_task_runs_again(place: Servers, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with place.app() as app, odd(place, tmp_path, "wedged") as worker:
        worker.ready()
        task = app.submit("work", str(path), "k", 0.3)
        until(lambda: ledger(path), "it runs")
        (stopped,) = worker.children
        os.kill(stopped, signal.SIGSTOP)
        assert task.result(timeout=15) == "k"
        assert state(stopped) == ""
        assert "has not turned for" in worker.text
        assert (task.status().attempt, task.status().deaths) == (2, 0)
    assert [line[0] for line in ledger(path)] == ["S", "S", "F"]


def test_a_worker_whose_children_can_not_live_gives_up_and_says_so(place: Servers, tmp_path: Path) -> None:
    with place.app() as app, odd(place, tmp_path, "dies") as worker:
        assert worker.process.wait(20) == 1
        assert "WORKER_RECOVERY_FAILED" in worker.text
        assert "giving up: 2 restarts in a row" in worker.text
        failures = app.failures()
        assert [failure.cause for failure in failures] == ["exit code 9"] * 3
        assert {failure.worker for failure in failures} == {"odd"}


@pytest.mark.parametrize("options", [{}, {"timeout": 60}], ids=["thread", "process"])
def test_under_a_supervisor_that_stands_still_a_child_ends_itself_before_its_lease_does(
    place: Servers, tmp_path: Path, options: dict[str, object]
) -> None:
    path = tmp_path / "ledger"
    with place.app() as app, odd(place, tmp_path, "plain") as worker:
        worker.ready()
        task = app.handle(app.send_task("work", [str(path), "k", 6.0], **options))
        until(lambda: ledger(path), "it runs")
        processes = worker.children
        assert len(processes) == 1 + len(options)
        began = time.monotonic()
        os.kill(worker.process.pid, signal.SIGSTOP)
        until(lambda: all(state(pid) in ("Z", "") for pid in processes), "the child has ended, and its host", 5)
        assert time.monotonic() - began < 3
        os.kill(worker.process.pid, signal.SIGCONT)
        until(lambda: len(ledger(path)) == 2, "it runs again", 10)
        assert task.status().deaths == 0
        assert "its lease was lost" in app.failures()[0].cause


def test_a_host_does_not_outlive_its_child(place: Servers, tmp_path: Path) -> None:
    """Whatever holds its interpreter, and also when nobody else could kill it."""
    with place.app() as app, odd(place, tmp_path, "plain") as worker:
        worker.ready()
        app.send_task("hogs", [str(tmp_path / "ledger"), 60], timeout=60)
        until(lambda: ledger(tmp_path / "ledger"), "it runs")
        (child,) = (one.pid for one in app.workers())
        (host,) = set(worker.children) - {child}
        os.kill(worker.process.pid, signal.SIGSTOP)
        os.kill(child, signal.SIGKILL)
        until(lambda: state(host) in ("Z", ""), "its host has ended", 1)


def test_a_machine_whose_clock_jumps_loses_and_doubles_nothing(place: Servers, tmp_path: Path) -> None:
    path, clock = tmp_path / "ledger", tmp_path / "clock"
    clock.write_text("0")
    with place.app() as app, odd(place, tmp_path, f"jumping:{clock}") as worker:
        worker.ready()
        delayed = [app.handle(app.send_task("work", [str(path), f"d{i}", 0.01], delay=1 + i / 10)) for i in range(20)]
        flaky = app.submit("fails", "", 2)
        plain = app.submit_many([{"task": "work", "args": [str(path), f"k{i}", 0.02]} for i in range(200)])
        for number, offset in enumerate((7200, -7200, 0)):
            until(lambda number=number: len(ledger(path)) > 100 * number, "some more are done")  # type: ignore[misc]
            clock.write_text(str(offset))
        assert flaky.result(timeout=20) == "at last"
        assert [task.result(timeout=20) for task in [*plain, *delayed]] == [f"k{i}" for i in range(200)] + [f"d{i}" for i in range(20)]
        assert app.failures() == []
    assert len(ledger(path)) == 440


def test_a_child_that_dies_while_the_store_is_checked_is_recovered_as_it_opens(
    own_valkey: ValkeyServer, namespace: str, tmp_path: Path
) -> None:
    """Not a lease later, when others would have noticed."""
    place = Servers(own_valkey.url, own_valkey.url, namespace, heartbeat=0.3, lease=4, concurrency=1)
    path = tmp_path / "ledger"
    with place.app() as app, odd(place, tmp_path, "plain") as worker:
        worker.ready()
        silent = Worker(place, tmp_path / "silent.log", "silent").ready()
        try:
            for key in ("a", "b"):
                app.submit("work", str(path), key, 8.0)
            until(lambda: len(ledger(path)) == 2, "both run")
            own_valkey.kill()
            own_valkey.start()
            opened = time.monotonic() + 4
            os.kill(silent.children[0], signal.SIGSTOP)  # so that it waits a lease for what this one would say
            os.kill(worker.children[0], signal.SIGKILL)
            until(lambda: len(ledger(path)) == 3, "it runs again", 12)
            assert time.monotonic() - opened < 2.5
        finally:
            silent.close()


@pytest.mark.parametrize(("chosen", "often"), [("pass", 10_000), ("gc.set_threshold(900)", 900), ("gc.set_threshold(0)", 0)])
def test_garbage_is_looked_for_less_often_unless_somebody_has_chosen(chosen: str, often: int) -> None:
    code = f"""
import gc, os
from krq.worker.process import fork
{chosen}
os.waitpid(fork(lambda: print(gc.get_freeze_count() > 1_000, gc.get_threshold()[0]) or 0, os.pipe()), 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.split() == ["True", str(often)]


def test_a_child_that_has_left_is_not_taken_for_dead(valkey: ValkeyServer, namespace: str, tmp_path: Path) -> None:
    """Many beats fall between its farewell to Redis and its end."""
    servers = Servers(valkey.url, valkey.url, namespace, heartbeat=0.002, lease=3)
    for n in range(3):
        folder = tmp_path / str(n)
        folder.mkdir()
        with running(servers, folder) as (worker,):
            worker.ready()
            assert worker.stop() == 0
            assert "has left" in worker.text
            assert "ERROR" not in worker.text, worker.text
