"""Deploys: SIGTERM under full load and rolling restarts interrupt nothing; what takes too long is handed back, not failed."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from pathlib import Path

from harness import Servers, Worker, ledger, running, until

import krq
from krq import TaskStatus


class Load(threading.Thread):
    """Keeps more waiting than the workers can do, until it is told to stop."""

    def __init__(self, app: krq.KRQ, path: Path) -> None:
        super().__init__(daemon=True)
        self.handles: list[krq.TaskHandle[object]] = []
        self._app, self._path = app, str(path)
        self._enough = threading.Event()

    def run(self) -> None:
        while not self._enough.is_set():
            done = len(ends(Path(self._path)))
            if len(self.handles) - done < 60:
                start = len(self.handles)
                calls = [{"task": "work", "args": [self._path, f"k{start + i}", (0.03, 0.1, 0.3)[i % 3]]} for i in range(30)]
                self.handles += self._app.submit_many(calls)
            self._enough.wait(0.05)

    def finish(self) -> None:
        self._enough.set()
        self.join(20)
        for handle in self.handles:
            handle.result(timeout=40)


def starts(path: Path) -> Counter[str]:
    return Counter(line[1] for line in ledger(path) if line[0] == "S")


def ends(path: Path) -> Counter[str]:
    return Counter(line[1] for line in ledger(path) if line[0] == "F")


def test_sigterm_under_full_load_and_a_rolling_restart_interrupt_nothing(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    """Three workers are replaced one by one, while everything is busy."""
    path = tmp_path / "ledger"
    with running(servers, tmp_path, ["a1", "a2", "a3"]) as workers:
        load = Load(app, path)
        load.start()
        try:
            for number in range(3):
                before = len(ends(path))
                until(lambda before=before: len(ends(path)) > before + 50, "all are busy")  # type: ignore[misc]
                old = workers[number]
                took = time.monotonic()
                assert old.stop() == 0
                assert time.monotonic() - took < 10
                workers.append(Worker(servers, tmp_path / f"b{number}.log", f"b{number}").ready())
                assert "Traceback" not in old.text, old.text
        finally:
            load.finish()
        assert app.failures() == []
        assert {(info.failures, info.deaths) for info in (handle.status() for handle in load.handles)} == {(0, 0)}
    assert len(starts(path)) == len(load.handles) > 150
    assert set(starts(path).values()) == set(ends(path).values()) == {1}


def test_all_workers_at_once_leave_what_waits_to_their_successors(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with running(servers, tmp_path, ["a1", "a2", "a3"]) as workers:
        load = Load(app, path)
        load.start()
        until(lambda: len(ends(path)) > 60, "all are busy")
        for worker in workers:
            worker.process.send_signal(signal.SIGTERM)
        assert [worker.process.wait(20) for worker in workers] == [0, 0, 0]
        assert starts(path) == ends(path), "what had begun has ended"
        with running(servers, tmp_path, ["b1", "b2"]):
            load.finish()
            assert app.failures() == []
    assert set(starts(path).values()) == {1}


def test_what_runs_beyond_the_grace_time_is_handed_back_and_counted_as_that(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    short = Servers(servers.broker, servers.backend, servers.namespace, **{**servers.settings, "grace": 1.0, "concurrency": 4})
    with running(short, tmp_path, ["old"]) as (old,), running(servers, tmp_path, ["new"]):
        tasks = [app.submit("work", str(path), f"k{i}", 2.5) for i in range(8)]  # two more than the new one has slots
        quick = app.submit("work", str(path), "quick", 0.2)
        until(lambda: {line[1] for line in ledger(path) if line[4] == "old"} - {"quick"}, "a long one runs there")
        assert old.stop() == 0
        stopped = time.monotonic()
        there = {line[1] for line in ledger(path) if line[4] == "old"} - set(ends(path))
        for task in (*tasks, quick):
            task.result(timeout=30)
        assert app.failures() == []
        infos = [task.status() for task in tasks]
        assert {(info.status, info.failures, info.deaths) for info in infos} == {(TaskStatus.SUCCESS, 0, 0)}
        assert sum(info.attempt == 2 for info in infos) == len(there) > 0
        handed_back = sum(queue.handed_back for queue in app.stats().queues.values())
        assert handed_back == len(there)
    lines = ledger(path)
    assert not [line for line in lines if line[4] == "old" and float(line[5]) > stopped], "the old worker has ended"
    for key in there:
        begun = [float(line[5]) for line in lines if line[0] == "S" and line[1] == key]
        assert len(begun) == 2
        assert begun[1] < stopped + 3.0, "handed back at once: as soon as there is a slot"
    assert set(ends(path).values()) == {1}
