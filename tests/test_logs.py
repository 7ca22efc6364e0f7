"""KRQ's own log: the terminal, `krq.log` and `results.log`; many processes write to one file, and none of their lines is lost."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from harness import HERE, Servers, lines_of, until
from proxy import HOST, Proxy
from shard import Shard

from krq import config, logs
from krq.dev.valkey import ValkeyServer
from krq.errors import ConfigError, WorkerInitializationError
from krq.hooks import Attempt
from krq.message import Message
from krq.modules.journal import Journal
from krq.outcome import Cancelled, Died, ErrorInfo, Failed, Family, Outcome, RetryAt, Succeeded, TimedOut
from krq.store.scripts import Script, source

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ([A-Z]+) +([\w.]+)\[(\d+)\] (krq\.[\w.]+): (.+)")


def says_now(folder: Path, text: str) -> bool:
    """Whether `krq.log` has a line with this pattern, as it is now."""
    found = ""
    for path in folder.glob("krq.log*"):
        with suppress(FileNotFoundError):
            found += path.read_text()
    return re.search(text, found) is not None


def test_a_fork_writes_its_own_lines_and_no_others(tmp_path: Path) -> None:
    handler = logs.open_files(str(tmp_path), "w", 10_000, 2)
    log = logging.getLogger("krq.test")
    log.warning("before")
    handler.note(0.0, "DEBUG", "krq.test", "noted", {})
    pid = os.fork()
    if not pid:
        log.warning("of the fork")
        os._exit(0)
    os.waitpid(pid, 0)
    logs.close_files()
    said = [(found[3], found[5]) for found in map(LINE.fullmatch, lines_of(tmp_path, "krq.log")[1:]) if found]
    assert said == [(str(os.getpid()), "before"), (str(pid), "of the fork"), (str(os.getpid()), "noted")]


# --- the terminal --------------------------------------------------------------------------------

SAYS = """
import logging, sys
from krq import config, logs

logs.configure("DEBUG", sys.argv[1])
for name in logs.COLOURS:
    logging.getLogger("krq.test").log(getattr(logging, name), "said at %s", name)
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("krq.test").exception("it broke")
"""


def says(style: str, *, terminal: bool, **environ: str) -> str:
    """What it says on stderr, to a terminal or into a pipe."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    subprocess.run([sys.executable, "-c", SAYS, style], stderr=theirs, env={**clean, "TERM": "xterm", **environ}, check=True)
    os.set_blocking(ours, False)
    said = os.read(ours, 100_000).decode()
    os.close(theirs)
    os.close(ours)
    return said


def test_colours_on_a_terminal() -> None:
    said = says("text", terminal=True)
    for name, colour in {"DEBUG": "36", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "31;47"}.items():
        assert re.search(rf"\x1b\[{colour}m[-\d :.]+ {name} *\x1b\[0m krq.test: said at {name}", said.replace("m\x1b[47", ";47")), said


@pytest.mark.parametrize(("terminal", "environ"), [(False, {}), (True, {"NO_COLOR": "1"})], ids=["pipe", "NO_COLOR"])
def test_no_colours_elsewhere(terminal: bool, environ: dict[str, str]) -> None:
    said = says("text", terminal=terminal, **environ)
    assert "\x1b" not in said
    assert "WARNING  krq.test: said at WARNING" in said and "ZeroDivisionError" in said


def test_json_is_an_object_a_line() -> None:
    *said, broke = map(json.loads, says("json", terminal=True).splitlines())
    assert [(one["level"], one["message"]) for one in said] == [(name, f"said at {name}") for name in logs.COLOURS]
    assert set(said[0]) == {"time", "level", "logger", "worker", "pid", "message"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said[0]["time"])
    assert broke["traceback"].endswith("ZeroDivisionError: division by zero")


def test_a_format_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match="log_format='xml' is none of text, json"):
        config.load({}, {"KRQ_LOG_FORMAT": "xml"})


# --- the journal ---------------------------------------------------------------------------------

ERROR = ErrorInfo("ValueError", "two\nlines")


@pytest.mark.parametrize(("outcome", "level", "text"), [
    (Succeeded(b"3"), "DEBUG", "add x succeeded at attempt 2"),
    (Succeeded(b"3", Family((("default", b""),), (), "own", (), "fail")), "DEBUG", "add x made 1 task and ends with them at attempt 2"),
    (RetryAt(2.0, ERROR), "WARNING", "add x failed at attempt 2: ValueError: two lines; attempt 3 follows in 2.0 s"),
    (Failed(ERROR, why="old"), "ERROR", "add x failed at attempt 2: ValueError: two lines; no attempt follows (old): a dead letter"),
    (TimedOut(1.0, ERROR), "ERROR", "add x failed at attempt 2: ValueError: two lines; no attempt follows: a dead letter"),
    (Cancelled(), "INFO", "add x was cancelled while it ran, at attempt 2"),
    (Died("signal 9"), "WARNING", "add x lost its process at attempt 2: signal 9; it runs again, unless that was once too often"),
    (Failed(ErrorInfo("E", "x" * 9_999)), "ERROR", f"add x failed at attempt 2: E: {'x' * 296}…; no attempt follows: a dead letter"),
])
def test_each_end_is_one_line(outcome: Outcome, level: str, text: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "krq")
    journal = Journal()
    journal.worker_started("w")
    journal.ended(attempt("add"), outcome)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [(level, text)]


def test_a_name_can_forge_no_line(caplog: pytest.LogCaptureFixture) -> None:
    Journal().ended(attempt("add\n\x1b[31mWARNING"), RetryAt(1.0, ERROR))
    assert caplog.records[0].getMessage().startswith("add  [31mWARNING x failed")


def attempt(name: str) -> Attempt:
    return Attempt(
        message=Message(task=name), id="x", number=2, epoch=1, failures=0, deaths=0, queue="default", worker="w", task=None, sent=0.0,
    )


# --- workers -------------------------------------------------------------------------------------


@contextmanager
def worker(servers: Servers, err: Path, *options: str, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """`krq worker` of the usual tasks, ready; killed at the end."""
    command = [sys.executable, "-P", "-m", "krq", "worker", str(HERE / "tasks_app.py"), *options]
    with err.open("wb") as file:
        process = subprocess.Popen(command, env={**servers.environ, **environ}, stderr=file, start_new_session=True)
    try:
        until(lambda: process.poll() is not None or "is ready" in err.read_text(), f"{err.name} is ready")
        assert process.poll() is None, err.read_text()
        yield process
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture
def near(valkey: ValkeyServer, namespace: str) -> Servers:
    return Servers(valkey.url, valkey.url, namespace, heartbeat=0.2, lease=1.5)


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(folder, "results.log")] if (folder / "results.log").exists() else []


def test_two_workers_of_a_host_share_the_files_and_one_is_killed(near: Servers, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    small = {"KRQ_LOG_BYTES": "30000", "KRQ_LOG_FILES": "1000"}
    with (
        near.app() as app,
        worker(near, tmp_path / "one", "--worker-id", "one", "--log-dir", str(folder), **small) as one,
        worker(near, tmp_path / "two", "--worker-id", "two", "-p", "2", KRQ_LOG_DIR=str(folder), **small) as two,
    ):
        quick = app.submit_many([{"task": "add", "args": [n, n]} for n in range(300)])
        ill = [app.submit("fails", "", 1), app.submit("rejects")]
        later = app.submit("add", 1, 1)
        parked = app.send_task("add", [2, 2], delay=100)
        app.cancel(parked)
        for handle in [*quick, *ill, later]:
            handle.wait(timeout=30)
        until(lambda: app.stats().outbox == 0, "all ends are logged")
        held = app.submit("dies", str(tmp_path / "ledger"), str(tmp_path / "lives"))
        until(lambda: says_now(folder, f"it was running 1 tasks: {held.id}"), "a child died over it")
        (tmp_path / "lives").touch()
        assert held.result(timeout=20) == "alive"
        os.killpg(two.pid, signal.SIGKILL)
        until(lambda: says_now(folder, r"worker two\.\d has not beaten"), "the other saw it die")
        late = app.submit("add", 3, 3)
        late.wait(timeout=20)
        until(lambda: app.stats().outbox == 0, "all ends are logged, of the dead, too")
        one.send_signal(signal.SIGTERM)
        assert one.wait(20) == 0

    ended = {str(each) for each in [*quick, *ill, later, parked, held, late]}
    by_id = {each["id"]: each for each in results(folder)}
    assert (ended - by_id.keys(), by_id.keys() - ended, len(results(folder))) == (set(), set(), len(ended)), "one line each"
    assert {key: by_id[quick[4].id][key] for key in ("name", "status", "result", "attempt")} == {
        "name": "add", "status": "success", "result": 8, "attempt": 1,
    }
    assert by_id[quick[4].id]["worker"] in ("one", "two.1", "two.2")
    assert 0 < by_id[quick[4].id]["sent"] <= by_id[quick[4].id]["started"] <= by_id[quick[4].id]["finished"]
    assert (by_id[ill[0].id]["status"], by_id[ill[0].id]["attempt"]) == ("success", 2)
    assert (by_id[ill[1].id]["status"], by_id[ill[1].id]["error"]["type"]) == ("failed", "Reject")
    assert by_id[parked]["status"] == "cancelled", "no worker ran it"

    said = [found.groups() for line in lines_of(folder, "krq.log") if (found := LINE.fullmatch(line))]
    assert len(said) == len(lines_of(folder, "krq.log")), "whole lines"
    assert len(list(folder.glob("krq.log.*"))) > 1, "it was rotated"
    told = Counter(text for _, _, _, name, text in said if name == "krq.tasks")
    for handle in [*quick, later, late]:
        assert told[f"add {handle.id} received for attempt 1"] >= 1, "it may be handed back, and received by another"
        assert told[f"add {handle.id} began attempt 1"] == 1
        assert sum(text.startswith(f"add {handle.id} succeeded at attempt 1 after ") for text in told) == 1
    connections = [(who, text) for _, who, _, _, text in said if text.startswith(("connected", "disconnected"))]
    assert ("one", f"connected to Redis at {near.backend}") in connections
    assert ("two.1", f"connected to Redis Streams at {near.broker}: reads {near.namespace}.default") in connections
    assert ("one", f"disconnected from Redis Streams at {near.broker}") in connections
    assert ("INFO", "one", "worker one has left") in [(level, who, text) for level, who, _, _, text in said]

    shown = (tmp_path / "one").read_text() + (tmp_path / "two").read_text()
    assert re.search(rf"WARNING  krq.tasks: fails {ill[0].id} failed at attempt 1 .*ValueError: .*; attempt 2 follows in", shown)
    assert re.search(rf"ERROR    krq.tasks: rejects {ill[1].id} failed at attempt 1 .*Reject: not today; no attempt follows", shown)
    assert "succeeded" not in shown and "began" not in shown


def test_json_all_over_and_a_disk_that_fills_up_is_told_once(near: Servers, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "results.log").symlink_to("/dev/full")
    with near.app() as app, worker(near, tmp_path / "w", "--log-format", "json", "--log-dir", str(folder)) as process:
        for n in range(3):
            assert app.submit("add", n, 1).result(timeout=20) == n + 1
            until(lambda: app.stats().outbox == 0, "its end is logged")
        failed = app.submit("rejects")
        failed.wait(timeout=20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    shown = [json.loads(line) for line in (tmp_path / "w").read_text().splitlines()]
    assert [one["message"] for one in shown if "can't be written" in one["message"]] == [
        f"{folder / 'results.log'} can't be written: No space left on device. Tasks go on; its lines are lost meanwhile",
    ]
    (error,) = (one for one in shown if one["level"] == "ERROR")
    assert (error["id"], error["task"], error["attempt"], error["logger"]) == (failed.id, "rejects", 1, "krq.tasks")
    written = [json.loads(line) for line in lines_of(folder, "krq.log")]
    assert {one["pid"] for one in written} == {one["pid"] for one in shown}
    assert sum("succeeded" in one["message"] and one["task"] == "add" for one in written) == 3


@pytest.mark.parametrize(("make", "why"), [
    (lambda folder: folder.write_text(""), "File exists"),
    (lambda folder: (folder.mkdir(), (folder / "results.log").mkdir()), "Is a directory"),
    (lambda folder: (folder.mkdir(), (folder / "krq.log").symlink_to("/dev/full")), "No space left on device"),
], ids=["no folder", "no file", "full"])
def test_a_folder_that_can_t_be_written_is_told_at_the_start(tmp_path: Path, make: Any, why: str) -> None:
    folder = str(tmp_path / "logs")
    make(tmp_path / "logs")
    with pytest.raises(WorkerInitializationError, match=re.escape(f"log_dir={folder!r} can't be written: {why}. Let log_dir")):
        logs.open_files(folder, "w", 1_000, 2)
    assert logs.log_file() is None


def test_a_worker_does_not_start_without_its_files(near: Servers, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-P", "-m", "krq", "worker", str(HERE / "tasks_app.py"), "--log-dir", str(tmp_path / "file" / "logs")]
    done = subprocess.run(command, env=near.environ, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert re.search(r"Error: log_dir='.*' can't be written: Not a directory\. .* \[WORKER_INITIALIZATION_FAILED\]", done.stderr)


# --- results, and answers that are lost ----------------------------------------------------------


def test_of_two_who_log_an_outbox_each_line_is_of_one(shard: Shard) -> None:
    for name in ("a", "b"):
        shard.add(name)
    shard.register()
    shard.take(2)
    for name in ("a", "b"):
        shard.settle(name)
    items = [["a", 1, True], ["b", 1, True]]
    assert shard.run(Script.LOGGED, "w", items[1:], True).values == [["default:0:1"], [1]]
    assert shard.run(Script.LOGGED, "w", items, True).values == [["default:0:0"], [1]]
    assert shard.run(Script.LOGGED, "w", items, True).values == [[], []]


def test_a_lost_answer_costs_no_line(valkey: ValkeyServer, namespace: str, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    with Proxy(HOST, valkey.port) as proxy:
        far = Servers(valkey.url, f"redis://{HOST}:{proxy.port}/0", namespace, heartbeat=0.5, lease=5)
        with far.app() as app, worker(far, tmp_path / "w", KRQ_LOG_DIR=str(folder)):
            assert app.submit("add", 1, 1).result(timeout=20) == 2
            until(lambda: app.stats().outbox == 0, "its end is logged")
            proxy.lose(str(source(Script.LOGGED).sha).encode(), times=2)
            handles = app.submit_many([{"task": "add", "args": [n, n]} for n in range(20)])
            for handle in handles:
                handle.result(timeout=20)
            until(lambda: proxy.lost == 2, "two answers were lost")
            until(lambda: len(results(folder)) >= 21, "all have a line")
    found = Counter(each["id"] for each in results(folder))
    assert found.keys() >= {handle.id for handle in handles} and set(found.values()) == {1}
