"""A seeded simulator: many engines in one thread against the real scripts, with all that can go wrong on the way.

One number makes the whole schedule: which machine does what, which request or answer is lost, carried out late, or twice; who
is killed, frozen past its lease and comes back; when Redis begins another life. Engines, hearts and scripts are KRQ's own; time,
network, slots and the log are simulated. A model that knows only what was sent and answered judges each step (``Judge``).

    SEED=7 pytest tests/test_simulator.py       replays one schedule
    make simulate SEEDS=1000 [FIRST=7]          plays many
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec
from simulator_judge import Judge, Record, Violation
from simulator_worker import BEAT, FAR, FOREVER, LEASE, QUEUES, Child, Machine
from store_reading import dump, of

from krq import config, message
from krq.brokers.base import Position
from krq.errors import RedisConnectionError
from krq.message import Message
from krq.store.client import Answer, Store
from krq.store.records import record
from krq.store.scripts import Script
from krq.worker import heart
from krq.worker.heart import End

PARTS = [("qa", 0), ("qa", 1), ("qb", 0)]
WINDOW, STEPS, ROUNDS = 3, 300, 400

#: what may happen, and how often
CHANCES = {
    "publish": 16, "intake": 16, "turn": 40, "start": 30, "finish": 30, "listen": 8, "log": 14, "read_back": 4, "sync": 8,
    "late": 14, "due": 6, "cancel": 2, "give_back": 2, "forget": 2, "pass_time": 6, "commit": 6,
    "kill_child": 2, "kill_machine": 1, "freeze": 2, "thaw": 2, "join": 3, "leave": 1, "restart": 1,
}  # fmt: skip
#: those that happen to no single child
WORLD = {"publish", "commit", "late", "due", "cancel", "forget", "pass_time", "kill_machine", "freeze", "thaw", "join", "restart"}


class Simulation:
    """One schedule: ``run`` raises ``Violation`` with all that happened."""

    def __init__(self, url: str, seed: int, steps: int = STEPS) -> None:
        self.seed, self.steps, self.rng = seed, steps, Random(seed)
        self.config = config.load({"backend": url, "namespace": f"s{time.time_ns():x}", "heartbeat": BEAT, "lease": LEASE})
        self.base = Store(self.config)
        self.wakes = [self.base.keys("wake", queue) for queue in QUEUES]
        self.now = 0.0
        self.trace: list[str] = []
        self.judge = Judge(self)
        self.log: dict[tuple[str, int], list[Record]] = {part: [] for part in PARTS}
        self.late_copies: list[tuple[Store, list[tuple[Script, Sequence[Any]]]]] = []
        self.names = 0
        self.closed_at = -FOREVER
        self.faults = self.rng.choice([0.0, 0.05, 0.15, 0.3])
        self.machines: list[Machine] = []
        self.positions: dict[tuple[str, tuple[str, int]], int] = {}
        self.plan = self._plan()

    # --- chance ------------------------------------------------------------------------------

    def chance(self, of: float) -> bool:
        return self.rng.random() < of

    def pick(self, of: Any) -> Any:
        return self.rng.choice(sorted(of) if not isinstance(of, str | list) else of)

    def name(self, kind: str) -> str:
        self.names += 1
        return f"{kind}{self.names}"

    def _plan(self) -> list[Message]:
        """What will be sent: some wait for earlier or later ones, some are due far ahead."""
        plan = []
        for n in range(self.rng.randint(4, 24)):
            after = self.rng.sample([f"t{m:02}" for m in range(n)], min(n, self.rng.choice([0, 0, 0, 1, 2])))
            eta = FAR / 1000 + n if self.chance(0.1) else None
            plan.append(Message(task="add", task_id=f"t{n:02}", after=sorted(after), eta=eta, priority=self.rng.choice([0, 0, 0, 5])))
        self.rng.shuffle(plan)
        return plan

    # --- the network -------------------------------------------------------------------------

    def carry(self, store: Store, calls: Sequence[tuple[Script, Sequence[Any]]]) -> list[Answer]:
        """Requests on their way there, and answers on their way back."""
        fate = "fine" if not self.chance(self.faults) else self.pick(["lost", "late", "reply lost", "cut"])
        text = ", ".join(script.value for script, _ in calls)
        if fate != "fine":
            self.trace.append(f"  ({text}: {fate})")
        if fate == "late":
            stale = copy.copy(store)
            self.late_copies.append((stale, msgspec.msgpack.decode(msgspec.msgpack.encode(list(calls)))))
        if fate in ("lost", "late"):
            raise RedisConnectionError("lost")
        some = calls[:1] if fate == "cut" else calls
        answers = self.execute(store, some)
        if fate != "fine":
            raise RedisConnectionError(fate)
        return answers

    def execute(self, store: Store, calls: Sequence[tuple[Script, Sequence[Any]]]) -> list[Answer]:
        """At the server: in order, each seen by the judge."""
        answers = []
        for name, args in calls:
            script = Script(name)
            answer = Store.run_all(store, [(script, args)])[0]
            self.judge.saw(script, args, answer)
            answers.append(answer)
        return answers

    # --- steps -------------------------------------------------------------------------------

    def run(self) -> None:
        before, heart.boottime = heart.boottime, lambda: self.now
        logging.getLogger("krq").setLevel(logging.CRITICAL)
        try:
            self._begin()
            for _ in range(self.steps):
                self.step(self.rng.choices([*CHANCES], weights=[*CHANCES.values()])[0])
            self._drain()
        except Violation as violation:
            violation.add_note(f"SEED={self.seed} at step {len(self.trace)}\n" + "\n".join(self.trace[-60:]))
            raise
        finally:
            heart.boottime = before
            logging.getLogger("krq").setLevel(logging.NOTSET)
            self._clean()

    def _begin(self) -> None:
        self.base.renew("first")
        self.execute(self.base, [(Script.MARK, ([[queue, number, "tid", 0, False] for queue, number in PARTS],))])
        for _ in range(2):
            self.join()

    def step(self, what: str, machine: Machine | None = None) -> None:
        """One thing happens to one machine; then time passes, hearts beat, fences fall."""
        free = [m for m in self.machines if not m.frozen]
        chosen = machine or (self.rng.choice(free) if free else None)
        try:
            if what in WORLD:
                self.trace.append(what)
                getattr(self, what)()
            elif chosen is not None and chosen.child.alive and chosen.child.ready and not chosen.frozen:
                self.trace.append(f"{what} {chosen.child.inc}")
                self._of(chosen.child, what)
        except RedisConnectionError:
            pass
        self._pass(self.rng.choice([0.0, 0.05, 0.3]))

    def _of(self, child: Child, what: str) -> None:
        match what:
            case "listen":
                if child.engine.hungry and self.base.redis.lmpop(2, *self.wakes, direction="LEFT"):
                    child.engine.woken()
            case "kill_child":
                self.kill(child, "SIGKILL")
            case "intake":
                self._intake(child)
            case "read_back":
                self._read_back(child)
            case "leave":
                self._leave(child)
            case _:
                getattr(child, what)()

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        for machine in self.machines:
            if not machine.frozen:
                if self.now >= machine.beat_at:
                    machine.beat()
                if machine.child.alive and machine.child.ready and machine.child.expired:
                    self.kill(machine.child, "its fence")

    def pass_time(self) -> None:
        for _ in range(self.rng.choice([1, 4, 14])):
            self._pass(1.0)

    def join(self) -> None:
        if len(self.machines) < 4:
            machine = Machine(self, self.name("m"))
            self.machines.append(machine)
            machine.beat()

    # --- the log -----------------------------------------------------------------------------

    def publish(self) -> None:
        """Once, or as often as its sender does not know; the short cut at once, late, or never."""
        if not self.plan:
            return
        msg = self.plan[0] if self.chance(0.15) else self.plan.pop(0)
        queue, number = part = PARTS[2] if int(msg.task_id[1:]) % 3 == 0 else PARTS[self.rng.randrange(2)]
        raw = message.encode(msg, max_bytes=10_000, max_depth=10)
        offset = len(self.log[part])
        row = record(msg.task_id, msg, raw, Position(queue, number, offset), queue, time.time_ns() // 1_000_000, ordered=True)
        self.log[part].append(Record(msg.task_id, row, tuple(msg.after)))
        self.trace.append(f"  {msg.task_id} at {queue}:{number}:{offset}, after {msg.after}")
        call = [(Script.ADMIT, ([], WINDOW, FOREVER, 86400, [row]))]
        sender = copy.copy(self.base)
        match self.pick(["now", "now", "late", "never"]):
            case "now":
                self.execute(sender, call)
            case "late":
                self.late_copies.append((sender, call))

    def _intake(self, child: Child, *, honest: bool = False) -> None:
        """Read from where this reader believes to be: mostly the mark, but partitions move."""
        part = self.rng.choice(PARTS)
        at = self.positions.get((child.inc, part), 0)
        if not honest and self.chance(0.2):
            at = max(0, at + self.rng.choice([-2, -1, 1]))
        rows = [r.row for r in self.log[part][at : at + self.rng.randint(1, 4)]]
        if not rows:
            return
        source = [*part, "tid", at, at + len(rows), time.time_ns() // 1_000_000]
        answer = child.store.run(Script.ADMIT, source, WINDOW, FOREVER, 86400, rows)
        if answer.ok:
            stop = answer.values[0]
            self.positions[child.inc, part] = at + len(rows) if stop in (None, False) else stop
        elif answer.status == "GAP":
            self.positions[child.inc, part] = answer.values[0]

    def _read_back(self, child: Child) -> None:
        """Log what the dead and the scripts left."""
        for holder in sorted(h.decode() for h in self.base.redis.smembers(self.base.keys("orphans"))):
            self.log_outbox(child, holder)

    def log_outbox(self, child: Child, holder: str) -> bool:
        """A page of an outbox. True: there may be more."""
        found = self.base.redis.hgetall(self.base.keys("outbox", holder))
        entries = sorted((field.decode(), raw) for field, raw in found.items())[:3]
        items = []
        for field, raw in entries:
            i, _, attempt = field.rpartition(":")
            items.append((i, int(attempt), msgspec.json.decode(raw)["outcome"] not in ("R", "retry")))
        self.judge.logged([raw for _, raw in entries])
        return not child.store.run(Script.LOGGED, holder, items).ok or len(items) == 3

    # --- what goes wrong ---------------------------------------------------------------------

    def kill(self, child: Child, why: str) -> None:
        child.alive = False
        self.trace.append(f"  {child.inc} ends: {why}")
        for machine in self.machines:
            if machine.child is child and child.ready:
                machine.report = (child.inc, End(why, sorted(child.running)))

    def kill_machine(self) -> None:
        if len(self.machines) > 1:
            machine = self.machines.pop(self.rng.randrange(len(self.machines)))
            machine.child.alive = False
            self.trace.append(f"  {machine.child.inc}")

    def freeze(self) -> None:
        if sum(not m.frozen for m in self.machines) > 1:
            machine = self.rng.choice([m for m in self.machines if not m.frozen])
            machine.frozen = True
            self.trace.append(f"  {machine.child.inc}")

    def thaw(self) -> None:
        """Back after a while, perhaps beyond its lease: then it may send what lay in its buffers before its fence falls."""
        frozen = [m for m in self.machines if m.frozen]
        if not frozen:
            return
        machine = self.rng.choice(frozen)
        child = machine.child
        self.trace.append(f"  {child.inc}{' beyond its lease' if child.alive and child.expired else ''}")
        machine.frozen = False
        if child.alive and child.ready and child.expired:
            if self.chance(0.5):
                while child.running:
                    child.finish()
                child.turn()
            if child.alive:
                self.kill(child, "its fence")

    def late(self) -> None:
        """A request that was given up is carried out after all."""
        if self.late_copies:
            store, calls = self.late_copies.pop(self.rng.randrange(len(self.late_copies)))
            self.trace.append(f"  {', '.join(Script(script).value for script, _ in calls)}")
            self.execute(store, calls)

    def restart(self) -> None:
        """Another life of the server, which lost nothing."""
        self.base.redis.hset(self.base.keys.epoch, "run", "0" * 40)
        self.closed_at = self.now

    def due(self) -> None:
        """What waits for a time is due, all of it."""
        for queue in QUEUES:
            key = self.base.keys("scheduled", queue)
            line = sorted(self.base.redis.zrange(key, 0, -1))
            if line:
                self.base.redis.zadd(key, {i: n for n, i in enumerate(line)})
        for machine in self.machines:
            machine.child.engine.woken()

    def cancel(self) -> None:
        known = sorted({r.id for line in self.log.values() for r in line})
        if known:
            self.execute(self._current(), [(Script.CANCEL, ([self.pick(known)],))])

    def commit(self) -> None:
        """How far is each partition complete?"""
        self.execute(self._current(), [(Script.MARK, ([[*part, "tid", False, False] for part in PARTS],))])

    def forget(self) -> None:
        """Nothing is old enough yet."""
        self.execute(self._current(), [(Script.EXPIRE, (FOREVER,))])

    def _leave(self, child: Child) -> None:
        """In order: whatever waits is handed back; the rest has to be over."""
        if len(self.machines) < 2 and not child.engine.stopping:
            return
        child.engine.stop()
        child.give_back()
        if not child.engine.idle or child.closed:
            return
        if child.store.run(Script.RECOVER, child.inc, False, [], "", 3, [], []).ok:
            child.alive = False
            self.machines = [m for m in self.machines if m.child is not child]

    def _current(self) -> Store:
        """An administrator: under whatever epoch there is."""
        store = copy.copy(self.base)
        stored = self.base.redis.hget(self.base.keys.epoch, "id")
        store.epoch = store.epoch._replace(id=(stored or b"").decode())
        return store

    # --- the end -----------------------------------------------------------------------------

    def _drain(self) -> None:
        """Nothing goes wrong any more: all must come to its end, by KRQ's own means alone."""
        self.trace.append("--- no faults from here ---")
        self.faults = 0.0
        while self.plan:
            self.publish()
        while self.late_copies:
            self.late()
        while any(machine.frozen for machine in self.machines):
            self.thaw()
        for n in range(ROUNDS):
            self._round()
            if n % 4 == 3:
                self.due()
                if self._settled():
                    break
        self.judge.at_the_end(dump(self.base), self._current())

    def _round(self) -> None:
        for machine in list(self.machines):
            for what in ("intake", "listen", "turn", "start", "finish", "turn", "log", "read_back", "sync"):
                self.step(what, machine)
            if machine.child.engine.stopping:
                self.step("leave", machine)
        if not self.machines:
            self.join()

    def _settled(self) -> bool:
        found = dump(self.base)
        states = {fields.get("s") for fields in of(found, "task").values()}
        marks = {part: int(of(found, "mark")[f"{part[0]}:{part[1]}"]["next"]) for part in PARTS}
        read = all(marks[part] == len(line) for part, line in self.log.items())
        return read and states <= {"S", "F", "C"} and not of(found, "outbox") and not of(found, "incomplete")

    def _clean(self) -> None:
        names = [self.base.keys.prefix + name for name in dump(self.base)]
        if names:
            self.base.redis.unlink(*names)
        self.base.close()
