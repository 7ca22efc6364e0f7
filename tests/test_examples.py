"""The examples and the README's code, run as a reader would run them, on real servers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from harness import Servers, until
from snippets import ROOT, blocks, readme_file

from krq.dev.kafka import KafkaServer
from krq.dev.valkey import ValkeyServer

EXAMPLES = ROOT / "examples"


def python(*arguments: str | Path, cwd: Path, environ: Mapping[str, str], timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run Python to its end."""
    return subprocess.run(
        [sys.executable, *arguments], env=environ, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False,
    )


def processes_that_name(path: Path) -> list[str]:
    """Command lines in which a path stands (none where there is no ``/proc``)."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if str(path) in line]


class Reader:
    """Somebody who has the servers and a folder, and types commands."""

    def __init__(self, servers: Servers, folder: Path) -> None:
        self.servers = servers
        self.folder = folder

    def run(self, *arguments: str | Path, timeout: float = 60.0, code: int = 0) -> str:
        """Run Python with these arguments; returns what it printed."""
        done = python(*arguments, cwd=self.folder, environ=self.servers.environ, timeout=timeout)
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout

    @contextmanager
    def worker(self, *arguments: str | Path, name: str = "worker") -> Iterator[subprocess.Popen[bytes]]:
        """A worker that is ready; stopped in good order at the end, with exit code 0."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            command = [sys.executable, *arguments]
            process = subprocess.Popen(command, env=self.servers.environ, cwd=self.folder, stdout=out, stderr=out)
        try:
            until(lambda: "is ready:" in log.read_text() or process.poll() is not None, "the worker is ready or has ended")
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
        assert code == 0, log.read_text()


@pytest.fixture
def reader(valkey: ValkeyServer, kafka: KafkaServer, namespace: str, tmp_path: Path) -> Reader:
    return Reader(Servers(kafka.address, valkey.address, namespace), tmp_path)


def krq_worker(target: Path | str, *options: str) -> Sequence[str]:
    return ["-m", "krq", "worker", str(target), *options]


# --- examples/ -----------------------------------------------------------------------------------


def test_worker_and_client(reader: Reader) -> None:
    with reader.worker(EXAMPLES / "worker.py", "worker-1"):
        said = reader.run(EXAMPLES / "client.py", "worker-1")
        assert "status: success 3\n" in said
        assert "status: success 42\n" in said
        assert "ZeroDivisionError" in said
        assert "status: success 7\n" in said, "the task in the worker's own inbox"


def test_usage_is_told(tmp_path: Path) -> None:
    for name in ("worker.py", "worker2.py"):
        done = python(EXAMPLES / name, cwd=tmp_path, environ=os.environ)
        assert done.returncode == 1
        assert "usage: python" in done.stderr


def test_chained_tasks(reader: Reader) -> None:
    with reader.worker(EXAMPLES / "worker.py", "worker-1"):
        said = reader.run(EXAMPLES / "client2.py")
        assert "the chain's results: [3, 12]\n" in said
        assert "the final task's result: 5 after [3, 12]\n" in said
        assert "((1 + 2) * 10) - 5 = 25\n" in said
        assert "1 + 4 + 9 + 16 + 25 = 55\n" in said
        assert "did not succeed" in said


def test_failures_delays_and_reassignment(reader: Reader) -> None:
    with reader.worker(EXAMPLES / "worker2.py", "worker-1", name="one"), reader.worker(EXAMPLES / "worker2.py", "worker-2", name="two"):
        said = reader.run(EXAMPLES / "client2.py", "--rough", timeout=90)
    assert 'success "came through at attempt 3"' in said
    assert "failed RuntimeError: nothing helps (attempt 3" in said
    assert 'success "served" (attempt 2' in said
    assert "at attempt 2" in next(line for line in said.splitlines() if "crash" in line and "success" in line)
    assert 'success "done by worker-' in said


def test_matrix(reader: Reader) -> None:
    with reader.worker(*krq_worker(EXAMPLES / "matrix.py")):
        said = reader.run(EXAMPLES / "matrix.py")
    ends = {" ".join(line.split()[:1]): line for line in said.splitlines()}
    assert len(said.splitlines()) == 10
    assert ends["addition"].endswith(" 60.0")
    assert "[[11, 22], [33, 44]]" in said
    assert "[[2, 1], [4, 3]]" in said
    assert said.count("failed, ") == 2


def test_module_that_one_writes(reader: Reader) -> None:
    with reader.worker(*krq_worker(EXAMPLES / "module.py")):
        assert reader.run(EXAMPLES / "module.py") == "3\nnot in the file\n"
    lines = (reader.folder / "results.log").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("add attempt 1: 3")


def test_wordcount_counts_right(reader: Reader, tmp_path: Path) -> None:
    books = tmp_path / "books"
    (books / "deep").mkdir(parents=True)
    for n in range(20):
        (books / f"{n}.txt").write_text("The quick brown fox.\n" * (n + 1))
    (books / "deep" / "big.txt").write_text("fox " * 200_000)
    (books / "binary.txt").write_bytes(b"fox\0fox")
    with reader.worker(*krq_worker(EXAMPLES / "wordcount.py", "--worker-id", "counter")):
        said = reader.run(EXAMPLES / "wordcount.py", books, "--top", "3")
    assert said.split()[:4] == ["word", "times", "fox", "200,210"]
    assert "4 different words, 200,840 in all" in said
    assert [line.split()[i] for line in said.splitlines() if line.startswith("counter") for i in (0, 2)] == ["counter", "21"]


def test_basic_usage_brings_its_own_server(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("KRQ_")}
    done = python(EXAMPLES / "basic_usage.py", cwd=tmp_path, environ=environ)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "result of the first: {'processed_data': 84}" in done.stdout
    assert "result of the second: {'processed_data': 42} after 2." in done.stdout
    assert "2 succeeded, 0 failed" in done.stdout


def test_demo_ends_by_itself_and_leaves_nothing(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for n in range(6):
        (text / f"{n}.txt").write_text("one two two\n" * 30_000)
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    done = python(EXAMPLES / "demo.py", text, cwd=tmp_path, environ=environ, timeout=90)
    assert done.returncode == 0, done.stderr
    assert "two                     360,000" in done.stdout
    assert "6/6 chunks" in done.stderr
    assert list(tmp_path.iterdir()) == [text], "the servers' folder is removed"
    assert not processes_that_name(tmp_path)


# --- docs/workflows.md ---------------------------------------------------------------------------


def test_snippets_of_the_workflows_page(reader: Reader) -> None:
    files = [block for block in blocks(ROOT / "docs" / "workflows.md", "python") if block.file]
    for block in files:
        (reader.folder / str(block.file)).write_text(block.text)
    with reader.worker(*krq_worker("shop.py", "--worker-id", "w1")):
        for block in files[1:]:
            told = re.findall(r"print\(.*\)  # (.*)", block.text)
            assert reader.run(str(block.file)).splitlines() == told, block.file


# --- README.md -----------------------------------------------------------------------------------


@pytest.fixture
def saved(reader: Reader) -> Reader:
    """A reader who has saved the README's files."""
    for name in ("tasks.py", "send.py", "fail.py", "later.py", "flows.py", "foreign.py"):
        text = readme_file(name).replace('"krq.default"', f'"{reader.servers.namespace}.default"')
        (reader.folder / name).write_text(text)
    return reader


def test_ten_minutes_of_the_readme(saved: Reader) -> None:
    with saved.worker(*krq_worker("tasks.py")), saved.servers.app() as app:
        sent = saved.run("send.py").splitlines()
        assert sent[0] == "3"
        assert sent[1].endswith(" 3")
        assert sent[2:] == ["[0, 2, 4, 6, 8]", "42", "contents of https://example.org"]

        failed = saved.run("fail.py").splitlines()
        assert failed[0].startswith("came through at attempt ")
        assert failed[1] == "ConnectionError nobody there"

        later = saved.run("later.py").splitlines()
        assert later == ["3", "107", "{2}"]

        flows = saved.run("flows.py").splitlines()
        assert sorted({*flows} - {"[3, 7]"}) == ["13", "15", "[0, 2, 4, 6, 8] (5, 5)", "dict_values([2])"]

        saved.run("foreign.py")
        assert app.result("d5750c0e-ed82", timeout=20) == 3


def test_shortest_worker_and_client(reader: Reader, kafka: KafkaServer, valkey: ValkeyServer) -> None:
    for name in ("worker.py", "client.py"):
        text = readme_file(name)
        assert 'broker="localhost:9092", backend="localhost"' in text
        text = text.replace("localhost:9092", kafka.address).replace('"localhost"', f'"{valkey.address}"')
        (reader.folder / name).write_text(text)
    with reader.worker("worker.py", "worker-1"), reader.servers.app() as app:
        said = reader.run("client.py").split()
        task_id = said[4]
        assert said[:4] == ["Submitted", "task", "with", "ID:"]
        assert said[5:8] == ["Task", task_id, "status:"]
        assert app.result(task_id, timeout=20) == 3
        assert str(app.status(task_id)) == "success 3"
        assert app.result(app.send_task("add", [3, 4], queue="worker-1"), timeout=20) == 7
