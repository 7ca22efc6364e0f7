"""The scripts against the model: any schedule of calls, each perhaps twice, late calls of the dead among them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from store_model import FINAL, Model
from store_reading import LONG, dump, expected, of, owner, told
from store_values import Record

from krq import config
from krq.dev.valkey import ValkeyServer
from krq.store.client import Store
from krq.store.scripts import Script

IDS = [f"i{n}" for n in range(9)]
PARTS = [("qa", 0), ("qa", 1), ("qb", 0)]
QUEUES = ["qa", "qb"]
WINDOW = 2
FAR = 4_000_000_000_000
FOREVER = 10**15
LONG_VALUE = json.dumps("x" * 100)

#: what may happen, and how often
CHANCES = {
    "send": 24, "intake": 24, "take": 24, "settle": 24, "log_entries": 12, "release": 3, "recover": 2, "enter_worker": 6, "cancel": 3,
    "control": 2, "purge": 1, "expire": 6, "time_passes": 5, "late_copy": 6, "restart": 2,
}  # fmt: skip


class Scripts(RuleBasedStateMachine):
    """Each step is a script's call, made on the server and on the model, and all that stands there is compared."""

    server: ValkeyServer

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(config.load({"backend": self.server.url, "namespace": f"m{os.urandom(5).hex()}"}))
        self.model = Model(WINDOW)
        self.log: dict[tuple[str, int], list[Record]] = {part: [] for part in PARTS}
        self.numbers: dict[str, int] = {}
        self.calls: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.attempts: dict[str, int] = {}
        self.taking = False
        self.rng = Random(0)
        self.began = int(time.time() * 1000) - 1000

    @initialize(salt=st.integers(0, 2**48))
    def begin(self, salt: int) -> None:
        self.salt = salt
        self.store.renew("first")
        self.store.run(Script.MARK, [[queue, number, "tid", 0, False] for queue, number in PARTS])
        self.model.marks = {f"{queue}:{number}": 0 for queue, number in PARTS}
        self.enter_worker()

    def teardown(self) -> None:
        keys = [self.store.keys.prefix + name for name in dump(self.store)]
        if keys:
            self.store.redis.unlink(*keys)
        self.store.close()

    # --- how a call is made ------------------------------------------------------------------

    def call(self, script: Script, *args: Any) -> list[Any]:
        """Run a script, perhaps twice, as the reply may be lost. The second must change nothing."""
        answer = self.store.run(script, *args)
        if self.chance(0.3):
            before = dump(self.store)
            self.store.run(script, *args)
            after = dump(self.store)
            beaten = {"beats"} if script is Script.REGISTER else set()  # each is a beat
            for name in sorted((before.keys() | after.keys()) - beaten):
                assert after.get(name) == before.get(name), name
        return [answer.status, *answer.values]

    def again(self, make: Callable[..., None], *args: Any) -> None:
        """Make a call, and remember it: a late copy of it may be made at any time."""
        self.calls.append((make, args))
        make(*args)

    def later(self) -> None:
        """Times become an order: what is due has small scores, what is not has large ones, as the model has it."""
        now = time.time() * 1000
        found = {i: (queue, score) for queue, line in of(dump(self.store), "scheduled").items() for i, score in line}
        assert set(found) == set(self.model.later)
        pipeline = self.store.redis.pipeline()
        for n, (i, later) in enumerate(self.model.later.items()):
            queue, score = found[i]
            assert (score > now) == later, i
            pipeline.zadd(self.store.keys("scheduled", queue), {i: FAR + n if later else n})
        pipeline.execute()

    @rule(seed=st.integers(0, 2**48))
    def step(self, seed: int) -> None:
        """One call. All of it comes from the seed: drawn one by one, most schedules would end nothing."""
        self.rng = Random(seed ^ self.salt)
        (what,) = self.rng.choices([*CHANCES], weights=[*CHANCES.values()])
        if not self.model.workers and self.chance(0.5):
            what = "enter_worker"
        note(what)
        getattr(self, what)()

    def chance(self, of: float) -> bool:
        return self.rng.random() < of

    def some(self, of: Iterable[Any], most: int) -> list[Any]:
        found = sorted(of)
        return self.rng.sample(found, min(len(found), self.rng.randint(1, most)))

    # --- the log and admission ---------------------------------------------------------------

    def send(self) -> None:
        """Publish a message, or another copy of one, or a newer generation; perhaps admit it at once."""
        i = self.rng.choice(IDS)
        queue = QUEUES[int(i[1:]) % 2]
        part = self.rng.choice([part for part in PARTS if part[0] == queue])
        raw = i + "!" * self.chance(0.1)
        name, inputs = "odd" if self.chance(0.1) else "add", "list" if self.chance(0.5) else 0
        after = tuple(self.some([on for on in IDS if on <= i], 2)) if self.chance(0.3) else ()  # no circles: tests/test_scripts_flow.py
        due, expires, now = FAR * self.chance(0.15), 1 * self.chance(0.1), int(time.time() * 1000)
        priority, generation = self.rng.choice([-1, 0, 0, 0, 1]), self.rng.choice([0, 0, 0, 1, 2])
        flow = [self.rng.choice([0, 0, "c"]), False, {on: 1 for on in after if self.chance(0.2)} or False] if after else False
        record = Record(
            i, name, queue, part[1], len(self.log[part]), raw, len(raw), priority, due, expires, after, inputs, now, generation,
            True, False, flow,
        )  # fmt: skip
        self.log[part].append(record)
        if self.chance(0.5):
            self.again(self.submit, record)

    def submit(self, record: Record) -> None:
        assert self.call(Script.ADMIT, [], WINDOW, FOREVER, 86400, [record]) == self.model.admit([], [record])

    def intake(self) -> None:
        part = self.rng.choice(PARTS)
        mark = self.model.marks[f"{part[0]}:{part[1]}"]
        first = max(0, mark + self.rng.choice([1, 0, 0, 0, 0, 0, -1, -3]))
        self.again(self.read, part, first, self.log[part][first : first + self.rng.randint(1, 6)])

    def read(self, part: tuple[str, int], first: int, batch: list[Record]) -> None:
        source = [*part, "tid", first, first + len(batch), self.began]
        assert self.call(Script.ADMIT, source, WINDOW, FOREVER, 86400, batch) == self.model.admit(source[:5], batch)

    # --- workers -----------------------------------------------------------------------------

    def enter_worker(self) -> None:
        if len(self.model.workers) < 3:
            inc = f"w{len(self.numbers)}~0"
            self.numbers[inc] = 0
            self.again(self.register, inc, self.rng.choice([["*"], ["add"], ["add", "odd"]]))

    def register(self, inc: str, names: list[str]) -> None:
        assert self.call(Script.REGISTER, inc, ["worker", inc], names, QUEUES)[:1] == self.model.register(inc, names)

    def worker(self, busy: bool = False) -> str:
        """Mostly a live one; busy: mostly one that holds something."""
        alive = sorted(inc for inc in self.model.workers if self.model.held(inc) or not busy)
        return self.rng.choice(alive if alive and self.chance(0.95) else sorted(self.numbers))

    def take(self) -> None:
        inc = self.worker()
        self.numbers[inc] += 1
        queues = self.rng.choice([QUEUES, QUEUES[::-1], QUEUES[:1]])
        self.again(self.make_take, inc, self.numbers[inc], self.rng.randint(0, 4), queues, self.chance(0.5))

    def make_take(self, inc: str, number: int, most: int, queues: list[str], patient: bool) -> None:
        self.taking = True
        told_now = self.call(Script.TAKE, inc, number, most, queues, FOREVER if patient else 0)
        wanted = self.model.take(inc, number, most, queues, patient)
        if told_now[0] == "OK":
            told_now, more = told_now[:2], told_now[3]
            for task in told_now[1]:
                task[7] = task[7] and [task[7][0], [v[:2] + short(v[2:]) if v.startswith("!") else v for v in task[7][1]]]
            assert more or not any(self.model.ready(queue) for queue in queues if queue not in self.model.paused)
        assert told_now == wanted

    def settle(self) -> None:
        inc = self.worker(busy=True)
        items = []
        for i in self.some(self.model.held(inc) if self.chance(0.9) else self.model.tasks, 3):
            attempt = self.model.tasks[i].attempt - self.chance(0.1)
            kind = self.rng.choice("SSSFCRD")
            value = self.rng.choice(["3" if kind == "S" else "{}", LONG_VALUE])
            delay = 2 if kind == "D" else 3_600_000 * self.chance(0.5)
            items.append([i, attempt, kind, value, json.dumps({"id": i}), delay])
        self.again(self.make_settle, inc, items)

    def make_settle(self, inc: str, items: list[list[Any]]) -> None:
        assert self.call(Script.SETTLE, inc, items) == self.model.settle(inc, items)

    def release(self) -> None:
        inc = self.worker(busy=True)
        which = self.some(self.model.held(inc) if self.chance(0.7) else self.model.tasks, 2)
        self.again(self.make_release, inc, [(i, self.model.tasks[i].attempt - self.rng.choice([0, 0, 1])) for i in which])

    def make_release(self, inc: str, items: list[tuple[str, int]]) -> None:
        assert self.call(Script.RELEASE, inc, items) == self.model.release(inc, items)

    def recover(self) -> None:
        inc = self.worker(busy=True)
        ran = self.some(IDS, 4) if self.chance(0.6) else None
        self.again(self.make_recover, inc, ran, self.some(ran, 2) if ran else [], self.rng.choice(["", "killed"]))

    def make_recover(self, inc: str, ran: list[str] | None, suspects: list[str], cause: str) -> None:
        told = self.call(Script.RECOVER, inc, False, ran is not None and ran, cause, 2, suspects, [])
        assert told == self.model.recover(inc, ran, 2, suspects, cause == "")

    def log_entries(self) -> None:
        """In any order."""
        holders = sorted(holder for holder, entries in self.model.outbox.items() if entries)
        if holders:
            holder = self.rng.choice(holders)
            entries = [field.rpartition(":") for field in self.some(self.model.outbox[holder], 3)]
            tasks = self.model.tasks
            self.again(self.make_logged, holder, [(i, int(a), i in tasks and tasks[i].state in FINAL) for i, _, a in entries])

    def make_logged(self, holder: str, items: list[tuple[str, int, bool]]) -> None:
        status, positions = self.call(Script.LOGGED, holder, items)
        assert [status, sorted(positions)] == self.model.logged(holder, items)

    # --- administration ----------------------------------------------------------------------

    def cancel(self) -> None:
        which = self.some(IDS, 2)
        assert self.call(Script.CANCEL, which) == self.model.cancel(which)

    def control(self) -> None:
        queue, paused = self.rng.choice(QUEUES), self.chance(0.3)
        assert self.call(Script.CONTROL, queue, paused) == ["OK"]
        (self.model.paused.add if paused else self.model.paused.discard)(queue)

    def purge(self) -> None:
        queue = self.rng.choice(QUEUES)
        told_now = self.store.run(Script.PURGE, queue, False)  # another call drops what this one has released
        before = int(float(self.store.redis.hget(self.store.keys("queue", queue), "purged") or 0))
        assert [told_now.status, told_now.values[0]] == self.model.purge(queue, before)

    def expire(self) -> None:
        past = self.chance(0.7)
        told_now = self.store.run(Script.EXPIRE, -FOREVER if past else FOREVER)  # another call may go on where this one stopped
        assert [told_now.status, *told_now.values] == self.model.expire(past)

    def time_passes(self) -> None:
        self.model.later = dict.fromkeys(self.model.later, False)
        for queue in QUEUES:
            line = {i: n for n, i in enumerate(self.model.later) if self.model.tasks[i].record.queue == queue}
            if line:
                self.store.redis.zadd(self.store.keys("scheduled", queue), line)

    def late_copy(self) -> None:
        """A call that was given up is carried out after all."""
        if self.calls:
            make, args = self.rng.choice(self.calls[-30:])
            make(*args)

    def restart(self) -> None:
        """Another life of the server: closed, asserted, opened under a new epoch."""
        self.store.redis.hset(self.store.keys.epoch, "run", "0" * 40)
        assert self.call(Script.CANCEL, IDS) == ["RESTARTED"]
        before = self.store.epoch.number
        assert self.store.renew(f"e{before}").number > before
        if self.model.workers:
            assert self.call(Script.CANCEL, IDS) == ["CLOSED"]
        for inc, worker in sorted(self.model.workers.items()):
            if self.chance(0.8):
                self.assert_held(inc, sorted(worker.names))
        assert self.call(Script.OPEN, 0)[:2] == ["OK", True]

    def assert_held(self, inc: str, names: list[str]) -> None:
        held = [i for i in sorted(self.model.held(inc)) if self.chance(0.8)]
        mine = [(i, self.model.tasks[i].attempt - self.chance(0.1)) for i in held]
        records = {i: self.model.tasks[i].record for i in held}
        packed = [(i, a, records[i].name, records[i].queue, records[i].raw, records[i].checksum, records[i].sent) for i, a in mine]
        assert self.call(Script.ASSERT, inc, ["worker", inc], names, packed) == self.model.assertion(inc, names, mine)

    # --- what always holds -------------------------------------------------------------------

    @invariant()
    def agrees(self) -> None:
        if not self.model.marks:
            return
        self.later()
        found = dump(self.store)
        self.owned(found)
        self.attempts_only_rise(found)
        told_now, wanted = told(found), expected(self.model)
        for what, value in wanted.items():
            read = told_now[what]
            if what == "values":
                read = {i: short(v) for i, v in read.items()}
            assert read == value, (what, difference(read, value))
        self.low_water()

    def owned(self, found: dict[str, Any]) -> None:
        for name in found:
            owner(name)
        for i, fields in of(found, "task").items():
            assert all(len(value) <= 64 for name, value in fields.items() if name not in LONG), (i, fields)
        assert all(int(fields.get("bytes", 0)) >= 0 for fields in of(found, "queue").values())
        assert all(len(tokens) == 1 for tokens in of(found, "wake").values())

    def attempts_only_rise(self, found: dict[str, Any]) -> None:
        now = {i: int(fields.get("a", 0)) for i, fields in of(found, "task").items() if fields.get("s")}
        for i, attempt in now.items():
            assert attempt - self.attempts.get(i, 0) in ((0, 1) if self.taking else (0,)), i
        self.attempts, self.taking = now, False

    def low_water(self) -> None:
        answer = self.store.run(Script.MARK, [[queue, number, "tid", False, False] for queue, number in PARTS])
        for (queue, number), (mark, low) in zip(PARTS, answer.values[0], strict=True):
            part = f"{queue}:{number}"
            assert (mark, low) == (self.model.marks[part], self.model.low(part))
            for record in self.log[queue, number][:low]:
                task = self.model.tasks.get(record.id)
                assert task is None or f"{part}:{record.offset}" not in (task.places or ())


def short(value: str) -> str:
    """Of an error that a script has made, its code: all that the model says."""
    return str(json.loads(value)["type"]) if value.startswith('{"') else value


def difference(read: Any, wanted: Any) -> Any:
    if not isinstance(read, dict) or not isinstance(wanted, dict):
        return read, wanted
    return {i: (read.get(i), wanted.get(i)) for i in read.keys() | wanted.keys() if read.get(i) != wanted.get(i)}


@pytest.fixture(params=["valkey", "debian_redis"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def test_scripts_do_as_the_model_does(server: ValkeyServer) -> None:
    """P2, P3, P5: the whole state after each call."""
    machine = type("Machine", (Scripts,), {"server": server})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    wanted = settings(max_examples=60, stateful_step_count=70, deadline=None, suppress_health_check=checks, print_blob=True)
    run_state_machine_as_test(machine, settings=wanted)
