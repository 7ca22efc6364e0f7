"""A worker's child: one incarnation, with its engine, clients and slots. The shell around the engine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from krq import ids, message
from krq.brokers.base import Broker
from krq.config import Config
from krq.errors import KRQError, RedisConnectionError, StoreError
from krq.hooks import Attempt, Module
from krq.registry import Registry
from krq.store.client import TIMEOUT, Answer, Store, connect
from krq.store.records import remember_dead, results_of
from krq.store.scripts import Script
from krq.version import __version__
from krq.worker.engine import Engine, Held, Settle, Turn
from krq.worker.intake import Intake
from krq.worker.log import LogKeeper
from krq.worker.page import Page, boottime
from krq.worker.run import Runner
from krq.worker.slots import Slots

log = logging.getLogger("krq.worker")

#: exit codes that mean something to the supervisor
LEFT, FENCED, GONE = 0, 71, 72
#: seconds without a turn of its engine after which a child counts as wedged
WEDGED = 60.0
#: seconds between two audits, and between two looks at what should stop
AUDIT, SYNC, EXPIRE = 10.0, 1.0, 5.0
#: tasks whose mean run time is below this share one awake slot
SHORT = 0.001


class Spec(NamedTuple):
    """What a child is made of. Nothing in it holds a connection: it crosses a fork."""

    config: Config
    registry: Registry
    modules: Sequence[Module]
    queues: Sequence[str]
    make_broker: Callable[[Config], Broker]
    inbox: str = ""
    """one of ``queues`` that is this worker's own; "": each child has one that is named after it"""


class LeaseLost(Exception):
    """This incarnation is dead to others: end at once."""


class Child:
    """Runs until it is told to stop. Lives in the main thread of its process."""

    def __init__(self, spec: Spec, incarnation: str, page: Page) -> None:
        self.spec = spec
        self.config = spec.config
        self.incarnation = incarnation
        self.page = page
        self.inbox = spec.inbox or ids.inbox(ids.worker_of(incarnation))
        self.queues = list(dict.fromkeys([*spec.queues, self.inbox]))
        self.store = Store(spec.config)
        self.broker = spec.make_broker(spec.config)
        self.engine = Engine(spec.config.slots)
        self.slots = Slots(spec.config.slots, self._run)
        read = partial(results_of, self.store)
        self.runner = Runner(spec.config, spec.registry, spec.modules, incarnation, self._report, read)
        self.intake = Intake(spec.config, self.store, self.broker, spec.queues, incarnation)
        self.log = LogKeeper(spec.config, self.store, self.broker, incarnation)
        self._waker = threading.Thread(target=self._listen, name="krq-wake", daemon=True)
        self._wake = threading.Event()
        self._hungry = threading.Event()
        self._woken = False
        self._done: deque[tuple[Settle, float, float]] = deque()
        self._spent_until = 0.0
        self._progress: dict[str, float] = {}
        self._queues = deque(self.queues)
        self._stop_at: float | None = None
        self._at = {"audit": 0.0, "sync": 0.0, "expire": 0.0}
        self._complained = False
        #: seconds without a confirmed beat after which the lease may be given away soon
        self._safe = spec.config.lease - min(2.0, spec.config.lease / 5)

    # --- life --------------------------------------------------------------------------------

    def run(self) -> int:
        """Work until stopped; returns the exit code."""
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides what Ctrl-C means
        try:
            self._begin()
            while not self._finished():
                self._step()
            return self._leave()
        except LeaseLost as error:
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
                answer = self.store.run(Script.REGISTER, self.incarnation, self._fields(), self.spec.registry.names, list(self.spec.queues))
                if answer.ok:
                    break
                self._settle_epoch(answer.status)
            except (RedisConnectionError, StoreError) as error:
                self._complain(error)
            if self._wake.wait(0.2) and self._stop_at is not None:
                raise LeaseLost("stopped before it began")
        self._complained = False
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
            "queues": ",".join(self.spec.queues), "started": time.time_ns() // 1_000_000, "version": __version__,
            "inbox": self.inbox,
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
            log.warning("the grace time is over: %d tasks are handed back", len(self.engine.held))
            self.engine.given_back(list(self.engine.held.values()))
            self._stop_at = float("inf")
        return self.engine.idle and not self._done

    def _leave(self) -> int:
        """Everything is settled or handed back: log it, unregister."""
        self.intake.join(5.0)
        if not self.log.drain(5.0):
            log.warning("the log could not take all that ended; another worker will see to it")
        while True:
            answer = self.store.run(Script.RECOVER, self.incarnation, False, [], "", self.config.max_deaths)
            if not answer.ok or not answer.values[0]:
                break
        self.page.set_leaving()
        log.info("worker %s has left", ids.worker_of(self.incarnation))
        return LEFT

    # --- one step ----------------------------------------------------------------------------

    def _step(self) -> None:
        now = time.monotonic()
        wait = self.engine.wait(now, self.slots.load)
        if wait and not self._done:
            if self.engine.hungry:
                self._hungry.set()
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
            self._complain(error)
            self._wake.wait(0.1)

    def _collect(self, now: float) -> None:
        if self._woken:
            self._woken = False
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
        if age > self._safe:
            raise LeaseLost(f"its lease was not confirmed for {age:.1f} s")

    def _unconfirmed(self) -> float:
        """Seconds since the last confirmed beat was sent."""
        return boottime() - self.page.confirmed

    def _send(self, turn: Turn, now: float) -> None:
        calls: list[tuple[Script, Sequence[Any]]] = []
        if turn.settles:
            calls.append((Script.SETTLE, (self.incarnation, [settle.packed() for settle in turn.settles])))
        if turn.releases:
            calls.append((Script.RELEASE, (self.incarnation, turn.releases)))
        if turn.take:
            self._queues.rotate(-1)
            grace = int(self.config.unknown_task_grace * 1000)
            calls.append((Script.TAKE, (self.incarnation, turn.number, turn.take, list(self._queues), grace)))
        answers = self.store.run_all(calls)
        for answer in answers:
            if not answer.ok and answer.status != "STALE":
                self._settle_epoch(answer.status)
                return
        self._complained = False
        self._answered(turn, answers, now)

    def _answered(self, turn: Turn, answers: list[Answer], now: float) -> None:
        settled = answers[0].values[0] if turn.settles else []
        refused: list[Settle] = []
        done = self.engine.answered(settled, refused)
        for settle in refused:
            log.warning("the end of %s, attempt %d, was refused: it is another's by now", settle.held.id, settle.held.attempt)
        for settle in done:
            if settle.letter is not None:
                remember_dead(self.store, settle.letter)
        if done:
            self.log.add(done)
        if turn.take and answers[-1].ok:
            tasks, due, more = answers[-1].values
            new = self.engine.took(self._read(tasks), turn.take, None if due in (None, False) else due / 1000, more=more, now=now)
            self.slots.start(new, short=0 < self.engine.mean < SHORT)

    def _read(self, tasks: Sequence[Sequence[Any]]) -> list[Held]:
        read = []
        for task_id, attempt, failures, deaths, raw, sent, queue, inputs, known in tasks:
            held = Held(id=task_id, attempt=attempt, failures=failures, deaths=deaths, raw=raw, sent=sent, queue=queue,
                        inputs=inputs or None, known=known)
            try:
                held.message = message.reread(raw)
            except ValueError as error:
                # only a hand in Redis can do this; the task stays where it is, and `krq task` shows it
                log.error("task %s has no message that can be read: %s", task_id, error)
                continue
            read.append(held)
        return read

    def _run(self, slot: int, held: Held) -> None:
        """Run one task; called in its slot. A process that was frozen past its lease begins nothing more."""
        if self._unconfirmed() > self._safe:
            os._exit(FENCED)
        self.page.begin(slot, held.id)
        began = time.monotonic()
        settle = self.runner(held)
        self.page.end(slot)
        self._done.append((settle, began, time.monotonic()))
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
            for task_id in answer.values[0]:
                self._tell_to_stop(task_id)
            if audit:
                self.engine.audit(answer.values[1] or [])
            self.runner.observe("tick", time.time())
        if self._due("expire", EXPIRE, now):
            while (answer := self.store.run(Script.EXPIRE, int(self.config.result_ttl * 1000))).ok and answer.values[0] == 200:
                self.page.turned()

    def _tell_to_stop(self, task_id: str) -> None:
        held = self.engine.held.get(task_id)
        if held is not None and held.context is not None:
            held.context.cancel()

    def _report(self, attempt: Attempt, done: int, total: int) -> None:
        """Progress of a task, at most one a second each; called in its slot."""
        now = time.monotonic()
        if done < total and now - self._progress.get(attempt.id, 0.0) < 1.0:
            return
        self._progress = {attempt.id: now, **{k: at for k, at in self._progress.items() if now - at < 60}}
        try:
            self.store.run(Script.PROGRESS, self.incarnation, attempt.id, attempt.number, int(done), int(total))
        except KRQError as error:
            log.debug("progress of %s: %s", attempt.id, error)

    def _listen(self) -> None:
        """Block on the wake-up keys while the engine is hungry; its own thread and connection."""
        client = connect(self.config.backend, TIMEOUT + 5)
        keys = [self.store.keys("wake", queue) for queue in self.queues]
        while True:
            self._hungry.wait()
            try:
                token: Any = client.blpop(keys, timeout=2)
            except Exception as error:  # boundary: a lost wake costs a second, the thread's end would cost more
                log.debug("wake: %s", error)
                time.sleep(0.5)
                token = True
            if token or not self.engine.hungry:
                self._hungry.clear()
                self._woken = True
                self._wake.set()

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
                (h.id, h.attempt, h.message.task if h.message else "", h.queue, h.raw, message.checksum(h.raw.encode()), h.sent)
                for h in holds
            ]
            answer = self.store.run(Script.ASSERT, self.incarnation, self._fields(), self.spec.registry.names, tasks)
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
            self._complain(error)
            return status

    def _complain(self, error: KRQError) -> None:
        """Once per outage."""
        if not self._complained:
            self._complained = True
            log.warning("waiting for the store: %s", error)
