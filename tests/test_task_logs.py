"""The distributed log: what tasks log and print, on both brokers, with real workers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cli_shell import Shell
from harness import Servers, Worker, until
from playwright.sync_api import Page, expect
from starlette.testclient import TestClient
from web_house import client, served

import krq
from krq import loglines
from krq.dev.valkey import ValkeyServer
from krq.loglines import MAX_BYTES, LogLine
from krq.store import lines as store_lines


class House(NamedTuple):
    servers: Servers
    app: krq.KRQ
    worker: Worker
    folder: Path


@pytest.fixture(scope="module", params=["kafka", "streams"])
def house(request: pytest.FixtureRequest, valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A worker on each broker, for all tests of this file."""
    folder = tmp_path_factory.mktemp("logs")
    broker = request.getfixturevalue("kafka").url if request.param == "kafka" else valkey.url
    servers = Servers(broker, valkey.url, f"t{os.urandom(5).hex()}", heartbeat=0.3, lease=3, partitions=2)
    worker = Worker(servers, folder / "w.log", script="log_app.py").ready()
    with servers.app() as app:
        yield House(servers, app, worker, folder)
    worker.close()


def said(house: House, name: str, *args: Any) -> list[LogLine]:
    """All lines of a task, once it has ended."""
    handle = house.app.submit(name, *args)
    handle.wait(timeout=20)
    return list(handle.follow())


def texts(lines: list[LogLine], stream: str = "") -> list[str]:
    return [line.text for line in lines if stream in ("", line.stream)]


# --- catching ------------------------------------------------------------------------------------


def test_of_a_thread(house: House) -> None:
    before = time.time()
    lines = said(house, "says", "apple", 2)
    assert texts(lines, "log") == ["apple is logged 0", "apple is logged 1"]
    assert texts(lines, "stdout") == ["apple is printed 0", "apple is printed 1", "apple has no end"]
    assert texts(lines, "stderr") == ["apple is an error 0", "apple is an error 1"]
    assert texts(lines)[:3] == ["apple is logged 0", "apple is printed 0", "apple is an error 0"], "in the order of saying"
    assert {(line.attempt, line.worker) for line in lines} == {(1, "w")}
    assert (lines[0].level, lines[0].logger) == ("INFO", "shop.orders")
    assert all(before <= line.at <= time.time() for line in lines)
    assert "apple is printed 0" in house.worker.text, "what is printed is printed all the same"


def test_of_a_coroutine(house: House) -> None:
    lines = said(house, "says_async", "pear", 3)
    assert texts(lines, "stdout") == ["pear 0", "pear 1", "pear 2", "pear from a thread"]
    assert texts(lines, "log") == ["pear 0", "pear 1", "pear 2"]
    assert texts(lines, "stderr") == [], "what handlers write is caught once"
    assert house.worker.text.count("pear 1\n") == 2, "a warning of an app that configures nothing goes to stderr as ever, and once"


def test_of_a_process_of_its_own(house: House) -> None:
    lines = said(house, "says_alone", "fig")
    assert texts(lines)[:2] == ["fig alone", "fig printed alone"]
    assert lines[2].text.startswith("it failed\nTraceback") and lines[2].text.endswith("ValueError: from afar")
    assert lines[2].level == "ERROR"
    assert texts(lines)[3:] == ["no end"]


def test_of_a_process_that_hangs_and_is_killed(house: House) -> None:
    (handle,) = house.app.submit_many([{"task": "says_alone", "args": ["date", "hang"], "options": {"timeout": 0.3}}])
    assert handle.wait(timeout=20).status is krq.TaskStatus.FAILED
    assert texts(list(handle.follow()))[:2] == ["date alone", "date printed alone"]


def test_tasks_side_by_side_are_told_apart(house: House) -> None:
    words = ["red", "green", "blue"]
    handles = [house.app.submit(name, word, 40) for word in words for name in ("in_parts", "says_async")]
    for handle, (word, name) in zip(handles, [(word, name) for word in words for name in "pa"], strict=True):
        handle.result(timeout=20)
        lines = texts(list(handle.follow()), "stdout")
        assert lines[:40] == [f"{word} {i}" for i in range(40)], (word, name)


def test_each_attempt_has_its_lines(house: House) -> None:
    lines = said(house, "fails_once")
    assert [(line.attempt, line.text) for line in lines] == [(1, "attempt 1"), (2, "attempt 2")]
    handle = house.app.submit("fails_once")
    handle.result(timeout=20)
    until(lambda: len(handle.logs()) == 2, "both lines are there")
    assert texts(handle.logs(attempt=2)) == ["attempt 2"]
    assert texts(handle.logs(limit=1)) == ["attempt 2"]
    assert texts(asyncio.run(handle.alogs(1))) == ["attempt 1"]


def test_what_is_hard_to_show_arrives_as_text(house: House) -> None:
    lines = texts(said(house, "odd"))
    assert lines[0] == "<script>document.title='owned'</script>\x1b[31mred\x1b[0m\x00"
    assert lines[1].startswith("xxx") and lines[1].endswith("xEND") and "characters are cut out" in lines[1]
    assert all(len(line.encode()) <= MAX_BYTES for line in lines)
    assert lines[3:] == ["a surrogate \\udcff", "one\n12:00:00.000  INFO  two", "%d apples", "30%", "windows", ""]


def test_threads_that_a_task_starts_need_its_context(house: House) -> None:
    assert texts(said(house, "in_threads")) == ["carried over"]


CONFIGURED = """
import logging, sys
from krq import context
from krq.capture import Capture
from krq.hooks import Attempt
from krq.message import Message

logging.basicConfig(level=sys.argv[1], format="handler: %(message)s") if len(sys.argv) > 1 else None
found = []
capture = Capture(lambda _, line: found.append((line.stream, line.text)))
capture.install()
attempt = Attempt(message=Message(task="t"), id="i", number=1, epoch=1, failures=0, deaths=0, queue="q", worker="w", task=None, sent=0)
app = logging.getLogger("app")
app.warning("outside")
context.enter(context.Context(attempt, None))
quiet, own = logging.getLogger("quiet"), logging.getLogger("own")
quiet.addFilter(lambda record: "secret" not in record.getMessage())
own.propagate = False
app.info("info")
quiet.error("secret")
own.error("own")
logging.basicConfig(format="late: %(message)s")
app.error("error")
context.enter(None)
print(found)
"""


@pytest.mark.parametrize(("level", "lines", "stderr"), [
    ((), ["info", "own", "error"], ["outside", "late: error"]),
    (("WARNING",), ["own", "error"], ["handler: outside", "handler: error"]),
])
def test_logging_of_the_application_stays_as_it_is(level: tuple[str, ...], lines: list[str], stderr: list[str]) -> None:
    run = subprocess.run([sys.executable, "-c", CONFIGURED, *level], capture_output=True, text=True, timeout=30, check=True)
    assert run.stdout == f"{[('log', text) for text in lines]}\n"
    assert [row for row in run.stderr.splitlines() if row != "own"] == stderr


@pytest.mark.parametrize("name", ["floods", "floods_alone"])
def test_a_flood_is_bounded_and_told(house: House, name: str) -> None:
    said(house, name, 15_000)
    task_id = house.app.tasks(name=name, limit=1)[0].id
    lines = house.app.logs(task_id)
    assert lines[-1].text == "line 14999", "the end is what is kept"
    told = at = 0
    for one in lines:
        if one.stream == "krq":
            told += number(one, 0)
            continue
        assert number(one, 1) >= at + told if at else True
        if at and name == "floods":  # of a process of its own what is missing may be told in a line that is missing
            assert number(one, 1) == at + told, "what is missing is counted, and told in its place"
        at, told = number(one, 1) + 1, 0
    with house.app.store.plain() as redis:
        assert redis.xlen(house.app.store.keys("log", task_id)) <= 1_200
        assert 0 < redis.ttl(house.app.store.keys("log", task_id)) <= house.app.config.result_ttl + 1
    assert len(lines) == 1_000


def number(line: LogLine, word: int) -> int:
    return int(line.text.split()[word].replace(",", ""))


# --- reading -------------------------------------------------------------------------------------


def test_following_ends_with_the_task(house: House) -> None:
    gate = house.folder / f"gate{time.monotonic_ns()}"
    handle = house.app.submit("lingers", str(gate))
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.extend(line.text for line in handle.follow()), daemon=True)
    reader.start()
    until(lambda: found == ["before"], "the first line came while it runs")
    assert reader.is_alive()
    gate.touch()
    reader.join(10)
    assert not reader.is_alive() and found == ["before", "after"]

    async def gather() -> list[str]:
        return [line.text async for line in handle.follow()]

    assert asyncio.run(gather()) == found


def test_a_task_that_nobody_knows(house: House) -> None:
    for look in (house.app.logs, house.app.follow_logs):
        with pytest.raises(krq.errors.TaskNotFound):
            look("nobody")  # type: ignore[operator]


def test_what_redis_has_lost_the_log_has(house: House) -> None:
    lines = said(house, "says", "plum")
    task_id = house.app.tasks(name="says", limit=1)[0].id
    until(lambda: [page for page in in_log(house) if page.id == task_id], "it is in the log")
    with house.app.store.plain() as redis:
        redis.delete(house.app.store.keys("log", task_id))
    assert house.app.logs(task_id, log_too=False) == []
    assert house.app.logs(task_id) == lines
    with house.app.store.plain() as redis:
        redis.delete(house.app.store.keys("task", task_id))
    assert list(house.app.follow_logs(task_id)) == lines


def in_log(house: House) -> list[loglines.LogPage]:
    return [loglines.decode_page(record.value) for _, record in house.app.broker.read(house.app.config.logs_topic, 1000)]


def test_lines_of_a_worker_that_is_killed_are_there(house: House) -> None:
    gate = house.folder / f"gate{time.monotonic_ns()}"
    own = Servers(house.servers.broker, house.servers.backend, f"t{os.urandom(5).hex()}", **house.servers.settings)
    worker = Worker(own, house.folder / f"k{time.monotonic_ns()}.log", "k", script="log_app.py").ready()
    try:
        with own.app() as app:
            handle = app.submit("lingers", str(gate))
            until(lambda: texts(app.logs(handle, log_too=False)) == ["before"], "it was said")
            (child,) = worker.children
            os.kill(child, signal.SIGKILL)
            until(lambda: [line.attempt for line in app.logs(handle)] == [1, 2], "another attempt has begun")
            gate.touch()
            handle.result(timeout=20)
            assert [(line.attempt, line.text) for line in handle.follow()] == [(1, "before"), (2, "before"), (2, "after")]
            late = app.submit("says", "last")
            late.result(timeout=20)
            assert worker.stop() == 0
            assert texts(app.logs(late))[-1] == "last has no end", "a worker that leaves sends what is left"
    finally:
        worker.close()


# --- front doors ---------------------------------------------------------------------------------


STREAMS = pytest.mark.parametrize("house", ["streams"], indirect=True)


@STREAMS
def test_on_the_command_line(house: House, tmp_path: Path) -> None:
    shell = Shell(tmp_path, house.servers.backend, house.servers.namespace)
    handle = house.app.submit("fails_once")
    handle.result(timeout=20)
    list(handle.follow())
    out = shell.ok("logs", handle.id).splitlines()
    assert out[0].endswith("stdout    attempt 1") and out[1] == "— attempt 2 on w —" and out[2].endswith("stdout    attempt 2")
    (row,) = shell.ok("logs", handle.id, "--json", "--attempt", "2").splitlines()
    assert (json.loads(row)["text"], json.loads(row)["attempt"]) == ("attempt 2", 2)
    out = shell.ok("logs", "-f", house.app.submit("odd").id)
    assert "<script>document.title='owned'</script>�[31mred�[0m�\n" in out
    assert "\n    12:00:00.000  INFO  two\n" in out, "no line looks like another"


@STREAMS
def test_the_dashboard_asks_once_for_all(house: House) -> None:
    lines = said(house, "says", "kiwi")
    task_id = house.app.tasks(name="says", limit=1)[0].id
    with client(house.app) as web:
        found = web.get("/api/logs", params={"id": task_id}).json()
        assert [one["text"] for one in found["lines"]] == texts(lines) and not found["cut"]
        assert set(found["lines"][0]) == {"at", "attempt", "worker", "text", "stream", "level", "logger"}
        assert web.get("/api/logs", params={"id": "nobody"}).json() == {"lines": [], "cut": False}
        assert count(house.app, lambda: fifty(web, task_id)) <= 2, "fifty pages ask once"


@STREAMS
def test_a_page_shows_lines_as_text_as_they_come(house: House, page: Page) -> None:
    gate = house.folder / f"gate{time.monotonic_ns()}"
    with served(house.servers, house.folder) as web:
        handle = house.app.submit("lingers", str(gate))
        page.goto(f"{web}/#/tasks/{handle.id}")
        lines = page.locator(".lines li span")
        expect(lines).to_have_text(["before"])
        gate.touch()
        expect(lines).to_have_text(["before", "after"])
        odd = house.app.submit("odd")
        odd.result(timeout=20)
        page.goto(f"{web}/#/tasks/{odd.id}")
        expect(lines.first).to_contain_text("<script>document.title='owned'</script>")
        assert "owned" not in page.title() and page.locator(".lines script").count() == 0


def fifty(web: TestClient, task_id: str) -> None:
    for _ in range(50):
        assert web.get("/api/logs", params={"id": task_id}).status_code == 200


def count(app: krq.KRQ, act: Callable[[], object]) -> int:
    """How many XREVRANGE the server has seen meanwhile."""

    def calls() -> int:
        with app.store.plain() as redis:
            return int(redis.info("commandstats").get("cmdstat_xrevrange", {"calls": 0})["calls"])

    before = calls()
    act()
    return calls() - before


def test_lines_that_stand_twice_are_read_once(house: House) -> None:
    batch = [("twice", LogLine(at=1.5, attempt=1, worker="w", text=text)) for text in "ab"]
    for _ in range(2):
        store_lines.keep(house.app.store, batch, 60)
    assert texts(house.app.logs("twice")) == ["a", "b"]
