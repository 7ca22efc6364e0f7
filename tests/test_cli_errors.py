"""What the command line says when something is wrong, its help, and how it writes tables and times."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from cli_shell import Shell

from krq import TaskStatus, phrases
from krq.cli import root, text
from krq.dev.process import free_port

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
    code, _, err = shell.run("worker", "broken")
    assert code == 1
    assert shown in err
    assert "importlib" not in err
    assert "target.py" not in err
    assert re.fullmatch(rf"Error: broken cannot be imported: {last}. .*\[APP_NOT_FOUND\]", err.splitlines()[-1])


def test_a_file_named_like_a_module_of_pythons(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("import krq\napp = krq.KRQ(namespace='from_queue_py')\n")
    assert shell.run("workers", "--app", "queue.py")[0] == 0


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
    assert phrases.span(seconds) == said


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
