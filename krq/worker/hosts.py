"""The child's side of its hosts: borrow one, have it run an attempt, kill it when the attempt goes too far.

The supervisor forks them, since a child has threads. A request carries three file descriptors: the host's end of the pipe, the end of
another by which the supervisor tells how the host died, and the end of a third, at whose close the kernel kills the host: it never outlives
its child, also when the supervisor stands still.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Pipe, wait
from pathlib import Path
from typing import Any

from krq.context import Context
from krq.errors import KRQError
from krq.hooks import Attempt, Module
from krq.outcome import Cancelled, Died, ErrorInfo, Failed, Outcome
from krq.worker.engine import Held
from krq.worker.execute import late
from krq.worker.host import SOFT, STOP, Asked, Done, Job, Progress, Said, Told, encode, job_inputs, read_said
from krq.worker.observers import Observers

#: seconds between two looks at a host that runs something
LOOK = 0.1
#: seconds that a cancelled task gets to clean up before its process is killed
MOMENT = 1.0
#: seconds after which an idle host is let go
IDLE = 60.0
#: the byte of a request; its file descriptors say all
REQUEST = b"h"
#: digits in which the supervisor tells a host's pid
PID = 10
_PAGE = os.sysconf("SC_PAGE_SIZE")


class HostProcess:
    """One host, as its slot sees it."""

    def __init__(self, control: socket.socket) -> None:
        self.pipe, theirs = Pipe()
        self._end, told = os.pipe()
        life, self._life = os.pipe()
        self.ran = 0
        self.disturbed = False
        """it was sent a signal, which may arrive late"""
        self.idle_since = 0.0
        try:
            socket.send_fds(control, [REQUEST], [theirs.fileno(), told, life])
        finally:
            theirs.close()
            for fd in (told, life):
                os.close(fd)
        # the supervisor says who it is first, and how it ended last
        self.pid = int(os.read(self._end, PID) or 0)
        if not self.pid:
            self.close()
            raise KRQError("No process could be started for a task that runs alone", cure="See what limits the processes of this machine.")

    def read(self, timeout: float) -> Said | None:
        """What it says next; None: nothing within so many seconds. Raises ``EOFError`` once it is dead."""
        ready = wait([self.pipe, self._end], timeout)
        try:
            if self.pipe in ready:
                said: Said = read_said(self.pipe.recv_bytes())
                return said
        except (ConnectionResetError, EOFError):
            raise EOFError from None
        if ready:  # dead, though a process of its own holds the pipe open
            raise EOFError
        return None

    def answer(self, texts: Sequence[str]) -> None:
        """Answer what its task asked."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send_bytes(encode(list(texts)))

    def tell(self, number: int) -> None:
        """Send it a signal."""
        self.disturbed = True
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, and the processes it has started."""
        self.disturbed = True
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def memory(self) -> int:
        """Bytes of resident memory; 0 where the system has no /proc."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE
        except (OSError, IndexError):
            return 0

    def cause(self) -> str:
        """How it died, from the supervisor, which has reaped it."""
        return os.read(self._end, 1000).decode() or "its supervisor is gone"

    def close(self) -> None:
        """Let it go."""
        self.pipe.close()
        os.close(self._life)
        os.close(self._end)


class _Run:
    """One attempt in a host, and what may become of it."""

    def __init__(self, host: HostProcess, attempt: Attempt, ctx: Context, observers: Observers) -> None:
        limits, now = attempt.containment, time.monotonic()
        self._host, self._attempt, self._ctx, self._observers = host, attempt, ctx, observers
        self._hard = math.inf if attempt.timeout is None else now + attempt.timeout
        self._soft = math.inf if limits.soft_timeout is None else now + limits.soft_timeout
        self._memory = limits.memory_limit
        self._last = math.inf
        self._killed: Outcome | None = None

    def finish(self) -> Outcome:
        """Watch it to its end. Raises ``EOFError`` when the host died and nobody here killed it."""
        while True:
            try:
                said = self._host.read(self._wait())
            except EOFError:
                if self._killed is None:
                    raise
                return self._killed
            match said:
                case Done(outcome=outcome):
                    return outcome
                case Progress(done=done, total=total):
                    self._ctx.progress(done, total)
                case Told(module=place, data=data):
                    self._observers.tell_one(place, "heard", data)
                case Asked(what=what, arguments=arguments):
                    self._host.answer(self._ctx.ask(what, arguments))
            if self._killed is None:
                self._look(time.monotonic())

    def _wait(self) -> float:
        return max(0.0, min(LOOK, min(self._hard, self._soft, self._last) - time.monotonic())) if self._killed is None else LOOK

    def _look(self, now: float) -> None:
        used = self._host.memory() if self._memory else 0
        if now >= self._hard:
            self._kill(late(self._attempt.timeout or 0.0, "its process was killed"))
        elif used > self._memory > 0:
            text = f"used {used >> 20:,} MB of memory, its limit is {self._memory >> 20:,} MB; its process was killed"
            self._kill(Failed(ErrorInfo("MEMORY_LIMIT", text)))
        elif now >= self._last:
            self._kill(Cancelled())
        elif self._ctx.cancelled and self._last is math.inf:
            self._last = now + MOMENT
            self._host.tell(STOP)
        elif now >= self._soft:
            self._soft = math.inf
            self._host.tell(SOFT)

    def _kill(self, outcome: Outcome) -> None:
        self._killed = outcome
        self._host.kill()


class Hosts:
    """The hosts of one child. ``run`` from the slots' threads, at most one host for each."""

    def __init__(self, control: socket.socket, recycle: int, modules: Sequence[Module]) -> None:
        self._control = control
        self._observers = Observers(modules)
        self._recycle = recycle
        self._lock = threading.Lock()
        self._idle: list[HostProcess] = []
        self._running: set[HostProcess] = set()

    def run(self, held: Held, attempt: Attempt, ctx: Context, inputs: Sequence[Any] | None) -> Outcome:
        """Run one attempt in a process of its own, within its limits."""
        job = encode(Job(
            held.raw, held.id, held.attempt, attempt.epoch, held.failures, held.deaths, held.queue, attempt.worker, attempt.sent,
            job_inputs(inputs), attempt.timeout,
        ))
        host = self._borrow(job)
        self._running.add(host)
        try:
            outcome = _Run(host, attempt, ctx, self._observers).finish()
        except EOFError:
            outcome = Cancelled() if ctx.cancelled else Died(host.cause())
            host.disturbed = True
        self._running.discard(host)
        self._give_back(host)
        return outcome

    def kill(self) -> None:
        """Kill all that run something, with the processes that they have started: this child has lost its lease."""
        for host in list(self._running):
            host.kill()

    def _borrow(self, job: bytes) -> HostProcess:
        """One that has the job. An idle one may have died meanwhile: then another."""
        while True:
            with self._lock:
                host = self._idle.pop() if self._idle else None
            host = host or HostProcess(self._control)
            try:
                host.pipe.send_bytes(job)
            except (BrokenPipeError, ConnectionResetError):
                host.close()
            else:
                return host

    def _give_back(self, host: HostProcess) -> None:
        host.ran += 1
        if host.disturbed or (self._recycle and host.ran >= self._recycle):
            host.close()
            return
        host.idle_since = time.monotonic()
        with self._lock:
            self._idle.append(host)

    def tidy(self) -> None:
        """Let go of those that nobody needed for a while. Call it now and then."""
        now = time.monotonic()
        with self._lock:
            old = [host for host in self._idle if now - host.idle_since > IDLE]
            self._idle = [host for host in self._idle if host not in old]
        for host in old:
            host.close()
