"""All servers that KRQ needs, on this machine, as one thing that starts and stops; and workers beside them."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Self
from urllib.parse import urlsplit

from krq.dev.kafka import KafkaServer, resolve_kafka
from krq.dev.process import GUARD, Server, free_port, is_free
from krq.dev.valkey import Fsync, ValkeyServer

PREFIX = "krq-dev-"
LOCAL = ("localhost", "127.0.0.1", "::1", None)

Report = Callable[[str, int, int], None]


class Stack:
    """Valkey, and Apache Kafka when wanted, on 127.0.0.1. Without Kafka the broker is Redis Streams on the same Valkey.

    ``data``: folder that keeps everything for the next start; None: a temporary one, removed by ``stop()``. Stacks with and
    without Kafka keep apart what they have in it. Ports: None means free ones. ``fsync``: of Valkey. For one thread at a
    time, and ``start()`` is for the main thread or one that lives as long as the stack.
    """

    def __init__(self, data: Path | None = None, kafka: bool = False, valkey_port: int | None = None,
                 kafka_port: int | None = None, fsync: Fsync = "everysec") -> None:
        self.temporary = data is None
        self.data = Path(tempfile.gettempdir(), f"{PREFIX}{os.urandom(6).hex()}") if data is None else Path(data).absolute()
        folder = self.data / ("kafka" if kafka else "streams")
        self.valkey = ValkeyServer(folder / "valkey", valkey_port, fsync=fsync)
        self.kafka = KafkaServer(folder / "kafka", kafka_port) if kafka else None
        self._lock: IO[bytes] | None = None

    @property
    def broker(self) -> str:
        """What ``KRQ(broker=…)`` and ``KRQ_BROKER`` take."""
        return self.valkey.url if self.kafka is None else self.kafka.address

    @property
    def backend(self) -> str:
        """What ``KRQ(backend=…)`` and ``KRQ_BACKEND`` take."""
        return self.valkey.url

    @property
    def logs(self) -> Path:
        """Where its workers write ``krq.log`` and ``results.log``, unless they are told otherwise."""
        return self.data / "logs"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead ``KRQ()`` here."""
        return {"KRQ_BROKER": self.broker, "KRQ_BACKEND": self.backend}

    @property
    def servers(self) -> list[Server]:
        """In the order in which they start."""
        return [self.valkey] if self.kafka is None else [self.valkey, self.kafka]

    def start(self, progress: Report | None = None) -> None:
        """Start all servers; return once they answer. Where one fails the others are stopped again.

        ``progress``: called with (what, bytes done, bytes in all) should Kafka have to be fetched first. Raises ``ServerError``.
        """
        if self.kafka is not None:
            resolve_kafka(progress)
        self._make_folder()
        try:
            for server in self.servers:
                server.start()
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Raise ``ServerError`` when a server has ended by itself."""
        for server in self.servers:
            death = server.death()
            if death is not None:
                raise death

    def stop(self) -> None:
        """Stop all servers, Kafka first, and remove a temporary folder. Idempotent.

        When a server had died the folder stays, for its log; the next temporary stack removes it.
        """
        died = any(server.death() for server in self.servers)
        for server in reversed(self.servers):
            server.stop()
        self._leave_folder(keep=died)

    def kill(self) -> None:
        """SIGKILL to all servers, and remove a temporary folder."""
        for server in self.servers:
            server.kill()
        self._leave_folder(keep=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _make_folder(self) -> None:
        if not self.temporary:
            self.data.mkdir(parents=True, exist_ok=True)
            return
        sweep()
        self.data.mkdir(mode=0o700)
        self._lock = (self.data / "lock").open("ab")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def _leave_folder(self, *, keep: bool) -> None:
        if self._lock is not None:
            if not keep:
                shutil.rmtree(self.data, ignore_errors=True)
            self._lock.close()
            self._lock = None


class Program:
    """A command of ``krq`` as a child process that uses the servers of a stack, and ends when this process does."""

    def __init__(self, stack: Stack, *words: str, quiet: bool = False) -> None:
        """``words``: the command and its arguments. ``quiet``: what it says goes nowhere, else to our stdout and stderr."""
        self._stack = stack
        self._words = words
        self._output = subprocess.DEVNULL if quiet else None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and return at once. Call it from a thread that stays."""
        self._process = subprocess.Popen(
            # a session of its own: Ctrl-C in the terminal is for us, and we stop it before the servers
            [sys.executable, "-I", "-S", str(GUARD), Server.guard, str(os.getpid()),
             # -P: the working directory comes to sys.path once KRQ is loaded, so that no queue.py there hides Python's
             sys.executable, "-P", "-m", "krq", *self._words],
            env={"KRQ_LOG_DIR": str(self._stack.logs), **os.environ, **self._stack.environment},
            stdin=subprocess.PIPE if Server.guard == "pipe" else subprocess.DEVNULL,
            stdout=self._output, stderr=self._output, start_new_session=True,
        )

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None before it has started and while it runs."""
        return None if self._process is None else self._process.poll()

    def stop(self, patience: float | None = None) -> None:
        """SIGTERM: tasks get their grace time; after ``patience`` seconds (None: never) SIGKILL. Idempotent."""
        if self._process is None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to it and to the children that run tasks. Idempotent."""
        if self._process is None:
            return
        # children of a supervisor that is gone die with it, and leave a group behind that is empty
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None


def port_or_free(wanted: int) -> int:
    """This port of 127.0.0.1, or a free one when something listens there."""
    return wanted if is_free(wanted) else free_port()


def same_broker(one: str, other: str) -> bool:
    """Whether two values of ``broker=`` lead to the same place."""
    return _place(one, "kafka") == _place(other, "kafka")


def same_backend(one: str, other: str) -> bool:
    """Whether two values of ``backend=`` lead to the same place."""
    return _place(one, "redis") == _place(other, "redis")


def _place(address: str, scheme: str) -> tuple[object, ...]:
    parts = urlsplit(address if "://" in address else f"{scheme}://{address}")
    try:
        port = parts.port or (9092 if parts.scheme == "kafka" else 6379)
    except ValueError:  # several hosts
        return (address,)
    host = "localhost" if parts.hostname in LOCAL else parts.hostname
    return (parts.scheme, host, port, parts.path.strip("/") or "0", parts.query)


def sweep() -> None:
    """Remove the temporary folders of stacks whose process was killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError), (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
