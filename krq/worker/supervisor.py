"""The supervisor: forks the children, beats for them, ends them, reports their end, starts them again.

It runs no task and has one thread, so that it can fork at any time. When it dies its children die.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from typing import Any

from krq.errors import NamespaceClosed, RedisConnectionError, StoreError, WorkerRecoveryError
from krq.logs import Wait
from krq.worker.child import WEDGED
from krq.worker.exporter import Exporter, Place
from krq.worker.family import Family
from krq.worker.heart import End, Heart
from krq.worker.page import boottime
from krq.worker.process import FENCED, LEFT, OVERTIME, adopting, cause
from krq.worker.spec import Spec

log = logging.getLogger("krq.worker")

#: a child that lived so long resets the back-off
STEADY = 30.0
#: restarts in a row, each after a short life, after which the worker gives up
MAX_RESTARTS = 10
#: tasks that are named when a child has died over them
SOME = 10


class Supervisor:
    """Runs a worker until it is told to stop. Lives in the main thread; ``run`` returns the exit code."""

    def __init__(self, spec: Spec, worker_id: str, processes: int = 1) -> None:
        self._config = spec.config
        names = [worker_id] if processes == 1 else [f"{worker_id}.{n + 1}" for n in range(processes)]
        self._alive = os.pipe()
        self._families = [Family(spec, name, self._alive) for name in names]
        places = [Place(family.worker_id, family.page, family.tally) for family in self._families if family.tally is not None]
        self._exporter = Exporter(spec.config, places, self._alive) if places else None
        self._heart: Heart | None = None
        self._signals = 0
        self._failed = False
        self._silence = Wait(log, "no heartbeat")
        self._beat_at = 0.0

    def run(self) -> int:
        """Start the children and keep them; 0 after an orderly stop. Raises ``WorkerRecoveryError``."""
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)  # it wakes the wait
        wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        try:
            with adopting():
                if self._exporter is not None:
                    self._exporter.start()
                while not self._over():
                    self._start_due()
                    self._beat()
                    self._wait(read)
                    self._look_after()
                    if self._exporter is not None:
                        self._exporter.turned(stopping=self._stopping)
                        self._exporter.keep()
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            for family in self._families:
                family.end()
            if self._exporter is not None:
                self._exporter.end()
            if self._heart is not None:
                self._heart.close()
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
        for family in self._families:
            family.tell(signal.SIGTERM if self._signals == 1 else signal.SIGKILL)

    @property
    def _stopping(self) -> bool:
        return self._signals > 0 or self._failed

    def _over(self) -> bool:
        return self._stopping and not any(family.pid for family in self._families) and not self._reports_due()

    def _reports_due(self) -> bool:
        """Whether ends of children wait to be told; at a stop they get one try."""
        due = any(family.end_to_tell is not None for family in self._families)
        if due and self._stopping:
            self._tell_ends()
            return False
        return due

    # --- children ----------------------------------------------------------------------------

    def _start_due(self) -> None:
        now = time.monotonic()
        for family in self._families:
            if not family.pid and not self._stopping and now >= family.start_at and family.end_to_tell is None:
                family.start()

    def _wait(self, signals: int) -> None:
        """Sleep until the next beat, a signal (also of a process that ended), or a request for a host."""
        controls = [family.control.fileno() for family in self._families if family.control is not None]
        ready, _, _ = select.select([signals, *controls], [], [], max(0.0, min(self._beat_at - time.monotonic(), 1.0)))
        if signals in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(signals, 4096)

    def _look_after(self) -> None:
        for family in self._families:
            if family.pid:
                family.serve()
                code = family.reap()
                if code is not None:
                    self._ended(family, code)
        self._tell_ends()

    def _ended(self, family: Family, code: int) -> None:
        page, how = family.page, cause(code)
        if code == OVERTIME:
            family.end_to_tell = End()
        elif not (page.leaving and code == LEFT):
            ran = page.running()
            which = ": " + ", ".join(list(ran)[:SOME]) if ran else ""
            log.error("child %s ended: %s; it was running %d tasks%s", family.incarnation, how, len(ran), which)
            blameless = family.fenced or code == FENCED or self._signals > 1
            suspects = [] if blameless else [task_id for task_id, alone in ran.items() if not alone]
            family.end_to_tell = End(how, list(ran), suspects, page.tail())
            self._back_off(family)

    def _back_off(self, family: Family) -> None:
        lived = time.monotonic() - family.born
        family.restarts = 0 if lived > STEADY else family.restarts + 1
        wait = min(10.0, 0.1 * 2 ** max(0, family.restarts - 1)) if family.restarts else 0.0
        family.start_at = time.monotonic() + wait
        if family.restarts > MAX_RESTARTS:
            log.critical("giving up: %d restarts in a row", MAX_RESTARTS)
            self._failed = True
            for each in self._families:
                each.tell(signal.SIGTERM)

    def _tell_ends(self) -> None:
        """Report ended children: their tasks are ready again at once."""
        for family in self._families:
            end = family.end_to_tell
            if end is None:
                continue
            try:
                recovered = self._get_heart().recover(family.incarnation, None, end)
            except NamespaceClosed:
                continue  # again at the next turn, until it is open
            except (RedisConnectionError, StoreError) as error:
                self._silence.begin(error)
                family.start_at = time.monotonic() + 0.5
                if boottime() - family.page.confirmed > self._config.lease:
                    family.end_to_tell = None  # others have noticed by now, or will when Redis is back
                continue
            family.end_to_tell = None
            if recovered and end.cause:
                log.warning("%d tasks of %s are ready again", recovered, family.incarnation)
            elif recovered:
                log.warning("%d tasks that ran beyond the grace time are handed back", recovered)

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
        living = [family for family in self._families if family.pid]
        # a child that has not registered holds nothing yet: its fence starts when it does
        for family in living:
            if not family.page.registered:
                family.page.confirm(boottime())
        beating = [family for family in living if family.page.registered and not self._wedged(family)]
        try:
            sent, dead = self._get_heart().beat([family.incarnation for family in beating])
        except (RedisConnectionError, StoreError) as error:
            self._silence.begin(error)
        else:
            self._silence.end()
            for family in beating:
                if family.incarnation not in dead:
                    family.page.confirm(sent)
                elif not family.page.leaving:
                    log.error("child %s is dead to others: killing it", family.incarnation)
                    family.fence()
        self._fence(beating)

    def _wedged(self, family: Family) -> bool:
        if boottime() - family.page.engine <= WEDGED:
            return False
        log.error("child %s has not turned for %.0f s: killing it", family.incarnation, WEDGED)
        family.kill()
        return True

    def _fence(self, beating: list[Family]) -> None:
        """Kill the children whose lease could not be renewed in time: before it can be given away."""
        margin = min(1.0, self._config.lease / 10)
        for family in beating:
            age = boottime() - family.page.confirmed
            if age > self._config.lease - margin and not family.page.adrift:
                log.error("child %s: its lease was not confirmed for %.1f s: killing it", family.incarnation, age)
                family.fence()
