"""What watching costs whoever works, and how fast it answers: drain with the dashboard open in ten tabs and `krq events -f` on a terminal;
pages of a million finished tasks; weight and first data of the page.

    python benchmarks/watched.py [--tasks 25000] [--finished 1000000]

Starts its own Kafka and Valkey on free ports. On two cores whatever a watcher computes is taken from the workers, so its share of
a core is told as well.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import delayed
import redis

import krq
from krq import listing
from krq.dev.kafka import KafkaServer
from krq.dev.valkey import ValkeyServer
from krq.info import TaskFilter
from krq.states import TaskStatus
from krq.store.scripts import Script

Row = Callable[..., None]
Worker = Callable[..., AbstractContextManager[subprocess.Popen[bytes]]]
TABS, ROUNDS = 10, 5
#: a failed task among so many, and one of another name
FAILED, RARE = 100, 10_000
_TICK = os.sysconf("SC_CLK_TCK")


# --- drain ---------------------------------------------------------------------------------------


def drain(row: Row, worker: Worker, kafka: KafkaServer, valkey: ValkeyServer, n: int, rounds: int = ROUNDS) -> None:
    """Drain alone and watched, in turn, one right after the other; the median of the ratios counts."""
    for how, goal in (("on a terminal", 0.97), ("piped, whole", None)):
        ratios, shares = [], []
        for number in range(rounds):
            rates = {}
            for which in ("alone", "watched") if number % 2 else ("watched", "alone"):
                namespace = f"{which}{number}{'t' if goal else 'p'}"
                rates[which], share = _drained(worker, kafka, valkey, namespace, n, which == "watched", terminal=goal is not None)
                if which == "watched":
                    shares.append(share)
            ratios.append(rates["watched"] / rates["alone"])
        ratio = statistics.median(ratios)
        met = None if goal is None else ratio >= goal
        row(f"drain with {TABS} tabs open and krq events -f {how}: ratio", ratio, "", "" if goal is None else f"≥ {goal}", met)
        row("  lowest and highest of the rounds", min(ratios), f"to {max(ratios):.2f}")
        row("  CPU of krq web, of one core", statistics.median(share[0] for share in shares) * 100, "%")
        row("  CPU of krq events -f, of one core", statistics.median(share[1] for share in shares) * 100, "%")


def _drained(worker: Worker, kafka: KafkaServer, valkey: ValkeyServer, namespace: str, n: int, watched: bool, *,
             terminal: bool) -> tuple[float, tuple[float, float]]:
    """Tasks a second, and the watchers' shares of a core."""
    store = redis.Redis(port=valkey.port)
    with ExitStack() as stack:
        app = stack.enter_context(krq.KRQ(kafka.url, valkey.url, namespace))
        for start in range(0, n, 1000):
            app.submit_many([{"task": "nothing", "args": [i]} for i in range(start, min(n, start + 1000))])
        key = app._clients.store.keys("queue", "default")
        pids: list[int] = []
        tabs: list[Tab] = []
        if watched:
            environ = {**os.environ, "KRQ_BROKER": kafka.url, "KRQ_BACKEND": valkey.url, "KRQ_NAMESPACE": namespace}
            web, address = stack.enter_context(dashboard(environ))
            tabs = [stack.enter_context(Tab(address)) for _ in range(TABS)]
            pids = [web.pid, stack.enter_context(followed(environ, terminal=terminal)).pid]
            _until(lambda: all(tab.events > 1 for tab in tabs), "the tabs show something")
        stack.enter_context(worker(kafka.url, valkey.url, namespace))

        def done() -> int:
            return int(store.hget(key, "S") or 0)

        _until(lambda: done() >= n // 10, "the worker works")
        first, began, before = done(), time.perf_counter(), [cpu(pid) for pid in pids]
        _until(lambda: done() >= n, "all is done")
        seconds = time.perf_counter() - began
        spent = [(cpu(pid) - was) / seconds for pid, was in zip(pids, before, strict=True)] or [0.0, 0.0]
        assert all(tab.events > 2 or seconds < 2 for tab in tabs), "the tabs see it"
        return (n - first) / seconds, (spent[0], spent[1])


def _until(met: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


@contextmanager
def dashboard(environ: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``krq web``, and its host and port."""
    command = [sys.executable, "-m", "krq", "web", "--port", "0"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://([\d.:]+)", process.stdout.readline())
        assert found is not None
        try:
            yield process, found[1]
        finally:
            process.terminate()


@contextmanager
def followed(environ: dict[str, str], *, terminal: bool) -> Iterator[subprocess.Popen[bytes]]:
    """``krq events -f``: on a terminal that shows as fast as it can, or into nothing."""
    mine, theirs = os.openpty() if terminal else (os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY))
    command = [sys.executable, "-m", "krq", "events", "-f"]
    process = subprocess.Popen(command, env=environ, stdout=theirs, stderr=subprocess.DEVNULL)
    os.close(theirs)
    reader = threading.Thread(target=_read_all, args=(mine,), daemon=True)
    reader.start()
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        reader.join(5)
        os.close(mine)


def _read_all(fd: int) -> None:
    try:
        while os.read(fd, 65_536):
            pass
    except OSError:  # the terminal is gone
        pass


class Tab:
    """A page that is open: it reads the stream of events."""

    def __init__(self, address: str) -> None:
        self.events = 0
        self._connection = http.client.HTTPConnection(address, timeout=30)
        self._connection.request("GET", "/api/events")
        self._answer = self._connection.getresponse()

    def __enter__(self) -> Tab:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def _listen(self) -> None:
        try:
            for line in self._answer:
                self.events += line.startswith(b"event:")
        except (OSError, ValueError, AttributeError, http.client.HTTPException):  # closed
            pass

    def first(self) -> None:
        """Wait for the first data."""
        while not self._answer.readline().startswith(b"data:"):
            pass

    def __exit__(self, *_: object) -> None:
        if self._connection.sock is not None:
            self._connection.sock.close()


# --- lists ---------------------------------------------------------------------------------------


def lists(row: Row, valkey: ValkeyServer, n: int) -> None:
    """Pages of so many tasks that have ended: the first, one from the middle, and one of a name that few have."""
    line = delayed.Line(valkey.url)
    began = time.perf_counter()
    for start in range(0, n, delayed.BATCH):
        finish(line, min(delayed.BATCH, n - start), "rare" if start // delayed.BATCH % (RARE // delayed.BATCH) == 0 else "nothing")
    row(f"{n:,} tasks through the scripts, to look at", n / (time.perf_counter() - began), "tasks/s")
    config = line.store.config
    environ = {**os.environ, "KRQ_BROKER": valkey.url, "KRQ_BACKEND": valkey.url, "KRQ_NAMESPACE": config.namespace}
    with krq.KRQ(valkey.url, valkey.url, config.namespace) as app, dashboard(environ) as (_, address):
        middle = {status: _middle(app, line, status, n) for status in (TaskStatus.SUCCESS, TaskStatus.FAILED)}
        for what, wanted, cursor in (
            ("first page", TaskFilter(), None),
            ("page from the middle", TaskFilter(status=TaskStatus.SUCCESS), middle[TaskStatus.SUCCESS]),
            ("page from the middle of those that failed", TaskFilter(status=TaskStatus.FAILED), middle[TaskStatus.FAILED]),
            (f"page of a name that one in {RARE // delayed.BATCH} batches has", TaskFilter(name="rare"), None),
            ("page of a name that none has", TaskFilter(name="none"), None),
        ):
            took = [_timed(lambda wanted=wanted, cursor=cursor: app.page(wanted, cursor, 50)) for _ in range(20)]  # type: ignore[misc]
            asked = {"limit": "50", **({"cursor": cursor} if cursor else {}), **({"name": wanted.name} if wanted.name else {})}
            if wanted.status:
                asked["status"] = wanted.status.value
            # other limits are other questions: krq web answers the same one out of its memory for a second
            web = [_timed(lambda asked=asked, i=i: fetch(address, f"/api/tasks?{urlencode({**asked, 'limit': 41 + i % 10})}"))  # type: ignore[misc]
                   for i in range(10)]
            slowest = max(statistics.median(took), statistics.median(web)) * 1000
            row(f"{what}: KRQ.page, p50", statistics.median(took) * 1000, "ms")
            row("  the same through krq web", statistics.median(web) * 1000, "ms", "≤ 50 both", slowest <= 50)
    line.store.close()


def finish(line: delayed.Line, n: int, name: str) -> None:
    """Admit, take, settle and log tasks, as workers would."""
    line.admit([0.0] * n, name)
    line.number += 1
    answer = line.store.run(Script.TAKE, "w", line.number, n, ["default"], 600_000)
    assert answer.ok, answer
    error = json.dumps({"type": "ValueError", "message": "no such user", "traceback": "Traceback (most recent call last):\n" + 300 * "x"})
    taken = [(task[0], task[1], int(task[0], 16) % FAILED == 0) for task in answer.values[0]]
    assert len(taken) == n
    items = [(i, a, "F" if bad else "S", error if bad else "1", f'{{"id":"{i}"}}', 0, error if bad else "") for i, a, bad in taken]
    settled = line.store.run_all([(Script.SETTLE, ("w", items[at : at + 250])) for at in range(0, n, 250)])
    assert all(answer.ok for answer in settled), settled
    assert line.store.run(Script.LOGGED, "w", [(i, a, True) for i, a, _ in taken]).ok


def _middle(app: krq.KRQ, line: delayed.Line, status: TaskStatus, n: int) -> str:
    """The cursor of a page that ends in the middle of a list: nobody turns 10,000 pages to get there."""
    store: Any = line.store.redis
    keys = line.store.keys
    if status is TaskStatus.FAILED:
        (task_id, score), = store.zrange(keys("failed"), n // FAILED // 2, n // FAILED // 2, desc=True, withscores=True)
        place = listing._Place(5, "", task_id.decode(), score)
    else:
        place = listing._Place(4, "", store.lindex(keys("done"), n // 2).decode(), float(n - n // 2))
    cursor = listing._encoded(place)
    assert app.page(TaskFilter(status=status), cursor, 50).tasks
    return cursor


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


# --- the page ------------------------------------------------------------------------------------


def page(row: Row, valkey: ValkeyServer) -> None:
    """What a browser loads, and how soon the first numbers are there."""
    environ = {**os.environ, "KRQ_BROKER": valkey.url, "KRQ_BACKEND": valkey.url, "KRQ_NAMESPACE": "delayed"}
    with dashboard(environ) as (_, address):
        weight, parts = 0, 0
        took = []
        for _ in range(10):
            began = time.perf_counter()
            weight, parts = load(address)
            with_tab = Tab(address)
            with_tab.first()
            took.append(time.perf_counter() - began)
            with_tab.__exit__()
            time.sleep(1.1)  # nobody looks: what was known is forgotten
    row(f"the page with all its {parts} parts", weight / 1000, "kB", "≤ 150", weight <= 150_000)
    row("  first data on loopback, p50", statistics.median(took) * 1000, "ms", "≤ 300", statistics.median(took) <= 0.3)
    row("  the slowest of 10, of a server that has just started", max(took) * 1000, "ms")


def load(address: str) -> tuple[int, int]:
    """Everything that the page names, and what that names in turn: bytes and parts."""
    todo, seen, weight = ["/"], {"/"}, 0
    while todo:
        text = fetch(address, todo.pop())
        weight += len(text)
        for name in re.findall(rb"""["'](?:/static/|\./)([\w.]+\.(?:js|css|svg))["']""", text):
            path = f"/static/{name.decode()}"
            if path not in seen:
                seen.add(path)
                todo.append(path)
    return weight, len(seen)


def fetch(address: str, path: str) -> bytes:
    """The body of an answer."""
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200, (path, answer.status, body[:300])
    return body


def main() -> None:
    from bench import Table, worker

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=25_000, help="how many to drain each time; 0: none (default 25,000)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"pairs of drains (default {ROUNDS})")
    parser.add_argument("--finished", type=int, default=1_000_000, help="how many have ended; 0: none (default 1,000,000)")
    options = parser.parse_args()
    row = Table().row
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="krq-bench-")))
        valkey = stack.enter_context(ValkeyServer(folder / "valkey", fsync="off"))
        page(row, valkey)
        if options.finished:
            lists(row, valkey, options.finished)
            redis.Redis(port=valkey.port).flushall()
        if options.tasks:
            kafka = stack.enter_context(KafkaServer(folder / "kafka"))
            drain(row, worker, kafka, valkey, options.tasks, options.rounds)


if __name__ == "__main__":
    main()
