"""The supervisor: forks the children, beats for them, ends them, reports their end, starts them again.

It runs no task and has one thread, so that it can fork at any time. When it dies its children die.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from krq import ids
from krq.errors import KRQError, RedisConnectionError, StoreError, WorkerRecoveryError
from krq.worker.child import FENCED, GONE, LEFT, WEDGED, Child, Spec
from krq.worker.heart import Heart
from krq.worker.page import Page, boottime

log = logging.getLogger("krq.worker")

#: a child that lived so long resets the back-off
STEADY = 30.0
#: restarts in a row, each after a short life, after which the worker gives up
MAX_RESTARTS = 10
_PR_SET_PDEATHSIG = 1


class _Slot:
    """One child's place: its page, and what is known of the child in it."""

    def __init__(self, worker_id: str, slots: int) -> None:
        self.worker_id = worker_id
        self.page = Page(slots)
        self.incarnation = ""
        self.pid = 0
        self.fd = -1
        self.born = 0.0
        self.restarts = 0
        self.start_at = 0.0
        self.report: tuple[str, list[str], str] | None = None


class Supervisor:
    """Runs a worker until it is told to stop. Lives in the main thread; ``run`` returns the exit code."""

    def __init__(self, spec: Spec, worker_id: str, processes: int = 1) -> None:
        self._spec = spec
        self._config = spec.config
        names = [worker_id] if processes == 1 else [f"{worker_id}.{n + 1}" for n in range(processes)]
        self._slots = [_Slot(name, spec.config.slots) for name in names]
        self._alive = os.pipe()
        self._heart: Heart | None = None
        self._signals = 0
        self._failed = False
        self._complained = False
        self._beat_at = 0.0

    def run(self) -> int:
        """Start the children and keep them; 0 after an orderly stop. Raises ``WorkerRecoveryError``."""
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        try:
            while not self._over():
                self._start_due()
                self._beat()
                self._wait(read)
                self._reap()
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._kill_all()
            for fd in (read, write, *self._alive):
                os.close(fd)
        if self._failed:
            raise WorkerRecoveryError(f"{MAX_RESTARTS} children died one after the other, each within {STEADY:.0f} s")
        return 0

    # --- signals -----------------------------------------------------------------------------

    def _on_signal(self, number: int, _frame: Any) -> None:
        self._signals += 1
        if self._signals == 1:
            log.info("%s: stopping; running tasks get %.0f s (again: at once)", signal.Signals(number).name, self._config.grace)
        self._tell(signal.SIGTERM if self._signals == 1 else signal.SIGKILL)

    def _tell(self, number: int) -> None:
        for slot in self._slots:
            if slot.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(slot.pid, number)

    def _over(self) -> bool:
        return (self._signals > 0 or self._failed) and not any(slot.pid for slot in self._slots) and not self._reports_due()

    def _reports_due(self) -> bool:
        """Whether ends of children wait to be told; at a stop they get one try."""
        due = [slot for slot in self._slots if slot.report is not None]
        if due and (self._signals > 0 or self._failed):
            self._tell_ends()
            return False
        return bool(due)

    # --- children ----------------------------------------------------------------------------

    def _start_due(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if not slot.pid and not self._signals and not self._failed and now >= slot.start_at and slot.report is None:
                self._fork(slot)

    def _fork(self, slot: _Slot) -> None:
        slot.page.reset()
        slot.incarnation = ids.new_incarnation(slot.worker_id)
        slot.born = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(self._alive[1])
            _in_child(parent, self._alive[0], lambda: Child(self._spec, slot.incarnation, slot.page).run())
        slot.pid = pid
        slot.fd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1

    def _wait(self, signals: int) -> None:
        """Sleep until the next beat, a signal, or the end of a child."""
        fds = [slot.fd for slot in self._slots if slot.fd >= 0]
        until = max(0.0, min(self._beat_at - time.monotonic(), 1.0 if fds or not any(slot.pid for slot in self._slots) else 0.1))
        ready, _, _ = select.select([signals, *fds], [], [], until)
        if signals in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(signals, 4096)

    def _reap(self) -> None:
        for slot in self._slots:
            if not slot.pid:
                continue
            pid, status = os.waitpid(slot.pid, os.WNOHANG)
            if pid:
                self._ended(slot, os.waitstatus_to_exitcode(status))
        self._tell_ends()

    def _ended(self, slot: _Slot, code: int) -> None:
        if slot.fd >= 0:
            os.close(slot.fd)
        running = slot.page.running()
        cause = _cause(code)
        orderly = slot.page.leaving or (self._signals > 0 and code == LEFT)
        if not orderly:
            log.error("child %s (pid %d) ended: %s; it was running %d tasks", slot.incarnation, slot.pid, cause, len(running))
            slot.report = (slot.incarnation, running, cause)
            self._back_off(slot)
        slot.pid, slot.fd = 0, -1

    def _back_off(self, slot: _Slot) -> None:
        lived = time.monotonic() - slot.born
        slot.restarts = 0 if lived > STEADY else slot.restarts + 1
        wait = min(10.0, 0.1 * 2 ** max(0, slot.restarts - 1)) if slot.restarts else 0.0
        slot.start_at = time.monotonic() + wait
        if slot.restarts > MAX_RESTARTS:
            log.critical("giving up: %d restarts in a row", MAX_RESTARTS)
            self._failed = True
            self._tell(signal.SIGTERM)

    def _tell_ends(self) -> None:
        """Report ended children: their tasks are ready again at once."""
        for slot in self._slots:
            if slot.report is None:
                continue
            incarnation, running, cause = slot.report
            try:
                recovered = self._get_heart().recover(incarnation, None, running, cause)
            except (RedisConnectionError, StoreError) as error:
                self._complain(error)
                slot.start_at = time.monotonic() + 0.5
                if boottime() - slot.page.confirmed > self._config.lease:
                    slot.report = None  # others have noticed by now, or will when Redis is back
                continue
            slot.report = None
            if recovered:
                log.warning("%d tasks of %s are ready again", recovered, incarnation)

    def _kill_all(self) -> None:
        self._tell(signal.SIGKILL)
        for slot in self._slots:
            if slot.pid:
                os.waitpid(slot.pid, 0)
                slot.pid = 0
        if self._heart is not None:
            self._heart.close()

    # --- beats -------------------------------------------------------------------------------

    def _get_heart(self) -> Heart:
        if self._heart is None:
            self._heart = Heart(self._config)
        return self._heart

    def _beat(self) -> None:
        now = time.monotonic()
        if now < self._beat_at:
            return
        self._beat_at = now + self._config.heartbeat
        living = [slot for slot in self._slots if slot.pid]
        # a child that has not registered holds nothing yet: its fence starts when it does
        for slot in living:
            if not slot.page.registered:
                slot.page.confirm(boottime())
        beating = [slot for slot in living if slot.page.registered and not self._wedged(slot)]
        try:
            sent, dead = self._get_heart().beat([slot.incarnation for slot in beating])
        except (RedisConnectionError, StoreError) as error:
            self._complain(error)
        else:
            self._complained = False
            for slot in beating:
                if slot.incarnation in dead:
                    log.error("child %s is dead to others: killing it", slot.incarnation)
                    self._kill(slot)
                else:
                    slot.page.confirm(sent)
        self._fence(beating)

    def _wedged(self, slot: _Slot) -> bool:
        if boottime() - slot.page.engine <= WEDGED:
            return False
        log.error("child %s has not turned for %.0f s: killing it", slot.incarnation, WEDGED)
        self._kill(slot)
        return True

    def _fence(self, beating: list[_Slot]) -> None:
        """Kill the children whose lease could not be renewed in time: before it can be given away."""
        margin = min(1.0, self._config.lease / 10)
        for slot in beating:
            age = boottime() - slot.page.confirmed
            if age > self._config.lease - margin:
                log.error("child %s: its lease was not confirmed for %.1f s: killing it", slot.incarnation, age)
                self._kill(slot)

    @staticmethod
    def _kill(slot: _Slot) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(slot.pid, signal.SIGKILL)

    def _complain(self, error: KRQError) -> None:
        """Once per outage."""
        if not self._complained:
            self._complained = True
            log.warning("no heartbeat: %s", error)


def _in_child(parent: int, alive: int, work: Callable[[], int]) -> None:
    """The rest of a child's life; never returns. ``alive``: a pipe that ends when the supervisor does."""
    code = GONE
    try:
        signal.set_wakeup_fd(-1)
        _die_with(parent, alive)
        code = work()
    except KRQError as error:
        log.critical("%s", error)
    except BaseException:  # boundary: the supervisor reads the exit code
        log.exception("a child could not go on")
    finally:
        logging.shutdown()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _die_with(parent: int, alive: int) -> None:
    """Be killed when the supervisor dies: by the kernel where it can, else by a thread that waits for the pipe's end."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=lambda: (os.read(alive, 1), os._exit(GONE)), name="krq-alive", daemon=True).start()
    if os.getppid() != parent:
        os._exit(GONE)


def _cause(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"
    if code == FENCED:
        return "its lease was lost"
    return f"exit code {code}"
