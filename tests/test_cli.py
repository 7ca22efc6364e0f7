"""The command line, run as a user runs it, against a real server and a real worker."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
from cli_shell import TASKS, Shell, until

from krq import TaskStatus
from krq.brokers.base import Outgoing
from krq.dev.valkey import ValkeyServer


class World(NamedTuple):
    """A namespace with a worker, and tasks in every state."""

    shell: Shell
    ids: dict[str, str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyServer) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tasks.py").write_text(TASKS)
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
            until(lambda: len(app.dead_letters()) == 2)
            yield World(shell, {name: handle.id for name, handle in ids.items()})
        finally:
            (folder / "gate").unlink()
            worker.send_signal(signal.SIGTERM)
            out, err = worker.communicate(timeout=20)
    assert worker.returncode == 0, err
    assert out == ""
    assert "INFO" not in err, "--log-level warning"
    assert "exit code 9" in err


# --- look -----------------------------------------------------------------------------------------


def rows(out: str) -> list[list[str]]:
    """The cells of a table, by the places where its columns begin."""
    head, *lines = out.splitlines()
    starts = [found.start() for found in re.finditer(r"(?:(?<=  )|^)\S", head)]
    ends = [*starts[1:], None]
    return [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in lines if line]


def test_stats(world: World) -> None:
    out = world.shell.ok("stats")
    head, default, unserved, _, summary, rates = out.splitlines()
    assert head.split() == ["QUEUE", "READY", "DELAYED", "BACKLOG", "PER", "S", "SUCCEEDED", "FAILED", "CANCELLED", "RETRIED"]
    assert max(len(head), len(default)) <= 80
    cells = default.split()
    assert cells[:4] + cells[5:] == ["default", "0", "2", "0", "2", "1", "0", "1"]
    assert 0 < float(cells[4]) < 10 and rates.split()[:3] == ["per", "second:", cells[4]]
    assert unserved.split()[:3] == ["unserved", "1", "0"]
    assert summary == "1 worker, 2 processing, 0 waiting for others, 2 dead letters"
    found = world.shell.json("stats")
    assert found["queues"]["unserved"]["ready"] == 1
    assert found["rates"][0] == found["queues"]["default"]["rates"][0] > found["queues"]["default"]["failure_rates"][0] > 0
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
    assert [one["id"] for one in world.shell.json("pending", "--queue", "unserved")] == [world.ids["queued"]]
    assert {one["id"] for one in world.shell.json("pending", "--worker", "w1")} == {world.ids["hold1"], world.ids["hold2"]}


def test_recent(world: World) -> None:
    out = rows(world.shell.ok("recent", "--limit", "2"))
    assert [row[1] for row in out] == ["boom", "add"], "the latest first"
    assert out[0][2] == "failed"
    assert out[0][-1] == "ValueError: two lines", "one line each"
    assert out[1][2] == "success"
    assert out[1][-1] == "3"
    assert re.search(r"ago|now", out[1][5])
    assert out[1][6].endswith("s")
    assert [one["id"] for one in world.shell.json("recent", "--status", "failed")] == [world.ids["boom"]]
    assert [one["id"] for one in world.shell.json("recent", "--worker", "w1", "--name", "boom")] == [world.ids["boom"]]
    assert world.shell.ok("recent", "--worker", "nobody") == "No task has ended yet.\n"


def test_delayed(world: World) -> None:
    first, second = rows(world.shell.ok("delayed"))
    assert first[0] == world.ids["flaky"]
    assert first[-1] == "OSError: the other side is away"
    assert second[0] == world.ids["delayed"]
    assert second[4] in ("in 49 min", "in 50 min")
    assert [one["status"] for one in world.shell.json("delayed", "--queue", "default")] == ["scheduled"] * 2


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
    invalid, failed = rows(world.shell.ok("dead"))
    assert (invalid[1], invalid[4], failed[1], failed[3]) == ("MESSAGE_INVALID", "default", "ValueError", world.ids["boom"])
    assert world.shell.json("dead")[0]["value"] == '{"task": '
    (row,) = rows(world.shell.ok("failures"))
    assert row[1] == "w1"
    assert row[3] == "exit code 9"
    assert row[4] in ("-", "now") or row[4].endswith("ago")  # "-": it died before its first beat
    assert row[5] == "1"
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
        assert code == 2
        assert "give --yes" in err, "nobody is there to ask"
        assert shell.ok("purge", "typo", "--yes") == "There is no queue typo; there are default, q.\n"
        assert shell.ok("purge", "default", "--yes") == "2 tasks dropped.\n"
        assert shell.ok("clear", "--yes") == "1 task dropped.\n"
        assert shell.run("purge", "a/b", "-y")[2].endswith("[TASK_OPTION_INVALID]\n")


def test_a_reader_that_has_gone_is_no_trouble(world: World) -> None:
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "krq", "recent"]
    with subprocess.Popen(words, env=world.shell.environment, stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        assert process.communicate(timeout=20)[1] == b""
    assert process.returncode == 1
