"""What goes wrong, for real: killed processes, restarted servers, an emptied Redis. Counted by a ledger outside KRQ."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import Servers, ledger, running, until

import krq
from krq import TaskStatus
from krq.dev.kafka import KafkaServer
from krq.dev.valkey import ValkeyServer


def starts(path: Path) -> Counter[str]:
    return Counter(line[1] for line in ledger(path) if line[0] == "S")


def finishes(path: Path) -> Counter[str]:
    return Counter(line[1] for line in ledger(path) if line[0] == "F")


def running_at(path: Path, pids: set[int], moment: float) -> set[str]:
    """Keys that one of these processes started, and had not finished at that moment."""
    lines = [line for line in ledger(path) if int(line[3]) in pids]
    finished = {line[1] for line in lines if line[0] == "F" and float(line[5]) < moment}
    return {line[1] for line in lines if line[0] == "S"} - finished


def test_a_killed_worker_loses_nothing_and_only_what_ran_runs_twice(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with running(servers, tmp_path, ["w1", "w2"]) as (first, _):
        tasks = app.submit_many([{"task": "work", "args": [str(path), f"k{i}", 0.03]} for i in range(400)])
        until(lambda: len(finishes(path)) > 100, "a quarter is done")
        dying = set(first.children)
        killed = time.monotonic()
        first.kill_tree()
        assert [task.result(timeout=40) for task in tasks] == [f"k{i}" for i in range(400)]
    twice = {key for key, n in starts(path).items() if n > 1}
    assert len(finishes(path)) == 400
    # its last line may be written and its end not yet settled: such a task counts as running
    assert twice <= running_at(path, dying, killed - 0.25)
    assert max(starts(path).values()) <= 2
    (failure,) = app.failures()
    assert (failure.worker, failure.cause.startswith("no heartbeat")) == ("w1", True)
    assert failure.beat is not None


def test_a_killed_child_is_reported_and_replaced_within_a_second(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with running(servers, tmp_path) as (worker,):
        task = app.submit("work", str(path), "k", 0.5)
        until(lambda: starts(path)["k"] == 1, "it runs")
        os.kill(worker.children[0], signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: starts(path)["k"] == 2, "it runs again", 5)
        assert time.monotonic() - killed < 1.5
        assert task.result(timeout=10) == "k"
        info = task.status()
        assert (info.attempt, info.interruptions, info.deaths, info.failures) == (2, 1, 0, 0)
        assert app.failures()[0].cause == "killed by SIGKILL"
        assert app.failures()[0].ran == [task.id]


def test_a_task_that_kills_its_worker_becomes_a_dead_letter_and_its_neighbours_succeed(
    servers: Servers, app: krq.KRQ, tmp_path: Path
) -> None:
    with running(servers, tmp_path) as (worker,):
        poison = app.submit("dies", str(tmp_path / "poison"))
        neighbours = app.submit_many([{"task": "add", "args": [i, 1]} for i in range(100)])
        info = poison.wait(timeout=30)
        assert (info.status, info.deaths) == (TaskStatus.FAILED, 3)
        assert info.error is not None
        assert info.error.type == "POISON"
        assert "exit code 9" in info.error.message
        until(lambda: [(letter.id, letter.code) for letter in app.dead_letters()] == [(poison.id, "POISON")], "it is buried")
        assert [task.result(timeout=20) for task in neighbours] == list(range(1, 101))
        assert {task.status().deaths for task in neighbours} == {0}
        assert worker.process.poll() is None


def test_a_second_signal_ends_it_at_once(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    with running(servers, tmp_path) as (worker,):
        app.submit("waits", str(tmp_path / "ledger"))
        until(lambda: ledger(tmp_path / "ledger"), "it runs")
        children = worker.children
        worker.process.send_signal(signal.SIGINT)
        until(lambda: "stopping" in worker.text, "the first signal is heard")
        worker.process.send_signal(signal.SIGINT)
        worker.process.wait(5)
        for pid in children:
            until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "no child is left")  # type: ignore[misc]


def test_children_die_with_their_supervisor(servers: Servers, tmp_path: Path) -> None:
    with running(servers, tmp_path, processes=2) as (worker,):
        children = worker.children
        assert len(children) == 2
        worker.process.kill()
        for pid in children:
            until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "no child is left", 3)  # type: ignore[misc]


def test_a_stopped_worker_is_fenced_and_its_late_end_is_refused(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    """SIGSTOP of supervisor and child for longer than the lease: the task runs elsewhere; the thawed one ends itself."""
    path = tmp_path / "ledger"
    with running(servers, tmp_path) as (worker,):
        task = app.submit("work", str(path), "k", 2.0)
        until(lambda: starts(path)["k"] == 1, "it runs")
        frozen = [worker.process.pid, *worker.children]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        with running(servers, tmp_path, ["other"]):
            assert task.result(timeout=20) == "k"
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
            until(lambda: not Path(f"/proc/{frozen[1]}").exists(), "the old child has ended", 5)
            assert task.status().worker == "other"
            assert task.status().attempt == 2
    assert starts(path)["k"] == 2


@pytest.mark.parametrize("broker", ["kafka", "streams"])
def test_redis_restarting_is_nothing_but_delay(
    broker: str, request: pytest.FixtureRequest, own_valkey: ValkeyServer, namespace: str, tmp_path: Path
) -> None:
    url = request.getfixturevalue("kafka").url if broker == "kafka" else own_valkey.url
    servers = Servers(url, own_valkey.url, namespace, heartbeat=0.3, lease=5, partitions=2)
    path = tmp_path / "ledger"
    with servers.app() as app, running(servers, tmp_path, ["w1", "w2"]) as workers:
        tasks = app.submit_many([{"task": "work", "args": [str(path), f"k{i}", 0.1]} for i in range(300)])
        for stop in (own_valkey.stop, own_valkey.kill):
            done = len(finishes(path))
            until(lambda done=done: len(finishes(path)) > done + 30, "some more are done")  # type: ignore[misc]
            stop()
            own_valkey.start()
        assert [task.result(timeout=60) for task in tasks] == [f"k{i}" for i in range(300)]
        assert app.failures() == []
        for worker in workers:
            assert worker.text.count("waiting for the store") <= 4, worker.text
    assert set(starts(path).values()) == {1}


def test_redis_emptied_under_load_loses_no_task(own_valkey: ValkeyServer, kafka: KafkaServer, namespace: str, tmp_path: Path) -> None:
    """Kafka remembers: what is unfinished is read again from the committed low-water; running tasks go on."""
    servers = Servers(kafka.url, own_valkey.url, namespace, heartbeat=0.3, lease=3, partitions=2)
    path = tmp_path / "ledger"
    with servers.app() as app, running(servers, tmp_path, ["w1", "w2"]) as workers, ThreadPoolExecutor() as pool:
        long = app.submit("work", str(path), "long", 6.0)
        tasks = app.submit_many([{"task": "work", "args": [str(path), f"k{i}", 0.02]} for i in range(400)])
        until(lambda: len(finishes(path)) > 100 and starts(path)["long"], "a quarter is done")
        last = pool.submit(app.results, [task.id for task in tasks[-50:]], 60)
        until(lambda: app._clients.waiter._waiting.keys() > {tasks[-1].id}, "somebody waits for the last")
        app._clients.store.redis.flushall()
        until(lambda: len(finishes(path)) == 401, "all are done", 60)
        assert last.result(timeout=20) == [f"k{i}" for i in range(350, 400)]
        assert long.result(timeout=20) == "long"
        assert app.submit("add", 1, 1).result(timeout=20) == 2
        assert any("was emptied" in worker.text for worker in workers)
    assert starts(path)["long"] == 1
