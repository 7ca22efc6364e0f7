"""``--watch``, and what shells complete."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from cli_shell import Shell
from harness import until
from terminal_house import Terminal

from krq.cli import main
from krq.dev.valkey import ValkeyServer

KRQ = [sys.executable, "-P", "-m", "krq"]


def test_watch_prints_a_document_a_line(shell: Shell) -> None:
    with shell.app() as app, shell.start("stats", "--json", "-w", "0.1") as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        app.send_task("add", [1, 2])
        found = next(line for line in process.stdout if json.loads(line)["queues"])
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (first["queues"], json.loads(found)["queues"]["default"]["ready"]) == ({}, 1)
    assert (process.returncode, err) == (0, "")
    assert not out or out.endswith("\n")


def test_watch_prints_one_below_the_other_where_there_is_no_terminal(shell: Shell) -> None:
    with shell.start("workers", "--watch", "0.1") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert lines == [said := "No worker is alive. Start one with `krq worker APP`.\n", "\n", said]


def test_watch_draws_in_place_and_leaves_the_last_on_the_screen(shell: Shell) -> None:
    with shell.app() as app, Terminal([*KRQ, "pending", "-w", "0.1"], shell.environment, shell.folder) as terminal:
        terminal.until("No task is queued")
        task_id = app.send_task("add", [1, 2])
        terminal.until(task_id)
        terminal.until("Every 0.1 s: krq pending")
        app.submit_many([{"task": "add", "args": [n, n]} for n in range(30)])  # one script call admits them: all are seen, or none
        terminal.until("more lines: a taller window shows them")
        terminal.type("\x03")
        assert terminal.ended() == 0
        assert terminal.restored
        drawn, _, left = terminal.out.rpartition("\x1b[?1049l")
        frames = drawn.split("\x1b[H")
        assert len(frames) > 3
        assert max(frame.count("\n") for frame in frames[1:]) == 23, "24 lines fit"
        assert left.count("\r\n") == 34, "all of it: a title, an empty line, the head, 31 tasks"


def test_watch_goes_on_when_a_server_comes_back(own_valkey: ValkeyServer, shell: Shell) -> None:
    shell = shell._replace(url=own_valkey.url)
    with shell.start("stats", "-w", "0.1") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.extend(process.stdout), daemon=True)  # type: ignore[arg-type]
        own_valkey.stop()
        assert "does not answer" in process.stderr.readline()
        reader.start()
        own_valkey.start()
        before = len(seen)
        until(lambda: any("0 workers" in line for line in seen[before + 20 :]), "it prints again")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        reader.join(10)


def test_watch_fails_at_once_where_nothing_answers(shell: Shell) -> None:
    code, out, err = shell.run("stats", "-w", "--backend", "localhost:1")
    assert (code, out) == (1, "")
    assert "[REDIS_CONNECTION_ERROR]" in err


# --- completion ------------------------------------------------------------------------------------

COMPLETE = """
eval "$(krq completion bash)"
try() { COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=(); _krq_completion krq; echo "${COMPREPLY[*]}"; }
"""


def test_bash_completes(shell: Shell) -> None:
    with shell.app() as app:
        app.send_task("add", [1, 2], queue="mail")
        app.send_task("add", [1, 2], queue="images")
    program = shell.folder / "krq"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m krq "$@"\n')
    program.chmod(0o755)
    lines = ["krq pause ''", "krq recent --status fa", "krq submit --app tasks.py bo", "krq pause --backend localhost:1 ''"]
    script = COMPLETE + "".join(f"try {line}\n" for line in lines)
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    environ = {**shell.environment, "PATH": f"{shell.folder}:{shell.environment['PATH']}"}
    words = [bash, "--norc", "-c", script]
    done = subprocess.run(words, cwd=shell.folder, env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["images mail", "failed", "boom", ""]
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_other_shells_get_a_script(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["completion", name]) == 0
    assert "_KRQ_COMPLETE" in capsys.readouterr().out
    assert main(["completion", "tcsh"]) == 2
