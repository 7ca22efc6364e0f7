"""A worker's child: one incarnation, with its engine, clients and slots. The shell around the engine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from krq import failpoints, ids, logs, message
from krq.errors import RedisConnectionError, StoreError
from krq.failpoints import Failpoint
from krq.store import steps
from krq.store.client import Answer, Store
from krq.store.inputs import results_of
from krq.store.scripts import Script
from krq.version import __version__
from krq.worker.brood import Brood
from krq.worker.drift import Drift
from krq.worker.engine import Engine, Held, Settle, Turn, taken
from krq.worker.hosts import Hosts
from krq.worker.intake import Intake
from krq.worker.log import LogKeeper
from krq.worker.page import Page, boottime
from krq.worker.process import FENCED, LEFT, OVERTIME
from krq.worker.reports import Reports
from krq.worker.run import Reach, Runner
from krq.worker.slots import Slots
from krq.worker.spec import Spec
from krq.worker.waker import Waker

log = logging.getLogger("krq.worker")

#: seconds without a turn of its engine after which a child counts as wedged
WEDGED = 60.0
#: seconds between two audits, and between two looks at what should stop
AUDIT, SYNC, EXPIRE = 10.0, 1.0, 5.0
#: tasks whose mean run time is below this share one awake slot
SHORT = 0.001


class LeaseLost(Exception):
    """This incarnation is dead to others: end at once."""


class Child:
    """Runs until it is told to stop. Lives in the main thread of its process."""

    def __init__(self, spec: Spec, incarnation: str, page: Page, control: socket.socket) -> None:
        self.spec = spec
        self.config = spec.config
        self.incarnation = incarnation
        self.page = page
        self.tally = page.tally
        self.inbox = spec.inbox or ids.inbox(ids.worker_of(incarnation))
        self.queues = list(dict.fromkeys([*spec.queues, self.inbox]))
        self.store = Store(spec.config)
        self.broker = spec.make_broker(spec.config)
        self.engine = Engine(spec.config.slots)
        self.slots = Slots(spec.config.slots, self._run)
        self.drift = Drift(page, spec.registry)
        self.hosts = Hosts(control, spec.config.recycle, spec.modules)
        self.runner = Runner(spec.config, spec.registry, spec.modules, incarnation, Reach(
            Reports(self.store, incarnation), partial(steps.answer, self.store, incarnation), partial(results_of, self.store), self.hosts,
            Brood(spec.config, self.store, self.broker).send,
        ))
        self.intake = Intake(spec.config, self.store, self.broker, spec.queues, incarnation)
        self.log = LogKeeper(spec.config, self.store, self.broker, incarnation)
        self._wake = threading.Event()
        wakes = [self.store.keys("wake", queue) for queue in self.queues]
        self._waker = Waker(spec.config.backend, wakes, lambda: self.engine.hungry, self._wake.set)
        self._done: deque[tuple[Settle, float, float]] = deque()
        self._spent_until = 0.0
        self._queues = deque(self.queues)
        self._stop_at: float | None = None
        self._overtime = False
        self._adrift = False
        self._ran = 0
        self._pid = os.getpid()
        self._at = {"audit": 0.0, "sync": 0.0, "expire": 0.0}
        self._wait = logs.Wait(log, "waiting for the store")
        self._fail = failpoints.armed()
        #: seconds without a confirmed beat after which the lease may be given away soon
        self._safe = spec.config.lease - min(2.0, spec.config.lease / 5)

    # --- life --------------------------------------------------------------------------------

    def run(self) -> int:
        """Work until stopped; returns the exit code."""
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides what Ctrl-C means
        logs.name_process(ids.worker_of(self.incarnation))
        logs.keep_tail(self.page.note)
        try:
            self._begin()
            while not self._finished():
                self._step()
            return self._leave()
        except LeaseLost as error:
            self.hosts.kill()
            log.error("%s stops: %s", self.incarnation, error)
            return FENCED

    def stop(self) -> None:
        """Take no more; running tasks get the grace time. From any thread or signal handler."""
        if self._stop_at is None:
            self._stop_at = time.monotonic() + self.config.grace
        self._wake.set()

    def _begin(self) -> None:
        while True:
            try:
                self.store.renew(os.urandom(8).hex())
                answer = self.store.run(Script.REGISTER, self.incarnation, self._fields(), self.spec.registry.names, list(self.spec.queues),
                                        self.spec.limits)
                if answer.ok:
                    break
                self._settle_epoch(answer.status)
            except (RedisConnectionError, StoreError) as error:
                self._wait.begin(error)
            if self._wake.wait(0.2) and self._stop_at is not None:
                raise LeaseLost("stopped before it began")
        self._wait.end()
        log.info("connected to %s", self.store.name)
        self.runner.epoch = self.store.epoch.number
        self.page.turned()
        self.page.set_registered()
        self.runner.observe("worker_started", ids.worker_of(self.incarnation))
        self.log.start()
        self.intake.start()
        self._waker.start()
        log.info("worker %s is ready: queues %s, %d slots", ids.worker_of(self.incarnation), ", ".join(self.spec.queues), self.config.slots)

    def _fields(self) -> list[Any]:
        fields = {
            "worker": ids.worker_of(self.incarnation), "host": socket.gethostname(), "pid": os.getpid(), "slots": self.config.slots,
            "queues": ",".join(self.spec.queues), "started": time.time_ns() // 1_000_000, "version": __version__, "inbox": self.inbox,
        }
        return [part for pair in fields.items() for part in pair]

    def _finished(self) -> bool:
        if self._stop_at is None:
            return False
        if not self.engine.stopping:
            log.info("worker %s stops: %d tasks are running", ids.worker_of(self.incarnation), self.slots.load.busy)
            self.runner.observe("worker_stopping", ids.worker_of(self.incarnation))
            self.intake.stop()
            self.engine.stop()
            self.engine.given_back(self.slots.withdraw())
        if time.monotonic() > self._stop_at and self.engine.held:
            # they still run, so it is the supervisor who hands them back, once this process has ended
            log.warning("the grace time is over: %d tasks still run", len(self.engine.held))
            self._overtime = True
            return True
        return self.engine.idle and not self._done

    def _leave(self) -> int:
        """Everything is settled, or time is over: log it, unregister."""
        patience = 0.5 if self._overtime else 5.0
        self.intake.join(patience)
        if not self.log.drain(patience):
            log.warning("the log could not take all that ended; another worker will see to it")
        self.runner.observe("worker_stopped", ids.worker_of(self.incarnation))
        if self._overtime:
            return OVERTIME
        self.page.set_leaving()
        while True:
            answer = self.store.run(Script.RECOVER, self.incarnation, False, [], "", self.config.max_deaths, [], [])
            if not answer.ok or not answer.values[0]:
                break
        log.info("worker %s has left", ids.worker_of(self.incarnation))
        return LEFT

    # --- one step ----------------------------------------------------------------------------

    def _step(self) -> None:
        now = time.monotonic()
        # with a short lease the fence is nearer than the engine's longest wait
        wait = min(self.engine.wait(now, self.slots.load), max(0.05, self._safe - self._unconfirmed()))
        if wait and not self._done:
            if self.engine.hungry:
                self._waker.listen()
            self._wake.wait(wait)
        self._wake.clear()
        self.page.turned()
        self._fence()
        now = time.monotonic()
        self._collect(now)
        load = self.slots.load
        if self.engine.stuck(now, load):
            self.engine.given_back(self.slots.withdraw())
        elif self.engine.slow(now, load):
            self.slots.nudge()
        turn = self.engine.turn(now, load)
        try:
            if turn is not None:
                self._send(turn, now)
            self._chores(now)
        except (RedisConnectionError, StoreError) as error:
            self._wait.begin(error)
            self._wake.wait(0.1)

    def _collect(self, now: float) -> None:
        if self._waker.heard():
            self.engine.woken()
        self.engine.tick(now)
        settles = []
        until = self._spent_until
        first = now
        while self._done:
            settle, began, until = self._done.popleft()
            settles.append(settle)
            first = min(first, began)
        # by the clock and not task by task: a slot that waits for the interpreter is no slow task
        span = until - max(first, self._spent_until)
        self._spent_until = until
        self.engine.ended(settles, max(0.0, span) * max(1, self.slots.load.busy), now)

    def _fence(self) -> None:
        """Stop before the lease can be given away: nobody confirmed it for too long.

        The kernel's timer is the last resort, for a child that turns no more under a supervisor that does not look.
        """
        signal.setitimer(signal.ITIMER_REAL, WEDGED + self.config.lease)
        age = self._unconfirmed()
        if age <= self._safe:
            self._adrift = False
        elif not self.drift.allowed:
            raise LeaseLost(f"its lease was not confirmed for {age:.1f} s")
        elif not self._adrift:
            self._adrift = True
            self.engine.given_back(self.slots.withdraw())
            log.warning("worker %s goes on without a lease: all its %d tasks accept to overlap", ids.worker_of(self.incarnation),
                        len(self.engine.held))

    def _unconfirmed(self) -> float:
        """Seconds since the last confirmed beat was sent."""
        return boottime() - self.page.confirmed

    def _send(self, turn: Turn, now: float) -> None:
        calls: list[tuple[Script, Sequence[Any]]] = []
        if turn.settles:
            served = self.queues if turn.take else []
            calls.append((Script.SETTLE, (self.incarnation, [settle.packed() for settle in turn.settles], served)))
        if turn.releases:
            calls.append((Script.RELEASE, (self.incarnation, turn.releases)))
        if turn.take:
            self._queues.rotate(-1)
            grace = int(self.config.unknown_task_grace * 1000)
            calls.append((Script.TAKE, (self.incarnation, turn.number, turn.take, list(self._queues), grace)))
        if self._fail is not None and turn.settles:
            self._fail(Failpoint.SETTLE_BEFORE)
        answers = self.store.run_all(calls)
        if self._fail is not None and turn.settles:
            self._fail(Failpoint.SETTLE_ANSWERED)
        for answer in answers:
            if not answer.ok and answer.status != "STALE":
                self._settle_epoch(answer.status)
                return
        self._wait.end()
        self._answered(turn, answers, now)

    def _answered(self, turn: Turn, answers: list[Answer], now: float) -> None:
        settled = answers[0].values[0] if turn.settles else []
        refused: list[Settle] = []
        done = self.engine.answered(settled, refused)
        self.drift.settled(settle.held for settle in (*done, *refused))
        if refused:
            self.log.look_back()
        for settle in refused:
            log.warning("the end of %s, attempt %d, was refused: it is another's by now", settle.held.id, settle.held.attempt)
        if self.tally is not None:
            self.tally.add(done)
            self.tally.refuse(len(refused))
        if done:
            self.log.add(done)
            self._ran += len(done)
            if self.config.recycle and self._ran >= self.config.recycle and self._stop_at is None:
                log.info("worker %s has run %d tasks: a fresh process goes on", ids.worker_of(self.incarnation), self._ran)
                self.stop()
        if turn.take and answers[-1].ok:
            tasks, due, more = answers[-1].values
            new = self.engine.took(taken(tasks), turn.take, None if due in (None, False) else due / 1000, more=more, now=now)
            if self._fail is not None and new:
                self._fail(Failpoint.TAKE_ANSWERED)
            if new:
                self.runner.observe("received", new)
            self.slots.start(new, short=0 < self.engine.mean < SHORT)

    def _run(self, slot: int, held: Held) -> None:
        """Run one task; called in its slot. A process that was frozen past its lease begins nothing more."""
        if self._unconfirmed() > self._safe and not (self.drift.allowed and self.drift.accepts(held)):
            self.hosts.kill()
            os._exit(FENCED)
        self.drift.begins(held)
        held.alone = self.runner.isolates(held)
        self.page.begin(slot, held.id, alone=held.alone)
        began = time.monotonic()
        settle = self.runner(held)
        if os.getpid() != self._pid:
            os._exit(0)  # the task has forked and come back twice: this is the copy
        self.page.end(slot)
        self.drift.ends(held)
        ended = time.monotonic()
        held.took = ended - began
        self._done.append((settle, began, ended))
        if not self._wake.is_set():
            self._wake.set()

    # --- chores ------------------------------------------------------------------------------

    def _due(self, chore: str, every: float, now: float) -> bool:
        if now - self._at[chore] < every:
            return False
        self._at[chore] = now
        return True

    def _chores(self, now: float) -> None:
        if self._due("sync", SYNC, now):
            audit = self._due("audit", AUDIT, now)
            answer = self.store.run(Script.SYNC, self.incarnation, audit)
            if not answer.ok:
                self._settle_epoch(answer.status)
                return
            self._wait.end()
            for task_id in answer.values[0]:
                self._tell_to_stop(task_id)
            if audit:
                self.engine.audit(answer.values[1] or [])
            if self.tally is not None:
                self.tally.note(len(self.engine.held), self.log.waiting)
            self.runner.observe("tick", time.time())
            self.hosts.tidy()
        if self._due("expire", EXPIRE, now):
            while (answer := self.store.run(Script.EXPIRE, int(self.config.result_ttl * 1000))).ok and answer.values[0] == 200:
                self.page.turned()

    def _tell_to_stop(self, task_id: str) -> None:
        held = self.engine.held.get(task_id)
        if held is not None and held.context is not None:
            held.context.cancel()

    # --- epochs ------------------------------------------------------------------------------

    def _settle_epoch(self, status: str) -> None:
        """The store is not what it was: say what runs here, wait until it opens, settle again what it may have lost."""
        if status == "DEAD":
            raise LeaseLost("others have declared it dead")
        self.engine.lost()
        while status != "OPEN":
            self._fence()
            self.page.turned()
            if self._stop_at is not None and time.monotonic() > self._stop_at:
                raise LeaseLost("stopped while the namespace was closed")
            status = self._assert(status)
            if status != "OPEN":
                time.sleep(0.2)
        self.runner.epoch = self.store.epoch.number
        log.warning("going on under epoch %d (%s)", self.store.epoch.number, self.store.epoch.reason)

    def _assert(self, status: str) -> str:
        try:
            if status != "CLOSED":
                self.store.renew(os.urandom(8).hex())
            again = [settle for settle in self.log.unlogged() if settle.held.id not in self.engine.held]
            holds = [*self.engine.held.values(), *(settle.held for settle in again)]
            tasks = [
                (h.id, h.attempt, h.message.task if h.message else "", h.queue, h.raw, message.checksum(h.raw.encode()), h.sent,
                 h.message is not None and h.message.key is not None and message.short_key(h.message.key))
                for h in holds
            ]
            answer = self.store.run(Script.ASSERT, self.incarnation, self._fields(), self.spec.registry.names, tasks, self.spec.limits)
            if not answer.ok:
                return answer.status
            for task_id in answer.values[0]:
                self._tell_to_stop(task_id)
            opened = self.store.run(Script.OPEN, int(self.config.lease * 1000))
            if opened.ok and opened.values[0]:
                self.engine.ended([settle for settle in again if settle.held.id not in answer.values[0]], 0.0, time.monotonic())
                return "OPEN"
            return "CLOSED" if opened.ok else opened.status
        except (RedisConnectionError, StoreError) as error:
            self._wait.begin(error)
            return status
