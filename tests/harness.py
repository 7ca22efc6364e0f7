"""What tests of running workers need: start and end them, wait for conditions, read ledgers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import krq

T = TypeVar("T")
HERE = Path(__file__).parent


def hold(path: str) -> str:
    """A task that runs until the file is gone, or somebody cancels it."""
    me = krq.current()
    me.progress(1, 3)
    while Path(path).exists() and not me.cancelled:
        time.sleep(0.02)
    return "let go"


def lines_of(folder: Path, name: str) -> list[str]:
    """All lines of a file and of those that it was, the oldest first. Nobody must rotate it meanwhile."""
    files = sorted(folder.glob(f"{name}*"), key=lambda path: -int(path.suffix[1:]) if path.suffix[1:].isdigit() else 0)
    text = "".join(path.read_text() for path in files)
    assert text.endswith("\n")
    return text.splitlines()


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder for the files of a Valkey that must lose nothing: on a disk that takes seconds for a flush it would stand still."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="krq-test-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def until(condition: Callable[[], T], what: str, timeout: float = 20.0) -> T:
    """Wait until ``condition()`` is truthy and return it; fail with ``what`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {what} (last: {value!r})"
        time.sleep(0.02)


def all_met(app: krq.KRQ) -> None:
    """Wait until intake has met every partition: from then on a dead reader holds up nothing that is sent."""
    store, parts = app._clients.store, range(app.config.partitions if app._clients.broker.ordered else 0)
    until(lambda: all(store.redis.exists(store.keys("mark", f"{app.config.queue}:{part}")) for part in parts), "all partitions are met")


class Servers:
    """Where a test's broker and store are, and clients of them."""

    def __init__(self, broker: str, backend: str, namespace: str, **settings: object) -> None:
        self.broker, self.backend, self.namespace, self.settings = broker, backend, namespace, settings

    def app(self, **more: object) -> krq.KRQ:
        return krq.KRQ(self.broker, self.backend, self.namespace, **{**self.settings, **more})  # type: ignore[arg-type]

    @property
    def environ(self) -> dict[str, str]:
        given = {f"KRQ_{name.upper()}": str(value) for name, value in self.settings.items()}
        return {**os.environ, "KRQ_BROKER": self.broker, "KRQ_BACKEND": self.backend, "KRQ_NAMESPACE": self.namespace, **given}


class Worker:
    """A worker in processes of its own."""

    def __init__(self, servers: Servers, log: Path, worker_id: str = "w", processes: int = 1, script: str = "tasks_app.py") -> None:
        self.log = log
        self._out = log.open("ab")
        command = [sys.executable, str(HERE / script), worker_id, str(processes)]
        self.process = subprocess.Popen(command, env=servers.environ, stderr=self._out, stdout=self._out, start_new_session=True)

    def ready(self, n: int = 1) -> Worker:
        """Wait until so many children have registered."""
        until(lambda: self._alive() and self.text.count("is ready:") >= n, f"{n} children ready; log:\n{self.text}")
        return self

    def _alive(self) -> bool:
        assert self.process.poll() is None, f"the worker ended with {self.process.returncode}:\n{self.text}"
        return True

    @property
    def text(self) -> str:
        return self.log.read_text()

    @property
    def children(self) -> list[int]:
        """Process ids of the children."""
        pid = self.process.pid
        with suppress(FileNotFoundError, ProcessLookupError):
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def stop(self, timeout: float = 20.0) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def kill_tree(self) -> None:
        """SIGKILL of the whole worker at once, as a machine that dies."""
        for pid in [self.process.pid, *self.children]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill_tree()
        self._out.close()


@contextmanager
def running(
    servers: Servers, folder: Path, names: Sequence[str] = ("w",), processes: int = 1, script: str = "tasks_app.py"
) -> Iterator[list[Worker]]:
    """Workers of these names, ready; killed at the end."""
    workers = [Worker(servers, folder / f"{name}.log", name, processes, script) for name in names]
    try:
        for worker in workers:
            worker.ready(processes)
        yield workers
    finally:
        for worker in workers:
            worker.close()


def ledger(path: Path) -> list[list[str]]:
    """The lines of a ledger, split."""
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []
