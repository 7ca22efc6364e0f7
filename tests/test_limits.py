"""Limits over all workers, on both brokers; told by a ledger that KRQ does not write."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness import Servers, Worker, ledger, running, until

import krq
from krq import TaskCancelled, TaskStatus
from krq.brokers.base import Outgoing
from krq.errors import OptionError
from krq.message import Message, claim, short_key
from krq.modules.limits import interval

#: workers of limits_app.py
limited = partial(running, script="limits_app.py")


def most_at_once(lines: list[list[str]]) -> int:
    """How many ran at the same time, of lines in the order in which they were written."""
    running = most = 0
    for what, *_ in lines:
        running += 1 if what == "S" else -1
        most = max(most, running)
    return most


def shell(servers: Servers, *words: str) -> str:
    """What a command prints."""
    command = [sys.executable, "-P", "-m", "krq", *words]
    return subprocess.run(command, env=servers.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout


def row(servers: Servers, name: str) -> dict[str, Any]:
    """The line of a task in ``krq limits``."""
    (found,) = json.loads(shell(servers, "limits", name, "--json"))
    return dict(found)


def idle(app: krq.KRQ) -> bool:
    """Nothing is left, and no place is held."""
    stats = app.stats()
    left = sum(queue.ready + queue.parked + queue.scheduled for queue in stats.queues.values())
    return not left and not stats.processing and not any(limit.running or limit.parked for limit in app.limits())


# --- over two workers ----------------------------------------------------------------------------


def test_limits_hold_over_all_workers(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    three, each, rated, row = (tmp_path / name for name in ("three", "each", "rated", "row"))
    with limited(servers, tmp_path, ["a", "b"]) as workers:
        sent = app.submit_many([{"task": "three", "args": [str(three), n]} for n in range(40)])
        sent += app.submit_many([
            {"task": "each", "args": [str(each), f"k{n % 5}"], "options": {"key": f"k{n % 5}"}} for n in range(30)
        ])  # fmt: skip
        sent += app.submit_many([{"task": "rated", "args": [str(rated), n]} for n in range(25)])
        rows = [(f"k{n % 3}", n // 3) for n in range(36)]
        sent += app.submit_many([{"task": "row", "args": [str(row), key, n], "options": {"key": key}} for key, n in rows])
        app.results([handle.id for handle in sent], timeout=60)
        until(lambda: idle(app), "nothing is left")
        workers[0].stop()
    assert (len(ledger(three)), most_at_once(ledger(three))) == (80, 3)
    assert most_at_once(ledger(each)) > 1
    for key in (f"k{n}" for n in range(5)):
        assert most_at_once([line for line in ledger(each) if line[1] == key]) == 1
    check_rate([float(line[3]) for line in ledger(rated) if line[0] == "S"])
    check_rows(ledger(row))


def check_rate(starts: list[float]) -> None:
    """10/s: no more than 11 in any second, and no much slower. A start is noted a moment after its task was taken."""
    starts.sort()
    assert len(starts) == 25
    assert 2.2 < starts[-1] - starts[0] < 5
    assert max(sum(at <= other < at + 0.95 for other in starts) for at in starts) <= 11


def check_rows(lines: list[list[str]]) -> None:
    """Each key in order, its retries in between, and never two at once."""
    told: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for what, key, n, attempt in lines:
        if what == "S":
            told[key].append((int(n), int(attempt)))
    wanted = [(n, attempt) for n in range(12) for attempt in ((1, 2, 3) if n % 3 == 0 else (1,))]
    assert dict(told) == dict.fromkeys(("k0", "k1", "k2"), wanted)


def test_a_killed_workers_place_is_free(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    path = tmp_path / "alone"
    with limited(servers, tmp_path, ["a", "b"]) as workers:
        first = app.submit("alone", str(path), "long")
        until(lambda: ledger(path), "it runs")
        rest = app.submit_many([{"task": "alone", "args": [str(path), f"n{n}"]} for n in range(4)])
        until(lambda: {app.status(one.id).waits_for for one in rest} == {"max_concurrency"}, "the others wait")
        owner = app.status(first.id).worker
        next(worker for worker in workers if worker.log.stem == owner).kill_tree()
        app.results([first.id, *(one.id for one in rest)], timeout=30)
        until(lambda: idle(app), "nothing is left")
    lines = ledger(path)
    assert Counter(line[1] for line in lines if line[0] == "S") == {"long": 2, "n0": 1, "n1": 1, "n2": 1, "n3": 1}
    assert most_at_once(lines[1:]) == 1


# --- one worker ----------------------------------------------------------------------------------


@pytest.fixture
def worker(servers: Servers, tmp_path: Path) -> Iterator[Worker]:
    with limited(servers, tmp_path, ["w"]) as workers:
        yield workers[0]


def test_one_beside_another_is_not_run(servers: Servers, worker: Worker, app: krq.KRQ, tmp_path: Path) -> None:
    path, topic = str(tmp_path / "single"), app.config.topic(app.config.queue)
    options = {"key": "k", "unique": True}
    first = app.send_task("single", [path, "k", 1.0], **options)
    until(lambda: ledger(Path(path)), "it runs")
    assert app.send_task("single", [path, "k", 1.0], **options) == first
    other, again = app.submit_many([{"task": "single", "args": [path, "other"], "options": {"key": "o", "unique": True}}] * 2)
    assert (other.id, other.id != first) == (again.id, True)
    # who did not look before sending: another language, another version, an id of its own
    foreign = {"task": "single", "task-id": "foreign", "args": [path, "k"], "key": "k", "unique": 0}
    app._clients.broker.publish([Outgoing(topic, json.dumps(foreign).encode(), "k")], 10)
    with pytest.raises(TaskCancelled, match=f"DUPLICATE.*{first}"):
        app.handle(app.send_task("single", [path, "k"], task_id="mine", **options)).result(10)
    until(lambda: app.infos(["foreign"])[0], "it is admitted")
    with pytest.raises(TaskCancelled, match=f"DUPLICATE.*{first}"):
        app.result("foreign", 10)
    assert app.result(first, 10) == first
    assert app.send_task("single", [path, "k"], **options) != first
    # without a key the arguments are it
    arguments = [app.send_task("hourly", [path + end], unique=3600) for end in ("1", "1", "2")]
    app.results(arguments, 10)
    assert app.send_task("hourly", [path + "1"], unique=3600.0) == arguments[0] == arguments[1] != arguments[2]
    assert Counter(line[1] for line in ledger(Path(path)) if line[0] == "S")["k"] <= 2


def test_limits_change_while_it_runs(servers: Servers, worker: Worker, app: krq.KRQ, tmp_path: Path) -> None:
    path = tmp_path / "three"
    app.limit("three", max_concurrency=0)
    sent = app.submit_many([{"task": "three", "args": [str(path), n]} for n in range(6)])
    until(lambda: app.stats().queues["default"].parked == 6, "all are parked")
    assert {info.id: info.waits_for for info in app.tasks(TaskStatus.QUEUED)} == {one.id: "max_concurrency" for one in sent}
    found = row(servers, "three")
    assert (found["max_concurrency"], found["changed"], found["running"], found["parked"]) == (0, True, 0, 6)
    assert not path.exists()
    assert "changed" in shell(servers, "limits", "three", "--max-concurrency", "1")
    app.results([one.id for one in sent], 20)
    assert most_at_once(ledger(path)) == 1
    shell(servers, "limits", "three", "--reset")
    found = row(servers, "three")
    assert (found["max_concurrency"], found["changed"]) == (3, False)


def test_many_are_cancelled_at_once(servers: Servers, worker: Worker, app: krq.KRQ, tmp_path: Path) -> None:
    path = tmp_path / "alone"
    app.limit("alone", max_concurrency=0)
    app.pause("other")
    parked = app.submit_many([{"task": "alone", "args": [str(path), "k"], "options": {"key": f"k{n % 2}"}} for n in range(8)])
    later = app.send_task("single", [str(path)], delay=3600, key="k1")
    ready = app.send_task("elsewhere", [str(path)], queue="other")
    after = app.send_task("single", [str(path)], after=[later])
    until(lambda: app.stats().queues["default"].parked == 8 and app.stats().queues["other"].ready, "all are admitted")
    with pytest.raises(OptionError, match="filter"):
        app.cancel_many()
    assert app.cancel_many(name="alone", key="k0") == 4
    assert app.cancel_many(key="k1") == 5
    assert app.cancel_many(key="k1") == 0
    assert {app.status(one).status for one in (*parked, later)} == {TaskStatus.CANCELLED}
    assert app.status(after).status is TaskStatus.FAILED
    assert shell(servers, "cancel", "--queue", "other", "--yes").startswith("1 task")
    assert app.status(ready).status is TaskStatus.CANCELLED
    assert not path.exists()


# --- definitions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {"max_concurrency": 0}, {"max_concurrency": "3"}, {"max_concurrency_per_key": -1}, {"rate_limit": "5"}, {"rate_limit": "0/s"},
    {"rate_limit": "5/0s"}, {"rate_limit": "-1/s"}, {"rate_limit": "1/w"}, {"unique": 0}, {"unique": -1.0}, {"unique": float("nan")},
    {"unique": "yes"}, {"in_order": True, "max_concurrency_per_key": 2}, {"in_order": True, "priority": 1}, {"in_order": True, "every": 5},
])
def test_contradictions_are_refused_where_they_are_written(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        krq.KRQ().task(name="x", **options)(lambda: None)


def test_calls_are_refused_before_they_are_sent() -> None:
    app = krq.KRQ("localhost:1", "localhost:1")
    ordered = app.task(name="ordered", in_order=True)(lambda: None)
    with pytest.raises(OptionError, match="needs a key"):
        ordered.send()
    with pytest.raises(OptionError, match="priority"):
        ordered.options(key="k", priority=1).send()
    with pytest.raises(OptionError, match="belongs to the task"):
        ordered.options(max_concurrency=1)  # type: ignore[call-arg]
    for wrong in ({"max_concurrency": -1}, {"max_concurrency": "all"}, {"rate_limit": "fast"}):
        with pytest.raises(OptionError):
            app.limit("ordered", **wrong)  # type: ignore[arg-type]


def test_rates_and_keys_as_redis_has_them() -> None:
    assert [interval(rate) for rate in ("100/m", "5/s", "1000/h", "2/10s", "0.5/s")] == [600, 200, 3600, 5000, 2000]
    assert short_key("k" * 64) == "k" * 64
    assert len(short_key("é" * 64)) <= 64
    assert claim(Message(task="t", args=[1], kwargs={"a": 1, "b": 2})) == claim(Message(task="t", args=[1], kwargs={"b": 2, "a": 1}))
    assert claim(Message(task="t", args=[1])) != claim(Message(task="t", args=[2])) != claim(Message(task="t", args=[1], key="k"))
