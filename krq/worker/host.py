"""A process of its own for tasks that must be stoppable, or that may kill what runs them: one task after the other.

Forked by the supervisor, driven by one slot of a child over a pipe. It has no clients: what a task asks of its worker goes
through the pipe as well. It can be killed at any moment.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from krq import context, message
from krq.context import Context
from krq.hooks import Attempt
from krq.outcome import Cancelled, Outcome, SoftTimeout, Stop
from krq.worker.execute import Execute, late, within
from krq.worker.observers import Observers
from krq.worker.process import die_at_close
from krq.worker.spec import Spec

#: by these a slot tells its host to raise ``SoftTimeout``, or ``Stop``, in the task
SOFT, STOP = signal.SIGUSR1, signal.SIGUSR2


class Job(msgspec.Struct, frozen=True, tag=True):
    """One attempt to run."""

    raw: str
    id: str
    number: int
    epoch: int
    failures: int
    deaths: int
    queue: str
    worker: str
    sent: float
    inputs: tuple[str, list[str]] | None
    timeout: float | None


class Progress(msgspec.Struct, frozen=True, tag=True):
    """What the task says of how far it is."""

    done: int
    total: int


class Told(msgspec.Struct, frozen=True, tag=True):
    """What a module says to its ``heard`` in the child."""

    module: int
    """its place in the list"""
    data: bytes


class Asked(msgspec.Struct, frozen=True, tag=True):
    """What the task asks of its worker; it waits for the answer, a list of texts."""

    what: str
    arguments: list[str]


class Done(msgspec.Struct, frozen=True, tag=True):
    """It has ended."""

    outcome: Outcome


Said = Progress | Told | Asked | Done

encode = msgspec.msgpack.Encoder().encode
read_job = msgspec.msgpack.Decoder(Job).decode
read_said = msgspec.msgpack.Decoder(Said).decode
read_answer = msgspec.msgpack.Decoder(list[str]).decode


class Host:
    """The process's main thread."""

    def __init__(self, spec: Spec, pipe: Connection, life: int) -> None:
        self._registry = spec.registry
        self._places = range(len(spec.modules))
        self._observers = Observers(spec.modules)
        self._pipe = pipe
        self._life = life
        self._room = select.poll()
        self._room.register(pipe.fileno(), select.POLLOUT)
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._execute = Execute(spec.config, spec.registry, _MainLoop())
        self._ctx: Context | None = None

    def run(self) -> int:
        """Work until the slot hangs up; returns the exit code."""
        die_at_close(self._life)
        # a handler and not SIG_IGN, which the task's own subprocesses would inherit
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(SOFT, lambda *_: self._interrupt(SoftTimeout("it has run for longer than its soft_timeout")))
        signal.signal(STOP, lambda *_: self._stop())
        for place in self._places:
            self._observers.tell_one(place, "host_started", partial(self._tell, place))
        while True:
            try:
                job = read_job(self._pipe.recv_bytes())
            except (EOFError, ConnectionResetError):
                return 0
            me = os.getpid()
            attempt = self._attempt(job)
            outcome = self._run(job, attempt)
            if os.getpid() != me:
                os._exit(0)  # the task has forked and come back twice: this is the copy
            self._observers.tell("host_ended", attempt)
            self._say(Done(outcome))

    def _attempt(self, job: Job) -> Attempt:
        msg = message.reread(job.raw)
        return Attempt(
            message=msg, id=job.id, number=job.number, epoch=job.epoch, failures=job.failures, deaths=job.deaths, queue=job.queue,
            worker=job.worker, task=self._registry.get(msg.task), sent=job.sent,
        )

    def _run(self, job: Job, attempt: Attempt) -> Outcome:
        ctx = Context(attempt, self._report, None if job.timeout is None else time.time() + job.timeout, self._ask)
        context.enter(ctx)
        try:
            try:
                self._ctx = ctx
                return self._execute(attempt, ctx, job.inputs, job.timeout)
            finally:
                self._ctx = None
        except Stop:  # a signal between the function's end and ours
            return Cancelled()
        except SoftTimeout:
            return late(attempt.containment.soft_timeout or 0.0, "it was told so as it ended")

    def _interrupt(self, error: BaseException) -> None:
        """In the main thread, between two bytecodes: while a task runs, and once."""
        if self._ctx is not None:
            raise error

    def _stop(self) -> None:
        if self._ctx is not None:
            self._ctx.cancel()
            raise Stop

    def _report(self, _attempt: Attempt, done: int, total: int) -> None:
        self._say(Progress(int(done), int(total)))

    def _ask(self, _attempt: Attempt, what: str, arguments: Sequence[str]) -> Sequence[str]:
        """From any thread of the task; one question at a time."""
        with self._asking:
            self._say(Asked(what, list(arguments)))
            return read_answer(self._pipe.recv_bytes())

    def _tell(self, place: int, data: bytes, *, wait: bool = False) -> bool:
        """What a module has to ``say``. A pipe that counts as writable has room for more than is allowed at a time."""
        with self._lock:
            if not wait and not self._room.poll(0):
                return False
            self._pipe.send_bytes(encode(Told(place, data)))
            return True

    def _say(self, what: Said) -> None:
        with self._lock:
            self._pipe.send_bytes(encode(what))


class _MainLoop:
    """Runs coroutines in the main thread, where signals arrive."""

    def run(self, awaitable: Awaitable[Any], timeout: float | None, _started: Callable[[Callable[[], object]], None]) -> Any:
        return asyncio.run(within(awaitable, timeout))


def job_inputs(inputs: Sequence[Any] | None) -> tuple[str, list[str]] | None:
    """What it waited for, as a job carries it."""
    return (str(inputs[0]), list(inputs[1])) if inputs and inputs[1] else None
