"""The command line, run as a user runs it, against a real server and a real worker."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from krq import KRQ, TaskStatus
from krq.brokers.base import Outgoing
from krq.cli import root, text
from krq.dev.process import free_port
from krq.dev.valkey import ValkeyServer

TASKS = """
import os, time
from pathlib import Path
import krq

app = krq.KRQ()
mine = "no app"

@app.task
def add(x: int, y: int = 0) -> int:
    return x + y

@app.task(retries=0)
def boom(text: str) -> None:
    raise ValueError(text)

@app.task(retries=3, backoff=krq.Backoff(300))
def flaky() -> None:
    raise OSError("the other side is away")

@app.task
def hold(path: str) -> str:
    krq.current().progress(1, 3)
    while Path(path).exists():
        time.sleep(0.02)
    return "let go"

@app.task
def die_once(path: str) -> str:
    if Path(path).exists():
        Path(path).unlink()
        os._exit(9)
    return "alive"
"""


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What ``condition`` returns, once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)
    return found


class Shell(NamedTuple):
    """A folder and the variables that lead to the servers."""

    folder: Path
    url: str
    namespace: str

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "KRQ_BROKER": self.url, "KRQ_BACKEND": self.url, "KRQ_NAMESPACE": self.namespace}

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-P", "-m", "krq", *words], cwd=self.folder, env={**self.environment, **more},
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *words: str, **more: str) -> tuple[int, str, str]:
        with self.start(*words, **more) as process:
            out, err = process.communicate(timeout=30)
        assert "Traceback" not in err or "cannot be imported" in err, err
        return process.returncode, out, err

    def ok(self, *words: str) -> str:
        code, out, err = self.run(*words)
        assert code == 0, err
        return out

    def json(self, *words: str) -> Any:
        return json.loads(self.ok(*words, "--json"))

    def app(self) -> KRQ:
        return KRQ(broker=self.url, backend=self.url, namespace=self.namespace)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tasks.py").write_text(TASKS)
    return folder


@pytest.fixture
def shell(folder: Path, valkey: ValkeyServer, namespace: str) -> Shell:
    """A namespace without a worker."""
    return Shell(folder, valkey.url, namespace)


class World(NamedTuple):
    """A namespace with a worker, and tasks in every state."""

    shell: Shell
    ids: dict[str, str]


@pytest.fixture(scope="module")
def world(folder: Path, valkey: ValkeyServer) -> Iterator[World]:
    shell = Shell(folder, valkey.url, f"w{os.urandom(4).hex()}")
    for name in ("gate", "death"):
        (folder / name).touch()
    worker = shell.start("worker", "tasks:app", "--worker-id", "w1", "--concurrency", "3", "--log-level", "warning")
    with worker, shell.app() as app:
        try:
            died = app.submit("die_once", str(folder / "death"))
            assert died.result(timeout=20) == "alive"
            ids = {"add": app.submit("add", 1, 2)}
            ids["add"].result(timeout=10)
            ids["boom"] = app.submit("boom", "two\nlines")
            ids["boom"].wait(timeout=10)
            ids["delayed"] = app.handle(app.send_task("add", [3], delay=3000))
            ids["flaky"] = app.submit("flaky")
            until(lambda: app.status(ids["flaky"]).status is TaskStatus.SCHEDULED)
            for name in ("hold1", "hold2"):
                ids[name] = app.submit("hold", str(folder / "gate"))
                until(lambda name=name: app.status(ids[name]).progress)
            ids["queued"] = app.handle(app.send_task("add", [1], queue="unserved"))
            app._clients.broker.publish([Outgoing(app.config.topic("default"), b'{"task": ')], 5.0)
            until(app.dead_letters)
            yield World(shell, {name: handle.id for name, handle in ids.items()})
        finally:
            (folder / "gate").unlink()
            worker.send_signal(signal.SIGTERM)
            out, err = worker.communicate(timeout=20)
    assert worker.returncode == 0, err
    assert out == ""
    assert "INFO" not in err and "exit code 9" in err, "--log-level warning"


# --- look -----------------------------------------------------------------------------------------


def rows(out: str) -> list[list[str]]:
    """The cells of a table, by the places where its columns begin."""
    head, *lines = out.splitlines()
    starts = [found.start() for found in re.finditer(r"(?:(?<=  )|^)\S", head)]
    ends = [*starts[1:], None]
    return [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in lines if line]


def test_stats(world: World) -> None:
    out = world.shell.ok("stats")
    head, default, unserved, _, summary = out.splitlines()
    assert head.split() == ["QUEUE", "READY", "SCHEDULED", "BACKLOG", "SUCCEEDED", "FAILED", "CANCELLED", "RETRIED"]
    assert default.split() == ["default", "0", "2", "0", "2", "1", "0", "1"]
    assert unserved.split()[:3] == ["unserved", "1", "0"]
    assert summary == "1 worker, 2 processing, 0 waiting for others, 1 dead letter"
    found = world.shell.json("stats")
    assert found["queues"]["unserved"]["ready"] == 1
    assert found["processing"] == 2


def test_workers(world: World) -> None:
    (row,) = rows(world.shell.ok("workers"))
    assert row[0] == "w1"
    assert row[-1] == "default"
    assert "2/3" in row
    (found,) = world.shell.json("workers")
    assert (found["id"], found["slots"], found["busy"]) == ("w1", 3, 2)


def test_pending(world: World) -> None:
    first, second, third = rows(world.shell.ok("pending"))
    assert {first[0], second[0]} == {world.ids["hold1"], world.ids["hold2"]}
    assert third[0] == world.ids["queued"]
    assert first[1:5] == ["hold", "processing", "default", "1"]
    assert "(1/3)" in first[6]
    assert first[7] == "w1"
    assert third[1:4] == ["add", "queued", "unserved"]
    assert third[6:] == ["-", "-"]
    assert [one["status"] for one in world.shell.json("pending", "-n", "1")] == ["processing"]
    assert world.shell.ok("pending", "--name", "nobody") == "No task is queued or being processed.\n"


def test_recent(world: World) -> None:
    out = rows(world.shell.ok("recent", "--limit", "2"))
    assert [row[1] for row in out] == ["boom", "add"], "the latest first"
    assert out[0][2] == "failed" and out[0][-1] == "ValueError: two lines", "one line each"
    assert out[1][2] == "success"
    assert out[1][-1] == "3"
    assert re.search(r"ago|now", out[1][5])
    assert out[1][6].endswith("s")
    assert [one["id"] for one in world.shell.json("recent", "--status", "failed")] == [world.ids["boom"]]


def test_delayed(world: World) -> None:
    first, second = rows(world.shell.ok("delayed"))
    assert first[0] == world.ids["flaky"]
    assert first[-1] == "OSError: the other side is away"
    assert second[0] == world.ids["delayed"]
    assert second[4] in ("in 49 min", "in 50 min")
    assert [one["status"] for one in world.shell.json("delayed")] == ["scheduled"] * 2


def test_task(world: World) -> None:
    out = world.shell.ok("task", world.ids["add"])
    for line in (rf"ID +{world.ids['add']}", r"Task +add", r"Status +success", r"Result +3", r"Worker +w1", r"Ended +.* ago\), it took"):
        assert re.search(f"(?m)^{line}", out), out
    out = world.shell.ok("task", world.ids["boom"])
    assert re.search(r"(?m)^Error +ValueError: two lines$", out)
    assert 'raise ValueError(text)' in out
    assert "Traceback" in out
    assert world.shell.json("task", world.ids["boom"])["error"]["type"] == "ValueError"
    code, out, err = world.shell.run("task", "nobody", "--json")
    assert (code, out) == (1, "")
    assert err.startswith("Error: No task 'nobody' is known. ")
    assert err.endswith("[TASK_NOT_FOUND]\n")


def test_dead_letters_and_failures(world: World) -> None:
    (row,) = rows(world.shell.ok("dead"))
    assert row[1] == "MESSAGE_INVALID"
    assert row[4] == "default"
    assert world.shell.json("dead")[0]["value"] == '{"task": '
    (row,) = rows(world.shell.ok("failures"))
    assert row[1] == "w1"
    assert row[3] == "exit code 9"
    assert row[4] == "1"
    assert world.shell.json("failures")[0]["worker"] == "w1"


@pytest.mark.parametrize("command", ["stats", "workers", "pending", "recent", "delayed", "dead", "failures"])
def test_nothing_yet_is_said_in_words(shell: Shell, command: str) -> None:
    lines = shell.ok(command).splitlines()
    assert len(lines) == 1
    assert re.match(r"No |There are no |0 workers", lines[0])


def test_the_app_can_name_the_servers(world: World) -> None:
    assert json.loads(world.shell.run("workers", "--app", "tasks.py", "--json")[1])[0]["id"] == "w1"
    code, _, err = world.shell.run("workers", "--app", "tasks", "--namespace", "x")
    assert code == 2
    assert "leave --broker, --backend and --namespace out" in err
    out = world.shell.run("workers", "--broker", world.shell.url, "--backend", world.shell.url, "--namespace", world.shell.namespace,
                          KRQ_BROKER="nowhere:1", KRQ_BACKEND="nowhere", KRQ_NAMESPACE="other")[1]
    assert "w1" in out


# --- submit, and a worker of one's own ------------------------------------------------------------


def test_submit_waits_for_the_result(world: World) -> None:
    assert world.shell.run("submit", "add", "1", "-2", "--wait")[:2] == (0, "-1\n")
    assert world.shell.json("submit", "add", "1", "--kwargs", '{"y": 5}', "--wait", "10")["result"] == 6
    code, out, err = world.shell.run("submit", "boom", '"two\\nlines"', "--wait")
    assert (code, out) == (1, "")
    sent, error = err.splitlines()
    task_id = sent.split()[0]
    assert error == f"Error: Task {task_id} failed: ValueError: two lines. `krq task {task_id}` shows where [TASK_FAILED]"


def test_submit_prints_the_id(shell: Shell) -> None:
    task_id = shell.ok("submit", "add", "1", "2", "--queue", "q", "--delay", "500").strip()
    with shell.app() as app:
        info = app.status(task_id)
    assert (info.name, info.queue, info.status) == ("add", "q", TaskStatus.SCHEDULED)
    code, _, err = shell.run("submit", "add", "1", "--wait", "0.2")
    assert code == 1
    assert "No worker is alive" in err
    assert "[RESULT_TIMEOUT]" in err


@pytest.mark.parametrize(("words", "said"), [
    (["World"], "The argument World is no JSON. A string needs quotes of its own: '\"World\"'"),
    (["1", "--dely", "3"], "No such option: --dely"),
    (["--kwargs", "[1]"], "--kwargs [1] is no JSON object"),
    (["--delay", "-1"], "x>=0"),
])
def test_submit_refuses(shell: Shell, words: Sequence[str], said: str) -> None:
    code, out, err = shell.run("submit", "add", *words)
    assert (code, out) == (2, "")
    assert said in err


def test_submit_checks_the_signature_when_it_knows_the_app(shell: Shell) -> None:
    code, _, err = shell.run("submit", "add", "--app", "tasks")
    assert code == 1
    assert "missing a required argument: 'x'" in err
    assert err.endswith("[TASK_ARGUMENTS_INVALID]\n")


def test_ctrl_c_is_quiet(shell: Shell) -> None:
    with shell.start("submit", "add", "1", "--wait") as process:
        assert process.stderr is not None
        assert "was sent" in process.stderr.readline()
        assert "No worker" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read() == "\n", "which ends the line of the ^C"


def test_worker_options(shell: Shell) -> None:
    words = ("worker", "tasks.py", "--queues", "a, b", "--inbox", "mine", "--worker-id", "w2", "--processes", "2", "--concurrency", "3")
    with shell.start(*words) as process, shell.app() as app:
        found = until(lambda: len(workers := app.workers()) == 2 and workers)
        assert [(one.id, one.slots, one.queues) for one in found] == [(f"w2.{n}", 3, ["mine", "a", "b"]) for n in (1, 2)]
        assert app.result(app.send_task("add", [1, 1], queue="mine"), timeout=10) == 2
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "Traceback" not in err


# --- act ------------------------------------------------------------------------------------------


def test_cancel_and_retry(shell: Shell) -> None:
    with shell.app() as app:
        one, two = app.submit("add", 1), app.submit("add", 2)
        code, out, err = shell.run("cancel", one.id, "nobody", two.id)
        assert code == 1
        assert out == f"{one.id}  cancelled\n{two.id}  cancelled\n"
        assert err.count("\n") == 1
        assert "[TASK_NOT_FOUND]" in err
        assert shell.ok("cancel", one.id) == f"{one.id}  cancelled\n", "twice is no error"
        assert shell.ok("retry", one.id) == f"{one.id}  sent again\n"
        assert one.status().status is TaskStatus.QUEUED
        code, out, err = shell.run("retry", one.id)
        assert (code, out) == (1, "")
        assert "is queued. Only failed and cancelled tasks can be retried. [" in err


def test_cancel_tells_of_running_and_ended_tasks(world: World) -> None:
    assert world.shell.ok("cancel", world.ids["add"]) == f"{world.ids['add']}  had ended already: success\n"
    assert world.shell.ok("cancel", world.ids["hold1"]) == f"{world.ids['hold1']}  it runs; its worker was told to stop it\n"


def test_pause_resume_purge_clear(shell: Shell) -> None:
    with shell.app() as app:
        app.send_task("add", [1])
        app.send_task("add", [1], delay=50)
        app.send_task("add", [1], queue="q")
        assert shell.ok("pause", "q") == "q is paused; `krq resume q` lets it go on.\n"
        assert re.search(r"(?m)^q .* paused$", shell.ok("stats"))
        assert shell.ok("resume", "q") == "q goes on.\n"
        assert "paused" not in shell.ok("stats")
        code, _, err = shell.run("purge", "default")
        assert code == 2 and "give --yes" in err, "nobody is there to ask"
        assert shell.ok("purge", "typo", "--yes") == "There is no queue typo; there are default, q.\n"
        assert shell.ok("purge", "default", "--yes") == "2 tasks dropped.\n"
        assert shell.ok("clear", "--yes") == "1 task dropped.\n"
        assert shell.run("purge", "a/b", "-y")[2].endswith("[TASK_OPTION_INVALID]\n")


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "said"), [
    ("taks", "There is no module 'taks' in .* Did you mean 'tasks'?"),
    ("taks.py", "There is no file .*taks.py. Did you mean 'tasks.py'?"),
    ("tasks:other", "tasks has no 'other'. It has app: write tasks:app."),
    ("tasks:mine", "mine in tasks is no KRQ but a str. It has app: write tasks:app."),
    ("json", "json has no 'app', which .* write `app = krq.KRQ\\(\\)` there."),
    ("no-name", "'no-name' is no module name. Give APP as module:attribute"),
])
def test_a_wrong_app_is_named(shell: Shell, target: str, said: str) -> None:
    code, out, err = shell.run("worker", target)
    assert (code, out) == (1, "")
    assert re.fullmatch(rf"Error: {said}.*\[APP_NOT_FOUND\]\n", err), err


@pytest.mark.parametrize(("content", "last", "shown"), [
    ("import nowhere\n", "ModuleNotFoundError: No module named 'nowhere'", "line 1, in <module>\n    import nowhere"),
    ("def f(:\n", r"SyntaxError: invalid syntax \(broken.py, line 1\)", "def f(:"),
])
def test_an_app_that_cannot_be_imported(shell: Shell, tmp_path: Path, content: str, last: str, shown: str) -> None:
    (tmp_path / "broken.py").write_text(content)
    code, _, err = shell._replace(folder=tmp_path).run("worker", "broken")
    assert code == 1
    assert shown in err
    assert "importlib" not in err
    assert "target.py" not in err
    assert re.fullmatch(rf"Error: broken cannot be imported: {last}. .*\[APP_NOT_FOUND\]", err.splitlines()[-1])


def test_a_file_named_like_a_module_of_pythons(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("import krq\napp = krq.KRQ(namespace='from_queue_py')\n")
    assert shell._replace(folder=tmp_path).run("workers", "--app", "queue.py")[0] == 0


@pytest.mark.parametrize("command", [("stats",), ("task", "x"), ("cancel", "x"), ("pause", "q")])
def test_redis_away_is_one_line(shell: Shell, command: Sequence[str]) -> None:
    began = time.monotonic()
    code, out, err = shell.run(*command, "--backend", f"localhost:{free_port()}")
    assert (code, out) == (1, "")
    assert time.monotonic() - began < 15
    assert re.fullmatch(r"Error: Redis at localhost:\d+ does not answer: .*KRQ_BACKEND.* \[REDIS_CONNECTION_ERROR\]\n", err)


def test_kafka_away_is_one_line(shell: Shell) -> None:
    began = time.monotonic()
    broker = f"localhost:{free_port()}"
    code, out, err = shell.run("submit", "add", "--broker", broker, KRQ_SEND_TIMEOUT="1")
    assert (code, out) == (1, "")
    assert time.monotonic() - began < 15
    assert re.fullmatch(rf"Error: Kafka at {broker} .*KRQ_BROKER.* \[KAFKA_CONNECTION_ERROR\]\n", err)


def test_wrong_settings_are_one_line(shell: Shell) -> None:
    for words, code in ((("--backend", "foo://x"), "CONFIG_INVALID"), (("--broker", "foo://x"), "CONFIG_INVALID")):
        status, _, err = shell.run("workers", *words)
        assert status == 1
        assert err.count("\n") == 1
        assert err.endswith(f"[{code}]\n")


def test_wrong_usage_is_code_2(shell: Shell) -> None:
    assert shell.run("no-such-command")[0] == 2
    assert shell.run("task")[0] == 2


def test_a_reader_that_has_gone_is_no_trouble(world: World) -> None:
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "krq", "recent"]
    with subprocess.Popen(words, env=world.shell.environment, stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        assert process.communicate(timeout=20)[1] == b""
    assert process.returncode == 1


# --- help and text --------------------------------------------------------------------------------


def test_every_command_helps(capsys: pytest.CaptureFixture[str]) -> None:
    listed = [name for _, names in root.Root.sections for name in names]
    assert set(listed) >= set(root.root.commands)
    for name, command in root.root.commands.items():
        assert root.main([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert f"Example:\n    krq {name}" in out or (name in ("submit", "retry") and "Example:" in out), name
        assert command.short_help


def test_the_overview_and_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert root.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"(?s)Run:\n  worker.*Look:\n  stats.*Act:\n  submit", out)
    assert root.main(["--version"]) == 0
    assert re.fullmatch(r"krq \d+\..*\n", capsys.readouterr().out)


@pytest.mark.parametrize(("seconds", "said"), [
    (0.0034, "3 ms"), (1.24, "1.2 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (7200, "2 h"), (200_000, "2 d"), (-1, "0 ms"),
])
def test_spans(seconds: float, said: str) -> None:
    assert text.span(seconds) == said


def test_times_from_now() -> None:
    now = time.time()
    assert text.ago(now - 3.5) == "3 s ago"
    assert text.ago(now + 5) == "now"
    assert text.ago(None) == ""
    assert text.until(now + 125) == "in 2 min"
    assert text.until(now - 5) == "now"


def test_a_table_is_plain_aligned_and_cannot_be_painted(capsys: pytest.CaptureFixture[str]) -> None:
    text.print_table(("NAME", "N", "LAST"), [["a\x1b[31m\nb", 5, "x"], ["", 1234, TaskStatus.FAILED]], right=("N",))
    assert capsys.readouterr().out == "NAME         N  LAST\na [31m b     5  x\n-         1234  failed\n"


def test_a_table_is_cut_to_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    text.print_table(("NAME", "LAST"), [["n", "x" * 100], ["m", TaskStatus.SUCCESS]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "n     " + "x" * 33 + "…"
    assert lines[2].startswith("m     " + click.style("success", fg="green"))
