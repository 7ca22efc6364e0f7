"""A simulated worker: a supervisor with its heart, and its child with its engine. Network, slots and time are the simulator's."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from simulator_judge import Run

from krq import message
from krq.errors import NamespaceClosed, RedisConnectionError
from krq.store.client import Answer, Store
from krq.store.scripts import Script
from krq.worker.engine import Engine, Held, Load, Settle
from krq.worker.heart import End, Heart

if TYPE_CHECKING:
    from simulator import Simulation

QUEUES = ["qa", "qb"]
SLOTS, LEASE, BEAT = 2, 10.0, 1.0
#: seconds without a confirmed beat after which a child stops
SAFE = LEASE - 2.0
FAR = 4_000_000_000_000
FOREVER = 10**15


class Wire(Store):
    """A store whose requests go through the simulated network; its epoch is its own."""

    def __init__(self, base: Store, sim: Simulation) -> None:
        self.__dict__.update(copy.copy(base).__dict__)
        self._sim = sim

    def run_all(self, calls: Sequence[tuple[Script, Sequence[Any]]]) -> list[Answer]:
        return self._sim.carry(self, [(script, self._patience() if script is Script.OPEN else args) for script, args in calls])

    def _patience(self) -> list[int]:
        """The lease that open.lua waits for, by the simulation's clock and not by the server's."""
        return [0 if self._sim.now - self._sim.closed_at > LEASE else FOREVER]


class Child:
    """The shell around one engine, as ``krq/worker/child.py`` is one."""

    def __init__(self, sim: Simulation, name: str) -> None:
        self.sim, self.inc = sim, name
        self.store = Wire(sim.base, sim)
        self.engine = Engine(SLOTS)
        self.alive = True
        self.ready = False
        self.closed = ""
        self.confirmed = sim.now
        self.queue: deque[Held] = deque()
        self.running: dict[str, Run] = {}
        self.items: deque[Settle] = deque()
        self.published: list[Settle] = []
        self.stops: set[str] = set()
        self.behind = False

    @property
    def expired(self) -> bool:
        """Whether its lease may be given away soon: it has to stop before."""
        return self.sim.now - self.confirmed > SAFE

    def begin(self) -> None:
        if self.closed:
            return self.settle_epoch()
        self.store.renew(self.sim.name("e"))
        answer = self.store.run(Script.REGISTER, self.inc, ["worker", self.inc], ["*"], QUEUES)
        self.ready = answer.ok
        self.closed = "" if answer.ok else answer.status
        return None

    # --- turns -------------------------------------------------------------------------------

    def turn(self) -> None:
        if self.closed:
            return self.settle_epoch()
        self.engine.tick(self.sim.now)
        turn = self.engine.turn(self.sim.now, Load(len(self.queue), len(self.running)))
        if turn is None:
            return None
        calls: list[tuple[Script, Sequence[Any]]] = []
        if turn.settles:
            calls.append((Script.SETTLE, (self.inc, [settle.packed() for settle in turn.settles], QUEUES if turn.take else [])))
        if turn.releases:
            calls.append((Script.RELEASE, (self.inc, turn.releases)))
        if turn.take:
            calls.append((Script.TAKE, (self.inc, turn.number, turn.take, QUEUES, 0)))
        answers = self.store.run_all(calls)
        for answer in answers:
            if not answer.ok and answer.status != "STALE":
                return self.lose_epoch(answer.status)
        refused: list[Settle] = []
        self.items.extend(self.engine.answered(answers[0].values[0] if turn.settles else [], refused))
        self.behind = self.behind or bool(refused)
        if turn.take and answers[-1].ok:
            tasks, due, more = answers[-1].values
            took = self.engine.took(map(_held, tasks), turn.take, None if due in (None, False) else due / 1000, more=more, now=self.sim.now)
            self.queue.extend(took)
        return None

    def sync(self) -> None:
        if self.closed or self.engine._pending is not None:
            return None
        audit = self.sim.chance(0.5)
        answer = self.store.run(Script.SYNC, self.inc, audit)
        if not answer.ok:
            return self.lose_epoch(answer.status)
        self.stops.update(answer.values[0])
        if audit:
            self.engine.audit(answer.values[1] or [])
        return None

    # --- epochs ------------------------------------------------------------------------------

    def lose_epoch(self, status: str) -> None:
        if status == "DEAD":
            return self.sim.kill(self, "declared dead")
        self.closed = status
        self.engine.lost()
        return None

    def settle_epoch(self) -> None:
        if self.closed != "CLOSED":
            self.store.renew(self.sim.name("e"))
        again = [s for s in [*self.published, *self.items] if s.held.id not in self.engine.held]
        tasks = [
            (h.id, h.attempt, "add", h.queue, h.raw, message.checksum(h.raw.encode()), h.sent)
            for h in [*self.engine.held.values(), *(s.held for s in again)]
        ]
        answer = self.store.run(Script.ASSERT, self.inc, ["worker", self.inc], ["*"], tasks)
        if not answer.ok:
            self.closed = answer.status
            return
        self.stops.update(answer.values[0])
        opened = self.store.run(Script.OPEN, FOREVER)
        if opened.ok and opened.values[0]:
            self.engine.ended([s for s in again if s.held.id not in answer.values[0]], 0.0, self.sim.now)
            self.closed = ""
        else:
            self.closed = "CLOSED" if opened.ok else opened.status

    # --- slots -------------------------------------------------------------------------------

    def start(self) -> None:
        if self.queue and len(self.running) < SLOTS and not self.expired:
            held = self.queue.popleft()
            self.running[held.id] = self.sim.judge.start(self, held)
            held.started = 1

    def finish(self) -> None:
        if not self.running:
            return
        i = self.sim.pick(self.running)
        run = self.running.pop(i)
        kind = self.sim.pick("SSSSSSFRRR")
        if kind == "R" and run.held.failures >= 2:
            kind = "F"
        if i in self.stops and self.sim.chance(0.5):
            kind = "C"
        entry = msgspec.json.encode({"id": i, "attempt": run.held.attempt, "outcome": kind}).decode()
        value = {"S": '"done"', "F": '{"type":"E"}', "R": '{"type":"E"}', "C": '{"type":"CANCELLED"}'}[kind]
        self.engine.ended([Settle(run.held, kind, value, entry, FAR // 1000 if self.sim.chance(0.4) else 0)], 0.1, self.sim.now)

    def give_back(self) -> None:
        """What waits for a slot goes to others; also what its engine would call stuck."""
        self.engine.given_back(list(self.queue))
        self.queue.clear()

    # --- the log -----------------------------------------------------------------------------

    def log(self) -> None:
        """One step: publish what is settled, or let go of what is published; or what stands in its outbox unknown to it."""
        if self.behind:
            self.behind = self.sim.log_outbox(self, self.inc)
        elif self.published:
            items = [(s.held.id, s.held.attempt, s.kind != "R") for s in self.published]
            if self.store.run(Script.LOGGED, self.inc, items).ok:
                self.published = []
        else:
            self.published = [self.items.popleft() for _ in range(min(3, len(self.items)))]
            self.sim.judge.logged([s.entry for s in self.published])


class Machine:
    """A supervisor, with its heart, and its child."""

    def __init__(self, sim: Simulation, name: str) -> None:
        self.sim, self.name = sim, name
        self.heart = Heart(sim.config)
        self.heart._store.close()
        self.heart._store = Wire(sim.base, sim)
        self.lives = 0
        self.frozen = False
        self.beat_at = 0.0
        self.report: tuple[str, End] | None = None
        self.child = self.fork()

    def fork(self) -> Child:
        self.lives += 1
        return Child(self.sim, f"{self.name}~{self.lives}")

    def beat(self) -> None:
        """What a supervisor does once a heartbeat: report an end, fork again, renew the lease, look at others."""
        self.beat_at = self.sim.now + BEAT
        child = self.child
        try:
            if self.report is not None:
                self.heart.recover(self.report[0], None, self.report[1])
                self.report = None
            if not child.alive:
                child = self.child = self.fork()
            if not child.ready:
                child.confirmed = self.sim.now
                return child.begin()
            sent, dead = self.heart.beat([child.inc])
        except (RedisConnectionError, NamespaceClosed):
            return None
        if child.inc in dead:
            self.sim.kill(child, "dead to others")
        else:
            child.confirmed = sent
        return None


def _held(t: Sequence[Any]) -> Held:
    return Held(id=t[0], attempt=t[1], failures=t[2], deaths=t[3], raw=t[4], sent=t[5], queue=t[6], inputs=t[7] or None, known=t[8])
