"""``krq dev`` and the stack behind it: they start, work, stop, and leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
from cli_shell import until

from krq import KRQ, TaskStatus
from krq.cli import dev
from krq.dev.process import ServerError, free_port, is_free
from krq.dev.stack import PREFIX, Stack, port_or_free, same_backend, same_broker, sweep

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts processes in /proc")

TASKS = """
import time
import krq

app = krq.KRQ({given})

@app.task
def add(x: int, y: int) -> int:
    return x + y

@app.task
def sleep(seconds: float) -> None:
    time.sleep(seconds)
"""
#: a restarted server is trusted again after one lease
LEASE = {"lease": 3.0, "heartbeat": 0.5}


def processes() -> dict[int, int]:
    """Every live process and its parent."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            found[int(path.parent.name)] = int(parent)
    return found


def descendants(pid: int) -> set[int]:
    """The live processes that came from this one."""
    parents = processes()
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


class Dev:
    """One ``krq dev`` in a process of its own, with what it says."""

    def __init__(self, folder: Path, *words: str, **environment: str) -> None:
        self.port = free_port()
        self.log = folder / f"dev-{self.port}.log"
        self.url = f"redis://127.0.0.1:{self.port}/0"
        variables = {**os.environ, "TMPDIR": str(folder), "KRQ_LEASE": "3", "KRQ_HEARTBEAT": "0.5", **environment}
        page = () if "--web-port" in words else ("--web-port", "0")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "krq", "dev", "--port", str(self.port), *page, *words],
                cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, words: str, seconds: float = 40.0) -> None:
        until(lambda: words in self.said or self.process.poll() is not None, seconds)
        assert words in self.said, self.said

    def app(self, broker: str | None = None) -> KRQ:
        return KRQ(broker=broker or self.url, backend=self.url, **LEASE)

    def end(self, number: int) -> int:
        """Send it this signal; its exit code, once nothing of it is left."""
        family = descendants(self.process.pid)
        assert family, "it has servers"
        self.process.send_signal(number)
        code = self.process.wait(30)
        until(lambda: not family & set(processes()), 5)
        until(lambda: is_free(self.port), 5)
        return code


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Dev]]:
    """Starts ``krq dev`` in the test's folder."""
    started: list[Dev] = []

    def begin(*words: str, **environment: str) -> Dev:
        started.append(Dev(tmp_path, *words, **environment))
        return started[-1]

    yield begin
    for one in started:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.py"
    path.write_text(TASKS.format(given=""))
    return path


# --- krq dev --------------------------------------------------------------------------------------


def test_dev_runs_an_app_and_ctrl_c_ends_it(start: Callable[..., Dev], tasks: Path) -> None:
    (tasks.parent / "queue.py").write_text("raise SystemExit('the worker loads the module queue of Python')")
    one = start("tasks.py", "--processes", "2", "--concurrency", "3")
    one.wait_for("is ready")
    with one.app() as app:
        assert app.submit("add", 1, 2).result(timeout=10) == 3
        until(lambda: [worker.slots for worker in app.workers()] == [3, 3])
    assert f"export KRQ_BROKER={one.url} KRQ_BACKEND={one.url}\n" in one.said
    assert one.end(signal.SIGINT) == 0
    assert "Stopping; Ctrl-C again stops at once." in one.said
    assert "Traceback" not in one.said
    assert not list(tasks.parent.glob(f"{PREFIX}*")), "the temporary folder is gone"


def test_dev_shows_the_dashboard_of_the_app(start: Callable[..., Dev], tasks: Path) -> None:
    tasks.write_text(tasks.read_text().replace("krq.KRQ(", 'krq.KRQ(namespace="mine", '))
    page = f"http://127.0.0.1:{free_port()}/"
    one = start("tasks.py", "--web-port", page.rpartition(":")[2].rstrip("/"))
    one.wait_for("is ready")
    assert f"Web     {page}\n" in one.said

    def seen() -> list[str]:
        with suppress(OSError), urlopen(f"{page}api/workers", timeout=5) as answer:
            return [worker["id"] for worker in json.load(answer)["workers"]]
        return []

    until(lambda: len(seen()) == 1)
    assert one.end(signal.SIGINT) == 0


def test_a_dashboard_that_ends_does_not_end_dev(start: Callable[..., Dev], tasks: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        one = start("--web-port", str(taken.getsockname()[1]))
        one.wait_for("Note: the dashboard ended (exit code 1)")
        assert one.end(signal.SIGTERM) == 0


def test_dev_killed_leaves_no_process_behind(start: Callable[..., Dev], tasks: Path) -> None:
    one = start("tasks:app")
    one.wait_for("is ready")
    assert one.end(signal.SIGKILL) == -signal.SIGKILL
    (left,) = tasks.parent.glob(f"{PREFIX}*")
    two = start()
    two.wait_for("Ctrl-C stops the servers.")
    assert not left.exists(), "the next one clears up"
    assert "krq worker tasks.py" in two.said, "what to type"
    assert "app = krq.KRQ()" in two.said
    assert two.end(signal.SIGTERM) == 0


def test_a_second_ctrl_c_is_immediate(start: Callable[..., Dev], tasks: Path) -> None:
    one = start("tasks.py")
    with one.app() as app:
        one.wait_for("is ready")
        handle = app.submit("sleep", 60)
        until(lambda: handle.status().status is TaskStatus.PROCESSING)
    one.process.send_signal(signal.SIGINT)
    one.wait_for("1 tasks are running")
    began = time.monotonic()
    assert one.end(signal.SIGINT) == 130
    assert time.monotonic() - began < 5


def test_kept_tasks_run_after_the_next_start(start: Callable[..., Dev], tasks: Path) -> None:
    one = start("--keep")
    one.wait_for("kept for the next start")
    with one.app() as app:
        task_id = app.submit("add", 2, 3).id
    assert one.end(signal.SIGINT) == 0
    assert (tasks.parent / ".krq" / ".gitignore").read_text() == "*\n"
    two = start("tasks.py", "--data", ".krq")
    two.wait_for("is ready")
    with two.app() as app:
        assert app.result(task_id, timeout=20) == 5
    assert two.end(signal.SIGINT) == 0
    folder = tasks.parent / ".krq" / "logs"
    assert f"krq.log, results.log in {folder}\n" in two.said
    assert task_id in (folder / "krq.log").read_text() and task_id in (folder / "results.log").read_text()


def test_a_server_that_dies_ends_dev(start: Callable[..., Dev], tasks: Path) -> None:
    one = start("tasks.py")
    one.wait_for("is ready")
    found = re.search(r"Valkey .* process (\d+)", one.said)
    assert found is not None
    os.kill(int(found[1]), signal.SIGKILL)
    assert one.process.wait(20) == 1
    assert re.search(rf"Error: valkey \(process {found[1]}\) was killed by SIGKILL. Its log, .*, ends so:", one.said)
    assert "[DEV_SERVER_DIED]" in one.said
    assert "Traceback" not in one.said


def test_an_app_with_servers_of_its_own_is_explained(start: Callable[..., Dev], tasks: Path) -> None:
    tasks.write_text(TASKS.format(given='broker="localhost:9092"'))
    one = start("tasks.py")
    assert one.process.wait(20) == 1
    assert f"tasks.py names other servers in its KRQ(...): broker='localhost:9092' where `krq dev` has '{one.url}'." in one.said
    assert "Leave them out there" in one.said
    assert "krq dev --kafka" in one.said
    assert "The worker ended (exit code 1); so do the servers." in one.said
    assert is_free(one.port)


def test_refusals(start: Callable[..., Dev], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        one = start("--port", str(other.getsockname()[1]))
        two = start("--processes", "2")
        three = start("--kafka-port", "9092")
        assert (one.process.wait(20), two.process.wait(20), three.process.wait(20)) == (1, 2, 2)
    assert re.fullmatch(r"Error: valkey cannot listen on .* \[DEV_PORT_TAKEN\]\n", one.said)
    assert "give APP, too" in two.said
    assert "give --kafka, too" in three.said
    assert not list(tmp_path.glob(f"{PREFIX}*"))


def test_the_same_kept_data_twice(start: Callable[..., Dev]) -> None:
    one = start("--keep")
    one.wait_for("Ctrl-C stops")
    two = start("--keep")
    assert two.process.wait(20) == 1
    assert re.search(r"^Error: valkey is already running with the data in .* \[DEV_STALE_PID\]\n$", two.said)
    assert one.end(signal.SIGINT) == 0


def test_dev_with_kafka(start: Callable[..., Dev], tasks: Path) -> None:
    port = free_port()
    one = start("tasks.py", "--kafka", "--kafka-port", str(port))
    one.wait_for("is ready", 60)
    broker = f"127.0.0.1:{port}"
    assert f"export KRQ_BROKER={broker} KRQ_BACKEND=" in one.said
    with one.app(broker) as app:
        assert app.submit("add", 1, 2).result(timeout=20) == 3
    assert one.end(signal.SIGINT) == 0
    assert is_free(port)


def test_kafka_that_cannot_be_fetched(start: Callable[..., Dev], tmp_path: Path) -> None:
    (tmp_path / "jgo.conf").write_text(f"[repositories]\nmirror = http://127.0.0.1:{free_port()}\n")
    one = start("--kafka", "--kafka-port", str(free_port()), JGO_CONFIG_FILE=str(tmp_path / "jgo.conf"), KRQ_CACHE=str(tmp_path / "cache"),
                https_proxy="http://127.0.0.1:1", HTTPS_PROXY="http://127.0.0.1:1")
    assert one.process.wait(30) == 1
    assert one.said.startswith("Error: Apache Kafka ")
    assert one.said.endswith("[DEV_DOWNLOAD_FAILED]\n")
    assert "Traceback" not in one.said


def test_the_download_shows_its_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with dev._progress() as report:
        assert capsys.readouterr().out == "", "nothing when nothing is fetched"
        for done in range(0, 47_000_000, 5_000_000):
            report("Apache Kafka", done, 46_900_000)
        report("Apache Kafka", 46_000_000, 46_000_000)
    assert capsys.readouterr().out.startswith("Apache Kafka is fetched from Maven Central, this once (46 MB).\n")


# --- the stack ------------------------------------------------------------------------------------


def test_a_stack_without_a_folder_leaves_none() -> None:
    stack = Stack(fsync="off")
    assert not stack.data.exists(), "nothing happens before the start"
    with stack, KRQ(broker=stack.broker, backend=stack.backend) as app:
        assert stack.broker == stack.backend == f"redis://127.0.0.1:{stack.valkey.port}/0"
        assert app.status(app.submit("add", 1, 2)).status is TaskStatus.QUEUED
        assert stack.data.stat().st_mode & 0o077 == 0, "for nobody else"
        stack.check()
    assert not stack.data.exists()
    assert not stack.valkey.running
    stack.stop()


def test_a_stack_with_a_folder_keeps_it(tmp_path: Path) -> None:
    with Stack(tmp_path / "data") as stack, KRQ(broker=stack.broker, backend=stack.backend, **LEASE) as app:
        task_id = app.submit("add", 1, 2).id
    stack.start()
    try:
        with KRQ(broker=stack.broker, backend=stack.backend, **LEASE) as app:
            assert app.status(task_id).status is TaskStatus.QUEUED
    finally:
        stack.kill()
    assert (tmp_path / "data" / "streams" / "valkey" / "valkey.log").exists()


def test_a_death_is_told_and_leaves_the_log() -> None:
    stack = Stack()
    stack.start()
    try:
        assert stack.valkey.pid is not None
        os.kill(stack.valkey.pid, signal.SIGKILL)
        until(lambda: not stack.valkey.running)
        with pytest.raises(ServerError, match="was killed by SIGKILL") as caught:
            stack.check()
        assert caught.value.code == "DEV_SERVER_DIED"
    finally:
        stack.stop()
    assert stack.valkey.log.exists()
    sweep()
    assert not stack.data.exists()


def test_a_start_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as other:
        stack = Stack(valkey_port=other.getsockname()[1])
        with pytest.raises(ServerError, match="DEV_PORT_TAKEN"):
            stack.start()
    assert not list(tmp_path.iterdir())


def test_sweep_leaves_a_live_stack_alone() -> None:
    with Stack() as one, Stack() as two:
        sweep()
        assert one.data.exists()
        assert two.data.exists()


def test_a_usual_port_when_it_is_free() -> None:
    free = free_port()
    assert port_or_free(free) == free
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert port_or_free(other.getsockname()[1]) != other.getsockname()[1]


def test_only_what_differs_from_the_defaults_is_exported(tmp_path: Path) -> None:
    assert dev.exports(Stack(tmp_path, True, 6379, 9092)) == {}
    assert dev.exports(Stack(tmp_path, False, 6379)) == {"KRQ_BROKER": "redis://127.0.0.1:6379/0"}
    assert set(dev.exports(Stack(tmp_path, True, 6380, 9092))) == {"KRQ_BACKEND"}


@pytest.mark.parametrize(("one", "other", "broker", "backend"), [
    ("localhost:9092", "kafka://127.0.0.1:9092", True, False),
    ("localhost", "redis://127.0.0.1:6379/0", False, True),
    ("redis://localhost", "redis://127.0.0.1:6379/0", True, True),
    ("redis://localhost/1", "redis://127.0.0.1:6379/0", False, False),
    ("a:1,b:2", "a:1,b:2", True, True),
    ("a:1,b:2", "a:1", False, False),
])
def test_addresses_of_the_same_place(one: str, other: str, broker: bool, backend: bool) -> None:
    assert same_broker(one, other) is broker
    assert same_backend(one, other) is backend
